"""Ids of requests are the clients' words: one that comes again gets something behind it, and still leads back.

The tap does so where it sees an id repeat (``tap/ids.py``), the sidecar where the tap could not.
"""

from __future__ import annotations

from hashlib import blake2b

from moe_watch import wire


def again(request_id: str, nonce: str) -> str:
    """Return the id of another request with the same id; ``nonce`` is 12 hex digits.

    >>> again("chatcmpl-a", "0123456789ab")
    'chatcmpl-a~0123456789ab'
    """
    return f"{request_id[: wire.LONGEST_NAME - wire.AGAIN]}~{nonce}"


def apart(request_id: str, by: str) -> str:
    """Return the id of another request with the same id, which follows from ``by``, something of that request's own."""
    return again(request_id, blake2b(by.encode(), digest_size=6).hexdigest())


def is_called(request_id: str, asked: str) -> bool:
    """Say whether a client means ``request_id`` by ``asked``: that id, or what ``again`` made of it.

    >>> [is_called(one, "a") for one in ("a", "a~0123456789ab", "a~0123", "ab")]
    [True, True, False, False]
    """
    return request_id == asked or (request_id[: -wire.AGAIN] == asked and request_id[-wire.AGAIN :].startswith("~"))
