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

from moe_watch import __version__
from moe_watch.metrics import prometheus
from moe_watch.metrics.board import Board
from moe_watch.settings import HttpSettings, Settings
from moe_watch.sidecar import descriptors, http, supervise
from moe_watch.sidecar.callers import Callers, Door, protocol
from moe_watch.sidecar.intake import bind
from moe_watch.sidecar.opening import Opening
from moe_watch.sidecar.pipeline import Sidecar
from moe_watch.store import engine
from moe_watch.store.engine import OwnedError, StoreError

_SILENCE_S: Final = 60.0  # a report over a long time may take a while, a Postgres that stands still shall not
_BACKLOG: Final = 128  # connections that the kernel holds until they are taken
_log = structlog.get_logger()


class _Server(uvicorn.Server):
    """Uvicorn that leaves signals to the sidecar."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Do nothing."""
        yield


def serve(settings: Settings) -> None:
    """Run until SIGTERM or SIGINT; raise ``StoreError``, ``EndpointError`` or ``BindError`` when it cannot start.

    Raises ``EndedError`` when the HTTP server ends before: probes would go unanswered. A store that cannot be read or
    written now is no reason to end: that would take vLLM's pod out of service. A SQLite file of another sidecar is one.
    """
    http.check_certificate(settings.http)
    descriptors.raise_limit()
    with contextlib.ExitStack() as held:
        store = engine.connect(settings.store.url, _SILENCE_S)
        held.callback(store.dispose)
        opening = Opening(settings.store.url, store, settings.sidecar)
        held.callback(opening.close)
        _refuse_a_second(opening)
        listening = held.enter_context(http.listen(settings.http))
        context = held.enter_context(zmq.Context())
        frames = held.enter_context(bind(context, settings.endpoint, allow_remote=settings.allow_remote_taps))
        asyncio.run(_serve(settings, store, frames, listening, opening))


def _refuse_a_second(opening: Opening) -> None:
    try:
        opening.own()
    except OwnedError:
        raise
    except StoreError as error:
        _log.warning("the store cannot be opened yet", why=str(error))


async def _serve(
    settings: Settings, store: Engine, frames: zmq.Socket[bytes], listening: socket.socket, opening: Opening
) -> None:
    sidecar = Sidecar(settings, store, frames, opening)
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, sidecar.stopping.set)
    source = http.Source(
        settings, store, prometheus.registry(sidecar.board), sidecar.status, sidecar.matrix, sidecar.ready
    )
    async with _http_server(http.app(source), listening, settings.http, sidecar.stopping, sidecar.board):
        host, port = listening.getsockname()[:2]
        scheme = "https" if settings.http.tls_cert else "http"
        _log.info("serving", endpoint=settings.endpoint, http=f"{scheme}://{host}:{port}", version=__version__)
        await sidecar.run()
    _log.info("stopped")


@contextlib.asynccontextmanager
async def _http_server(
    application: ASGIApp,
    listening: socket.socket,
    settings: HttpSettings,
    stopping: asyncio.Event,
    board: Board,
    *,
    callers: Callers | None = None,
) -> AsyncIterator[None]:
    """Serve meanwhile; set ``stopping`` when the server ends before, and raise ``EndedError`` then."""
    callers = callers if callers is not None else Callers(descriptors.callers(descriptors.raise_limit()))
    config = uvicorn.Config(
        application,
        http=protocol(callers),
        ws="none",
        backlog=_BACKLOG,
        log_level="warning",
        access_log=False,
        lifespan="off",
        timeout_graceful_shutdown=3,
        ssl_certfile=settings.tls_cert,
        ssl_keyfile=settings.tls_key,
    )
    server = _Server(config)
    task = asyncio.create_task(server.serve(sockets=[Door(listening, callers)]))
    task.add_done_callback(lambda _: None if server.should_exit else stopping.set())
    watching = asyncio.create_task(supervise.keep("callers", callers.watch, board))
    try:
        yield
    finally:
        by_itself = task.done()
        server.should_exit = True
        watching.cancel()
        await asyncio.wait([task])
    error = task.exception()
    if by_itself or error is not None:
        raise http.EndedError(f"the HTTP server ended: {error or 'it gave no reason'}") from error
