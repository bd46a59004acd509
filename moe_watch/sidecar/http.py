"""The sidecar's HTTP side: metrics, probes, status, matrix and the page."""

from __future__ import annotations

import gzip
import hmac
import importlib.util
import socket
import ssl
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final, Protocol

import msgspec
from prometheus_client import CollectorRegistry
from sqlalchemy import Engine
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from moe_watch.domain.plain import encodable
from moe_watch.domain.status import Matrix, Status
from moe_watch.metrics import prometheus
from moe_watch.servers.urls import is_loopback
from moe_watch.settings import HttpSettings, Settings
from moe_watch.sidecar.hosts import Hosts

_OPEN_PATHS: Final = frozenset({"/healthz", "/readyz"})
_JSON: Final = "application/json"


class BindError(RuntimeError):
    """The HTTP address cannot be bound; the message says why and what to do."""


class EndedError(RuntimeError):
    """The HTTP server ended though nobody told it to; the message says why."""


class Pages(Protocol):
    """What ``moe_watch.report.render.page`` provides, where it is there."""

    def routes(self, engine: Engine, settings: Settings, status: Callable[[], Awaitable[Status]]) -> list[Route]:
        """Return the routes of the page."""


@dataclass(frozen=True)
class Source:
    """Where the answers come from."""

    settings: Settings
    engine: Engine
    registry: CollectorRegistry
    status: Callable[[], Awaitable[Status]]
    matrix: Callable[[str], Awaitable[Matrix | None]]
    ready: Callable[[], str]  # why not; empty when ready


def listen(settings: HttpSettings) -> socket.socket:
    """Return a listening socket; raise ``BindError`` when the address is taken, or open to others without a token."""
    if not is_loopback(settings.host) and not settings.token:
        raise BindError(
            f"http.host {settings.host} can be reached from other machines: set MOE_WATCH_HTTP__TOKEN to a secret of "
            "at least 16 characters, or bind 127.0.0.1"
        )
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    made = socket.socket(family, socket.SOCK_STREAM)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        made.bind((settings.host, settings.port))
        made.listen(128)
    except OSError as error:
        made.close()
        raise BindError(
            f"http {settings.host}:{settings.port} cannot be bound ({error.strerror}): choose MOE_WATCH_HTTP__PORT"
        ) from error
    return made


def check_certificate(settings: HttpSettings) -> None:
    """Raise ``BindError`` when the certificate or its key cannot be used, which is found before anything is begun."""
    if settings.tls_cert is None:
        return
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(settings.tls_cert, settings.tls_key, password=str)
    except OSError as error:
        why = error.strerror or str(error)
        raise BindError(
            f"http.tls_cert {settings.tls_cert} with http.tls_key {settings.tls_key} cannot be used ({why}): "
            "both are PEM files, the key is the certificate's and has no password"
        ) from error


def app(source: Source) -> ASGIApp:
    """Return the application."""

    async def metrics(request: Request) -> Response:
        accept = request.headers.get("accept", "")
        zipped = "gzip" in request.headers.get("accept-encoding", "")
        body, content_type = await run_in_threadpool(_render, source.registry, accept, zipped=zipped)
        headers = {"Vary": "Accept, Accept-Encoding"} | ({"Content-Encoding": "gzip"} if zipped else {})
        return Response(body, headers=headers, media_type=content_type)

    async def healthz(_: Request) -> Response:
        return PlainTextResponse("ok\n")

    async def readyz(_: Request) -> Response:
        why = source.ready()
        return PlainTextResponse(f"{why or 'ready'}\n", 503 if why else 200)

    async def status(_: Request) -> Response:
        return _as_json(await source.status())

    async def matrix(request: Request) -> Response:
        replicas = [replica.replica for replica in (await source.status()).replicas]
        wanted = request.query_params.get("replica") or (replicas[0] if len(replicas) == 1 else "")
        found = await source.matrix(wanted)
        if found is None:
            body = {"error": "name one of these with ?replica=", "replicas": replicas}
            return _as_json(body, 404)
        return _as_json(found)

    routes = [
        Route("/metrics", metrics),
        Route("/healthz", healthz),
        Route("/readyz", readyz),
        Route("/api/v1/status", status),
        Route("/api/v1/matrix", matrix),
        *_page_routes(source),
    ]
    return Guard(Hosts(Starlette(routes=routes), source.settings.http), source.settings.http)


def _render(registry: CollectorRegistry, accept: str, *, zipped: bool) -> tuple[bytes, str]:
    body, content_type = prometheus.render(registry, accept)
    return (gzip.compress(body, 1) if zipped else body), content_type


def _as_json(value: object, code: int = 200) -> Response:
    return Response(msgspec.json.encode(value, enc_hook=encodable), code, media_type=_JSON)


def _page_routes(source: Source) -> list[Route]:
    """Return the routes of the page, where the report is installed with one."""
    if importlib.util.find_spec("moe_watch.report.render.page") is None:
        return []
    page: Pages = importlib.import_module("moe_watch.report.render.page")
    return page.routes(source.engine, source.settings, source.status)


class Guard:
    """Lets nothing but the probes through without the token, when there is one."""

    def __init__(self, inner: ASGIApp, settings: HttpSettings) -> None:
        self._inner = inner
        self._token = settings.token.get_secret_value().encode() if settings.token else None
        self._open = _OPEN_PATHS | ({"/metrics"} if settings.metrics_open else set())

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer 401 or pass on."""
        if self._token is None or scope["type"] == "lifespan" or scope.get("path") in self._open:
            await self._inner(scope, receive, send)
            return
        given = dict(scope.get("headers", [])).get(b"authorization", b"")
        scheme, _, secret = given.partition(b" ")
        if scheme.lower() == b"bearer" and hmac.compare_digest(secret, self._token):
            await self._inner(scope, receive, send)
            return
        refusal = PlainTextResponse("this needs the bearer token\n", 401, {"WWW-Authenticate": "Bearer"})
        await refusal(scope, receive, send)
