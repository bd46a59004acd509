"""ASGI middleware of vLLM's API server: what the HTTP layer knows of each generation request, and a share of the text.

Nothing is held back or changed on the way, save that a request without an id gets one. What is kept meanwhile is
bounded; it is read and redacted in the sender's thread.
"""

from __future__ import annotations

import importlib
import logging
import time
import uuid
import zlib
from collections.abc import Awaitable, Callable, MutableMapping
from typing import TYPE_CHECKING, Any, Final

from moe_watch import wire
from moe_watch.tap import ids, switch

if TYPE_CHECKING:
    from moe_watch.tap.bodies import Redact
    from moe_watch.tap.sender import Header, Sender

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

PREFIX: Final = {"/v1/chat/completions": "chatcmpl-", "/v1/completions": "cmpl-"}
MOST_KEPT: Final = 4 * 1024 * 1024  # bytes of one body; a longer request is known by its headers alone

log = logging.getLogger("moe_watch.tap")


class Middleware:
    """``--middleware moe_watch.tap.samples.Middleware``; without the switch it passes everything on untouched."""

    def __init__(self, app: App) -> None:
        self.app = app
        self._sender: Sender | None = None
        self._redact: Redact | None = None
        if switch.is_on():
            try:
                self._start()
            except Exception:
                self._sender = None
                log.exception("moe-watch middleware could not start; requests pass without it")

    def _start(self) -> None:
        from moe_watch.tap import frontend

        self._sender = frontend.sender()
        settings = self._sender.settings
        if settings.sample_rate > 0:
            module, _, function = settings.redact.partition(":")
            try:
                self._redact = getattr(importlib.import_module(module), function)
            except (ImportError, AttributeError):
                log.exception("moe-watch samples no text: MOE_WATCH_REDACT=%s cannot be loaded", settings.redact)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on and tell of it once it is over."""
        prefix = PREFIX.get(scope.get("path", "")) if scope["type"] == "http" else None
        if self._sender is None or prefix is None or scope.get("method") != "POST":
            await self.app(scope, receive, send)
            return
        try:
            exchange = _Exchange(scope, prefix, self._sender, self._redact)
        except Exception as error:  # noqa: BLE001 - whatever it is, serving goes on
            self._sender.status.fail("middleware", error)
            exchange = None
        if exchange is None:
            await self.app(scope, receive, send)
            return
        try:
            await self.app(scope, exchange.receiving(receive), exchange.sending(send))
        finally:
            exchange.tell()


class _Exchange:
    """One request and its answer as they pass."""

    def __init__(self, scope: Scope, prefix: str, sender: Sender, redact: Redact | None) -> None:
        self._sender, self._redact = sender, redact
        self._path = str(scope["path"])
        self._headers = dict(scope["headers"])
        self._own = self._headers.get(b"x-request-id", b"")
        if not self._own:
            self._own = uuid.uuid4().hex.encode()
            kept = [(name, value) for name, value in scope["headers"] if name != b"x-request-id"]
            scope["headers"] = [*kept, (b"x-request-id", self._own)]
        self._id = ids.bounded(prefix + self._own.decode("latin-1"))
        self._canary = b"x-moe-watch-canary" in self._headers
        rate = sender.settings.sample_rate
        chosen = zlib.crc32(self._id.encode("utf-8", "replace")) < rate * 2**32
        self._sampled = redact is not None and chosen and not self._canary
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
            self._hear(self._note_request, message)
            return message

        return heard

    def sending(self, send: Send) -> Send:
        """Return ``send`` with an ear on it; an answer always carries its request id."""

        async def heard(message: Message) -> None:
            self._hear(self._note_answer, message)
            await send(message)

        return heard

    def _hear(self, note: Callable[[Message], None], message: Message) -> None:
        try:
            note(message)
        except Exception as error:  # noqa: BLE001 - whatever it is, serving goes on
            self._sender.status.fail("middleware", error)

    def _note_request(self, message: Message) -> None:
        if message["type"] == "http.request":
            self._asked_cut |= not _keep(self._asked, message.get("body", b""))
        elif message["type"] == "http.disconnect":
            self._gone = self._gone or not self._complete

    def _note_answer(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._status = int(message["status"])
            headers = list(message.get("headers", []))
            if not any(name.lower() == b"x-request-id" for name, _ in headers):
                message["headers"] = [*headers, (b"x-request-id", self._own)]
        elif message["type"] == "http.response.body":
            self._complete = not message.get("more_body", False)
            if self._sampled:
                self._answered_cut |= not _keep(self._answered, message.get("body", b""))

    def tell(self) -> None:
        """Queue the frame; never raises."""
        try:
            finished = time.time()
            size = 512 + len(self._asked) + len(self._answered)
            self._sender.put(lambda header: self._frame(header, finished), size)
        except Exception as error:  # noqa: BLE001 - whatever it is, serving goes on
            self._sender.status.fail("middleware", error)

    def _frame(self, header: Header, finished: float) -> wire.Request:
        from moe_watch.tap import bodies

        asked = bodies.said(b"" if self._asked_cut else bytes(self._asked))
        return wire.Request(
            **header,
            request_id=self._id,
            model=asked.model,
            endpoint=self._path,
            status=self._status or (499 if self._gone else 500),
            stream=asked.stream,
            choices=asked.choices,
            images=asked.images,
            domain=self._headers.get(b"x-moe-watch-domain", b"").decode("latin-1")[:64],
            user=asked.user,
            canary=self._canary,
            disconnected=self._gone or not self._complete,
            sample=self._sample(asked),
            sample_rate=self._sender.settings.sample_rate,
            started_at=self._started,
            finished_at=finished,
        )

    def _sample(self, asked: Any) -> wire.Sample | None:
        """Return the sampled text, None where there is none to send or it could not be redacted."""
        from moe_watch.tap import bodies

        if not self._sampled or self._redact is None or self._asked_cut or self._status != 200:
            return None
        most = self._sender.settings.sample_max_bytes
        try:
            return bodies.sample(asked, bytes(self._answered), self._redact, most, cut=self._answered_cut)
        except Exception:
            self._sender.status.errors += 1
            log.exception("moe-watch could not redact a sample, so its text stays here")
            return None


def _keep(kept: bytearray, more: bytes) -> bool:
    """Append ``more``; return False, and keep nothing of it, where that would be too much."""
    if len(kept) + len(more) > MOST_KEPT:
        return False
    kept.extend(more)
    return True
