"""ASGI middleware of vLLM's API server; what it keeps of a request is in ``exchange.py``.

Nothing is held back or changed on the way, save that a request without an id gets one, and one whose id another request
had lately gets that id with something behind it.
"""

from __future__ import annotations

import importlib
import logging
from typing import TYPE_CHECKING, Final

from moe_watch.tap import enabled
from moe_watch.tap.api.asgi import App, Endpoint, Receive, Scope, Send

if TYPE_CHECKING:
    from moe_watch.tap.api.exchange import Exchange, Tap


_ENDPOINTS: Final = {
    one.path: one for one in (Endpoint("/v1/chat/completions", "chatcmpl-"), Endpoint("/v1/completions", "cmpl-"))
}

log = logging.getLogger("moe_watch.tap")


class Middleware:
    """``--middleware moe_watch.tap.middleware.Middleware``; without the switch it passes everything on untouched."""

    def __init__(self, app: App) -> None:
        self.app = app
        self._tap: Tap | None = None
        try:
            if enabled.is_on():
                self._start()
        except Exception:
            self._tap = None
            log.exception("moe-watch middleware could not start; serving goes on")

    def _start(self) -> None:
        from moe_watch.tap.api import api_sender, exchange
        from moe_watch.tap.send import ids

        sender, redact = api_sender.sender(), None
        if sender.settings.sample_rate > 0:
            module, _, function = sender.settings.redact.partition(":")
            try:
                redact = getattr(importlib.import_module(module), function)
            except (ImportError, AttributeError):
                log.exception("moe-watch samples no text: MOE_WATCH_REDACT=%s cannot be loaded", sender.settings.redact)
        self._tap = exchange.Tap(sender, redact, ids.Used(), exchange.Exchange)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on and tell of it once it is over."""
        tap, exchange, heard = self._tap, None, (receive, send)
        if tap is None or tap.sender.status.state != "on":
            await self.app(scope, receive, send)
            return
        try:
            exchange = self._begin(scope, tap)
            if exchange is not None:
                heard = exchange.receiving(receive), exchange.sending(send)
        except Exception as error:  # noqa: BLE001 - whatever it is, serving goes on
            tap.sender.give_up("middleware", error)
        try:
            await self.app(scope, *heard)
        finally:
            try:
                if exchange is not None:
                    exchange.tell()
            except Exception as error:  # noqa: BLE001 - whatever it is, serving goes on
                tap.sender.give_up("middleware", error)

    def _begin(self, scope: Scope, tap: Tap) -> Exchange | None:
        """Return what is kept of a request, None of one to another route."""
        if scope["type"] != "http" or scope.get("method") != "POST":
            return None
        endpoint = _ENDPOINTS.get(route(scope))
        return None if endpoint is None else tap.exchange(scope, endpoint, tap)


def route(scope: Scope) -> str:
    """Return the path that is matched with vLLM's routes: behind ``--root-path``, as ``starlette._utils`` has it."""
    path, root = str(scope.get("path", "")), str(scope.get("root_path") or "")
    return path.removeprefix(root) if path.startswith(f"{root}/") else "" if path == root else path
