"""One request of the API server and its answer as they pass: what the HTTP layer knows, and a share of the text.

What is kept meanwhile is bounded; it is read and redacted in the sender's thread.
"""

from __future__ import annotations

import secrets
import time
import uuid
from collections.abc import Awaitable
from hashlib import blake2b
from typing import TYPE_CHECKING, Final, NamedTuple

from moe_watch import wire
from moe_watch.tap.api import asked, bodies
from moe_watch.tap.api.asgi import Endpoint, Message, Receive, Scope, Send
from moe_watch.tap.send import ids

if TYPE_CHECKING:
    from moe_watch.tap.api.bodies import Redact
    from moe_watch.tap.send.ids import Used
    from moe_watch.tap.send.sender import Header, Sender

MOST_KEPT: Final = 4 * 1024 * 1024  # bytes of one body; a longer request is known by its headers alone
_SECRET: Final = secrets.token_bytes(16)  # of this process: which ids are sampled nobody outside can tell
_MOST_DRAWN: Final = 1024  # bytes at the end of an id that the draw looks at


class Exchange:
    """One request and its answer as they pass."""

    def __init__(self, scope: Scope, endpoint: Endpoint, tap: Tap) -> None:
        self._sender, self._redact = tap.sender, tap.redact
        self._endpoint = endpoint
        self._headers: dict[bytes, bytes] = dict(reversed(scope["headers"]))  # the first of several counts, as in vLLM
        self._own = _identify(scope, self._headers.get(b"x-request-id", b""), endpoint, tap.used)
        self._sampled = tap.redact is not None and _is_drawn(self._own, tap.sender.settings.sample_rate)
        self._started = time.time()
        self._status = 0
        self._asked, self._answered = bytearray(), bytearray()
        self._asked_cut = self._answered_cut = False
        self._complete = False
        self._gone = False

    def receiving(self, receive: Receive) -> Receive:
        """Return ``receive`` with an ear on it."""

        async def heard() -> Message:
            message = await receive()
            try:
                self._note_request(message)
            except Exception as error:  # noqa: BLE001 - whatever it is, serving goes on
                self._sender.give_up("middleware", error)
            return message

        return heard

    def sending(self, send: Send) -> Send:
        """Return ``send`` with an ear on it; an answer always carries its request id."""

        def heard(message: Message) -> Awaitable[None]:  # a call for every token: one coroutine more would be felt
            try:
                self._note_answer(message)
            except Exception as error:  # noqa: BLE001 - whatever it is, serving goes on
                self._sender.give_up("middleware", error)
            return send(message)

        return heard

    def _note_request(self, message: Message) -> None:
        if message["type"] == "http.request":
            self._asked_cut |= not _keep(self._asked, message.get("body", b""))
        elif message["type"] == "http.disconnect":
            self._gone = self._gone or not self._complete

    def _note_answer(self, message: Message) -> None:
        kind = message["type"]
        if kind == "http.response.body":
            self._complete = not message.get("more_body", False)
            if self._sampled and not self._answered_cut:  # nothing behind a hole: a key across it is not recognised
                self._answered_cut = not _keep(self._answered, message.get("body", b""))
        elif kind == "http.response.start":
            self._status = int(message["status"])
            headers = list(message.get("headers", []))
            if not any(name.lower() == b"x-request-id" for name, _ in headers):
                message["headers"] = [*headers, (b"x-request-id", self._own)]

    def tell(self) -> None:
        """Queue the frame."""
        finished = time.time()
        size = 512 + len(self._asked) + len(self._answered)
        self._sender.put(lambda header: self._frame(header, finished), size)

    def _frame(self, header: Header, finished: float) -> wire.Request:
        chat = self._endpoint.prefix.startswith("chat")
        said = asked.Said(unread=True) if self._asked_cut else asked.said(bytes(self._asked), chat=chat)
        mark = self._header(b"x-moe-watch-canary")
        return wire.Request(
            **header,
            request_id=ids.bounded(self._endpoint.prefix + self._own.decode("latin-1")),
            model=said.model,
            endpoint=self._endpoint.path,
            status=self._status or (499 if self._gone else 500),
            stream=said.stream,
            choices=said.choices,
            images=said.images,
            domain=self._header(b"x-moe-watch-domain"),
            user=said.user,
            canary=bool(mark),
            mark=mark,
            unread=said.unread,
            disconnected=self._gone or not self._complete,
            traceparent=self._header(b"traceparent"),
            sample=self._sample(said),
            sample_rate=self._sender.settings.sample_rate,
            started_at=self._started,
            finished_at=finished,
        )

    def _header(self, name: bytes) -> str:
        return self._headers.get(name, b"")[:64].decode("latin-1")

    def _sample(self, said: asked.Said) -> wire.Sample | None:
        """Return the sampled text, None where there is none to send or it could not be redacted."""
        if not self._sampled or self._redact is None or self._asked_cut or self._status != 200:
            return None
        most = self._sender.settings.sample_max_bytes
        try:
            sample = bodies.sample(said, bytes(self._answered), self._redact, most, cut=self._answered_cut)
            self._sender.status.recover("a sample")
        except Exception as error:  # noqa: BLE001 - whatever it is, the text stays here
            if self._sender.status.spoil("a sample", error):
                self._sender.event("tap_off", self._sender.status.reason)
            return None
        return sample


def _identify(scope: Scope, chosen: bytes, endpoint: Endpoint, used: ids.Used) -> bytes:
    """Return the id of a request, which no other one has; where the client's will not do, vLLM reads ours instead."""
    own = used.unique(endpoint.prefix, chosen) if chosen else uuid.uuid4().hex.encode()
    if own != chosen:
        kept = [(name, value) for name, value in scope["headers"] if name != b"x-request-id"]
        scope["headers"] = [*kept, (b"x-request-id", own)]
    return own


def _is_drawn(own: bytes, rate: float) -> bool:
    """Say whether a request is sampled."""
    drawn = blake2b(own[-_MOST_DRAWN:], digest_size=8, key=_SECRET).digest()
    return int.from_bytes(drawn, "big") < rate * 2**64


def _keep(kept: bytearray, more: bytes) -> bool:
    """Append ``more``; return False, and keep nothing of it, where that would be too much."""
    if len(kept) + len(more) > MOST_KEPT:
        return False
    kept.extend(more)
    return True


class Tap(NamedTuple):
    """What the requests of this process have in common."""

    sender: Sender
    redact: Redact | None
    used: Used
    exchange: type[Exchange]  # imported at the start: no request waits for that
