"""Under which names the page and the API answer where no token guards them.

A web page that a person opens elsewhere can point its own name at 127.0.0.1 and read what answers there (DNS
rebinding); its requests name that page's host. Probes and metrics answer under any name: a kubelet and Prometheus ask
by the address of a pod or the name of a service.
"""

from __future__ import annotations

import re
from typing import Final

from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from moe_watch.servers.urls import is_loopback
from moe_watch.settings import HttpSettings

ANY_NAME: Final = frozenset({"/healthz", "/readyz", "/metrics"})
_HOST: Final = re.compile(r"(?:\[([^\]]*)\]|([^:]*))(?::\d*)?")


class Hosts:
    """Answers 421 to requests that name another host, unless there is a token."""

    def __init__(self, inner: ASGIApp, settings: HttpSettings) -> None:
        self._inner = inner
        self._known = None if settings.token else {name.lower() for name in (settings.host, *settings.hosts)}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Refuse or pass on."""
        if self._known is None or scope["type"] == "lifespan" or scope["path"] in ANY_NAME:
            await self._inner(scope, receive, send)
            return
        host = name_of(dict(scope["headers"]).get(b"host", b"").decode("latin-1"))
        if is_loopback(host) or host in self._known:
            await self._inner(scope, receive, send)
            return
        refusal = PlainTextResponse("not asked by a name of this sidecar: see MOE_WATCH_HTTP__HOSTS\n", 421)
        await refusal(scope, receive, send)


def name_of(header: str) -> str:
    """Return the name or address in a Host header, without its port; nothing for a header that is none.

    >>> name_of("LOCALHOST:9465"), name_of("[::1]:9465"), name_of("a:b"), name_of("")
    ('localhost', '::1', '', '')
    """
    found = _HOST.fullmatch(header)
    return (found[1] or found[2] or "").lower() if found else ""
