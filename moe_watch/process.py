"""The process of ``moe-watch serve``: takes what it needs for itself, runs pipeline and HTTP, and stops in order."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
from collections.abc import AsyncIterator, Iterator
from typing import Final

import structlog
import uvicorn
import zmq
from sqlalchemy import Engine
from starlette.types import ASGIApp

from moe_watch import __version__, http
from moe_watch.export import prometheus
from moe_watch.ingest import bind
from moe_watch.settings import HttpSettings, Settings
from moe_watch.sidecar import Sidecar
from moe_watch.store import engine, migrate
from moe_watch.store.engine import StoreError

_RETRY_S: Final = 5.0
_log = structlog.get_logger()


class _Server(uvicorn.Server):
    """Uvicorn that leaves signals to the sidecar."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Do nothing."""
        yield


def prepare(store: Engine) -> None:
    """Bring the store to the newest schema; raise ``StoreError`` when it is away, or an outdated Postgres."""
    engine.check(store)
    if not migrate.is_current(store):
        if store.dialect.name != "sqlite" and migrate.current(store) is not None:
            raise StoreError("the store has an older schema: run `moe-watch db upgrade` once, wherever it is reached")
        migrate.upgrade(store)


def serve(settings: Settings) -> None:
    """Run until SIGTERM or SIGINT; raise ``StoreError``, ``EndpointError`` or ``BindError`` when it cannot start.

    Raises ``EndedError`` when the HTTP server ends before: probes would go unanswered.

    A Postgres that is away or outdated is waited for: the end of this process would take vLLM's pod out of service.
    """
    http.check_certificate(settings.http)
    with contextlib.ExitStack() as held:
        owner = engine.own(settings.store.url)
        if owner is not None:
            held.enter_context(owner)
        listening = held.enter_context(http.listen(settings.http))
        store = engine.connect(settings.store.url)
        held.callback(store.dispose)
        if owner is not None:
            prepare(store)
        context = held.enter_context(zmq.Context())
        frames = held.enter_context(bind(context, settings.endpoint, allow_remote=settings.allow_remote_taps))
        asyncio.run(_serve(settings, store, frames, listening))


async def _serve(settings: Settings, store: Engine, frames: zmq.Socket[bytes], listening: socket.socket) -> None:
    if not await _prepared(store, settings.http, listening):
        return
    sidecar = Sidecar(settings, store, frames)
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, sidecar.stopping.set)
    source = http.Source(
        settings, store, prometheus.registry(sidecar.board), sidecar.status, sidecar.matrix, sidecar.ready
    )
    async with _http_server(http.app(source), listening, settings.http, sidecar.stopping):
        host, port = listening.getsockname()[:2]
        scheme = "https" if settings.http.tls_cert else "http"
        _log.info("serving", endpoint=settings.endpoint, http=f"{scheme}://{host}:{port}", version=__version__)
        await sidecar.run()
    _log.info("stopped")


async def _prepared(store: Engine, settings: HttpSettings, listening: socket.socket) -> bool:
    """Return True once the store can be used, False when told to stop before; say meanwhile why it cannot."""
    stopping = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopping.set)
    async with contextlib.AsyncExitStack() as meanwhile:
        answering = False
        while not stopping.is_set():
            try:
                await asyncio.to_thread(prepare, store)
            except StoreError as error:
                _log.error("waiting for the store", why=str(error))
                if not answering:  # uvicorn closes the socket that it gets
                    await meanwhile.enter_async_context(
                        _http_server(http.waiting(), listening.dup(), settings, stopping)
                    )
                answering = True
            else:
                break
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(stopping.wait(), _RETRY_S)
    return not stopping.is_set()


@contextlib.asynccontextmanager
async def _http_server(
    application: ASGIApp, listening: socket.socket, settings: HttpSettings, stopping: asyncio.Event
) -> AsyncIterator[None]:
    """Serve meanwhile; set ``stopping`` when the server ends before, and raise ``EndedError`` then."""
    config = uvicorn.Config(
        application,
        log_level="warning",
        access_log=False,
        lifespan="off",
        timeout_graceful_shutdown=3,
        ssl_certfile=settings.tls_cert,
        ssl_keyfile=settings.tls_key,
    )
    server = _Server(config)
    task = asyncio.create_task(server.serve(sockets=[listening]))
    task.add_done_callback(lambda _: None if server.should_exit else stopping.set())
    try:
        yield
    finally:
        by_itself = task.done()
        server.should_exit = True
        await asyncio.wait([task])
    error = task.exception()
    if by_itself or error is not None:
        raise http.EndedError(f"the HTTP server ended: {error or 'it gave no reason'}") from error
