"""From the engine's request ids to the ids that clients see: the key that joins routing, latency and samples."""

from __future__ import annotations

import hashlib
import re
import secrets
from collections import OrderedDict
from typing import Final

from moe_watch import wire

_LONGEST: Final = wire.LONGEST_NAME - wire.AGAIN - 2  # with room for what tells a repeated id from the first
_MOST_USED: Final = 1 << 16
_AGAIN: Final = re.compile(r"~[0-9a-f]{12}\Z")  # moe_watch.domain.request_ids
_RANDOM = re.compile(r"-[0-9a-f]{8}\Z")  # vllm.v1.engine.input_processor.assign_request_id
_CHILD = re.compile(r"(\d+)_")  # vllm.v1.engine.parallel_sampling: one of n > 1 outputs
_PROMPT = re.compile(r"(cmpl-.+)-(\d+)\Z", re.DOTALL)  # /v1/completions: one of several prompts
_SUBREQUEST = re.compile(r"(resp_.+)_(\d+)\Z", re.DOTALL)  # /v1/responses: one of several turns


def from_engine(engine_id: str) -> tuple[str, int]:
    """Return the client's request id and choice of an id as scheduler and workers have it.

    >>> from_engine("chatcmpl-abc-1-0f0f0f0f"), from_engine("1_cmpl-abc-0-0f0f0f0f")
    (('chatcmpl-abc-1', 0), ('cmpl-abc', 1))
    """
    named = _RANDOM.sub("", engine_id)
    child = _CHILD.match(named)
    request_id, prompt = from_frontend(named[child.end() :] if child else named)
    if child is None:
        return request_id, prompt
    return request_id, prompt * wire.CHOICES + int(child[1])


def from_frontend(external_id: str) -> tuple[str, int]:
    """Return the client's request id and choice of an id without the engine's suffix, as statistics have it.

    >>> from_frontend("cmpl-abc-3"), from_frontend("chatcmpl-abc-3")
    (('cmpl-abc', 3), ('chatcmpl-abc-3', 0))
    """
    one = _PROMPT.match(external_id) or _SUBREQUEST.match(external_id)
    return (bounded(one[1]), int(one[2])) if one else (bounded(external_id), 0)


def bounded(request_id: str) -> str:
    """Return ``request_id``, or where it is longer than a frame allows its beginning and a digest of it all.

    What tells a repeated id from the first stays at its end, so that it leads back to the same beginning.
    """
    again = _AGAIN.search(request_id)
    first = request_id[: again.start()] if again else request_id
    if len(first) > _LONGEST:
        digest = hashlib.sha256(first.encode("utf-8", "surrogatepass")).hexdigest()[:32]
        first = f"{first[: _LONGEST - 33]}-{digest}"
    return first + again[0] if again else first


class Used:
    """The ids that clients chose lately: one that comes again is another request, and gets an id of its own."""

    def __init__(self, most: int = _MOST_USED) -> None:
        self._most = most
        self._hashes: OrderedDict[int, None] = OrderedDict()

    def unique(self, prefix: str, chosen: bytes) -> bytes:
        """Return ``chosen``, or where it came lately that with 12 random digits behind it."""
        known = hash((prefix, chosen))
        if known in self._hashes:
            self._hashes.move_to_end(known)
            return chosen + b"~" + secrets.token_hex(6).encode()
        self._hashes[known] = None
        if len(self._hashes) > self._most:
            self._hashes.popitem(last=False)
        return chosen
