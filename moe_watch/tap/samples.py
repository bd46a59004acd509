"""ASGI middleware of vLLM's API server: what the HTTP layer knows of each generation request."""

from __future__ import annotations

import json

import time
import uuid
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from moe_watch import wire
from moe_watch.tap import ids, switch

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

PREFIX = {"/v1/chat/completions": "chatcmpl-", "/v1/completions": "cmpl-"}


class Middleware:
    """``--middleware moe_watch.tap.samples.Middleware``."""

    def __init__(self, app: App) -> None:
        self.app = app
        self._sender = None
        if switch.is_on():
            from moe_watch.tap import frontend

            self._sender = frontend.sender()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on and tell of it once it is over."""
        prefix = PREFIX.get(scope.get("path", "")) if scope["type"] == "http" else None
        if self._sender is None or prefix is None or scope.get("method") != "POST":
            await self.app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        own = headers.get(b"x-request-id")
        if own is None:
            own = uuid.uuid4().hex.encode()
            scope["headers"] = [*scope["headers"], (b"x-request-id", own)]
        started, body, status, gone = time.time(), bytearray(), 500, False

        async def receive_and_keep() -> Message:
            nonlocal gone
            message = await receive()
            if message["type"] == "http.request":
                body.extend(message.get("body", b""))
            elif message["type"] == "http.disconnect":
                gone = True
            return message

        async def send_and_note(message: Message) -> None:
            nonlocal status, gone
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message.get("headers", []), (b"x-request-id", own)]
            await send(message)
            if message["type"] == "http.response.body" and not message.get("more_body"):
                gone = False

        try:
            await self.app(scope, receive_and_keep, send_and_note)
        finally:
            try:
                said = json.loads(bytes(body)) if body else {}
                finished = time.time()
                fields = dict(
                    request_id=ids.bounded(prefix + own.decode("latin-1")),
                    model=str(said.get("model") or ""),
                    endpoint=scope["path"],
                    status=status,
                    stream=bool(said.get("stream")),
                    choices=int(said.get("n") or 1),
                    domain=headers.get(b"x-moe-watch-domain", b"").decode("latin-1")[:64],
                    canary=b"x-moe-watch-canary" in headers,
                    disconnected=gone,
                    started_at=started,
                    finished_at=finished,
                )
                self._sender.put(lambda header: wire.Request(**header, **fields))
            except Exception:
                pass
