"""ASGI middleware of vLLM's API server; what it keeps of a request is in ``exchange.py``.

Nothing is held back or changed on the way, save that a request without an id gets one.
"""

from __future__ import annotations

import importlib
import logging
from collections.abc import Awaitable, Callable, MutableMapping
from typing import TYPE_CHECKING, Any, Final

from moe_watch.tap import switch

if TYPE_CHECKING:
    from moe_watch.tap.bodies import Redact
    from moe_watch.tap.exchange import Exchange
    from moe_watch.tap.sender import Sender

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

PREFIX: Final = {"/v1/chat/completions": "chatcmpl-", "/v1/completions": "cmpl-"}

log = logging.getLogger("moe_watch.tap")


class Middleware:
    """``--middleware moe_watch.tap.samples.Middleware``; without the switch it passes everything on untouched."""

    def __init__(self, app: App) -> None:
        self.app = app
        self._sender: Sender | None = None
        self._redact: Redact | None = None
        try:
            if switch.is_on():
                self._start()
        except Exception:
            self._sender = None
            log.exception("moe-watch middleware could not start; serving goes on")

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
        sender = self._sender
        if sender is None or prefix is None or scope.get("method") != "POST" or sender.status.state != "on":
            await self.app(scope, receive, send)
            return
        exchange, heard = None, (receive, send)
        try:
            exchange = self._begin(scope, prefix, sender)
            heard = exchange.receiving(receive), exchange.sending(send)
        except Exception as error:  # noqa: BLE001 - whatever it is, serving goes on
            sender.give_up("middleware", error)
        try:
            await self.app(scope, *heard)
        finally:
            try:
                if exchange is not None:
                    exchange.tell()
            except Exception as error:  # noqa: BLE001 - whatever it is, serving goes on
                sender.give_up("middleware", error)

    def _begin(self, scope: Scope, prefix: str, sender: Sender) -> Exchange:
        from moe_watch.tap.exchange import Exchange

        return Exchange(scope, prefix, sender, self._redact)
