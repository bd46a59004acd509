"""No task of the sidecar ends unnoticed: it is started again and told, or the process ends with an error."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import zmq
from starlette.applications import Starlette
from structlog.testing import capture_logs

from moe_watch.metrics import series as metrics
from moe_watch.metrics.board import Board
from moe_watch.settings import HttpSettings, Settings
from moe_watch.sidecar import http, pipeline, supervise
from moe_watch.sidecar import serve as process
from moe_watch.sidecar.callers import Callers
from moe_watch.sidecar.http import BindError, EndedError
from moe_watch.sidecar.monitor_thread import MonitorThread
from moe_watch.sidecar.opening import Opening
from moe_watch.sidecar.pipeline import Sidecar
from moe_watch.sidecar.receiver import FrameReceiver
from moe_watch.store import engine, migrate
from tests.support.patience import PATIENCE_S


def failures(board: Board) -> Any:
    """Return the count of failures of the one part on the board."""
    (series,) = next(family for family in board.read() if family.metric is metrics.PART_FAILURES).series
    return series.value


def test_what_fails_beside_the_pipeline_is_told_and_started_again() -> None:
    """Each time after a longer pause; it runs once more until it returns by itself."""
    board, pauses, runs = Board(), [], []

    async def work() -> None:
        runs.append(failures(board))
        if len(runs) <= 8:
            raise ZeroDivisionError

    async def sleep(seconds: float) -> None:
        pauses.append(seconds)

    with capture_logs() as logs:
        asyncio.run(supervise.keep("fleet", work, board, sleep))
    assert runs == list(range(9))
    assert pauses == [1, 2, 4, 8, 16, 32, 60, 60]
    assert {(entry["log_level"], entry["part"]) for entry in logs} == {("error", "fleet")}
    assert failures(board) == 8


def test_what_ran_well_for_long_is_started_again_soon() -> None:
    """Its failures of weeks ago are no reason to leave it off for a minute."""
    pauses, runs, now = [], [], 0.0

    async def work() -> None:
        nonlocal now
        runs.append(now)
        now += 3600.0 if len(runs) == 8 else 0.0
        if len(runs) <= 9:
            raise ZeroDivisionError

    async def sleep(seconds: float) -> None:
        pauses.append(seconds)

    asyncio.run(supervise.keep("fleet", work, Board(), sleep, lambda: now))
    assert pauses == [1, 2, 4, 8, 16, 32, 60, 1, 2]


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Sidecar]:
    """Return a sidecar over an empty store."""
    store = engine.connect(f"sqlite:///{tmp_path}/store.db")
    migrate.upgrade(store)
    settings = Settings(
        endpoint=f"ipc://{tmp_path}/tap.sock", store={"url": str(store.url)}, spool_dir=tmp_path / "spool"
    )
    with zmq.Context() as context, context.socket(zmq.PULL) as frames:
        frames.bind(settings.endpoint)
        yield Sidecar(settings, store, frames, Opening(settings.store.url, store, settings.sidecar))
    store.dispose()


def test_everything_beside_the_pipeline_is_supervised(running: Sidecar, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every part is on the board with its failures from the start, at 0."""

    async def done(*_: object) -> None:
        running.stopping.set()

    monkeypatch.setattr(pipeline.supervise, "keep", _keep_then(done))
    asyncio.run(running.run())
    named = {
        series.labels[0]
        for family in running.board.read()
        if family.metric is metrics.PART_FAILURES
        for series in family.series
    }
    beside = {"opening", *(name for name, _ in running._beside())}
    assert named == beside == set(metrics.PARTS) - {"callers"}  # that one runs beside the HTTP server


def _keep_then(done: Any) -> Any:
    keep = supervise.keep

    async def kept(name: str, work: Any, board: Board) -> None:
        await keep(name, done, board)

    return kept


def test_what_cannot_be_finished_costs_nothing_that_waits_for_the_store(
    running: Sidecar, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The writer ends in order, whatever the judge does at the end."""

    async def fails(_: Sidecar) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(Sidecar, "_finish", fails)
    running.stopping.set()
    with pytest.raises(ZeroDivisionError):
        asyncio.run(running.run())
    assert running._writer._stopping
    assert running._writer._leaving


def test_a_stop_is_heard_while_the_store_is_tried_for_the_first_time(
    running: Sidecar, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A store that hangs keeps no process that was told to end."""

    async def hangs(_: Sidecar) -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr(Sidecar, "_open_store", hangs)
    monkeypatch.setattr(pipeline, "_FIRST_S", 1e9)
    running.stopping.set()
    asyncio.run(running.run())


@pytest.mark.parametrize(
    ("owner", "part"),
    [
        (FrameReceiver, "take_frames"),
        (MonitorThread, "judge_often"),
        (MonitorThread, "tick_often"),
        (Sidecar, "_follow_baselines"),
    ],
)
@pytest.mark.parametrize("how", ["fails", "returns"])
def test_a_part_of_the_pipeline_that_ends_ends_the_sidecar_with_an_error(
    running: Sidecar, monkeypatch: pytest.MonkeyPatch, owner: type, part: str, how: str
) -> None:
    """It does not run on without it, nor end as if it had been told to."""

    async def work(_: object) -> None:
        if how == "fails":
            raise ZeroDivisionError

    monkeypatch.setattr(owner, part, work)
    with pytest.raises(ZeroDivisionError if how == "fails" else RuntimeError):
        asyncio.run(running.run())


@pytest.mark.parametrize("how", ["fails", "returns"])
def test_an_http_server_that_ends_stops_the_sidecar_with_an_error(monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    """Nobody could ask it anything any more, least of all whether it is alive."""

    async def serve(*_: object, **__: object) -> None:
        if how == "fails":
            raise OSError("no more")

    monkeypatch.setattr(process._Server, "serve", serve)

    async def run() -> None:
        stopping, listening = asyncio.Event(), http.listen(HttpSettings(port=0))
        async with process._http_server(Starlette(), listening, HttpSettings(), stopping, Board()):
            await stopping.wait()

    with pytest.raises(EndedError, match="no more" if how == "fails" else "no reason"):
        asyncio.run(run())


def test_the_guard_of_the_connections_is_started_again_when_it_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without it silent connections would stay, and keep probes out."""
    board, again = Board(), asyncio.Event()
    looks: list[int] = []

    def end_overdue(_: Callers) -> None:
        looks.append(len(looks))
        if len(looks) == 1:
            raise ZeroDivisionError
        again.set()

    monkeypatch.setattr(Callers, "end_overdue", end_overdue)

    async def run() -> None:
        stopping, listening = asyncio.Event(), http.listen(HttpSettings(port=0))
        async with process._http_server(Starlette(), listening, HttpSettings(), stopping, board):
            await again.wait()

    asyncio.run(asyncio.wait_for(run(), PATIENCE_S))
    assert failures(board) == 1


def test_an_http_server_that_is_told_to_end_is_no_error() -> None:
    """As at the end of the wait for a store, after which the process goes on."""

    async def run() -> bool:
        stopping, listening = asyncio.Event(), http.listen(HttpSettings(port=0))
        async with process._http_server(Starlette(), listening, HttpSettings(), stopping, Board()):
            await asyncio.sleep(0)
        return stopping.is_set()

    assert not asyncio.run(run())


def test_a_certificate_that_cannot_be_used_ends_serve_at_once(tmp_path: Path) -> None:
    """With what is wrong and where, instead of a process that answers nobody."""
    bad = tmp_path / "bad.pem"
    bad.write_text("no certificate", encoding="utf-8")
    missing = HttpSettings(tls_cert=tmp_path / "none.pem", tls_key=bad)
    with pytest.raises(BindError, match=r"none\.pem.*No such file"):
        http.check_certificate(missing)
    environment = {
        "MOE_WATCH_HTTP__TLS_CERT": str(bad),
        "MOE_WATCH_HTTP__TLS_KEY": str(bad),
        "MOE_WATCH_HTTP__PORT": "0",
        "MOE_WATCH_STORE__URL": f"sqlite:///{tmp_path}/store.db",
        "MOE_WATCH_ENDPOINT": f"ipc://{tmp_path}/tap.sock",
    }
    command = [sys.executable, "-m", "moe_watch.cli.main", "serve"]
    ended = subprocess.run(command, env={**os.environ, **environment}, check=False, capture_output=True, text=True)
    assert ended.returncode == 1
    assert "http.tls_cert" in ended.stderr
    assert "Traceback" not in ended.stderr
