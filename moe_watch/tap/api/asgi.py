"""What ASGI and vLLM's API server look like from a middleware."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, NamedTuple

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]


class Endpoint(NamedTuple):
    """A route of vLLM, and how the ids of its requests begin."""

    path: str
    prefix: str
