"""A Postgres that stands still, or waits for a lock: what comes is kept within bounds, and the process can end."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pytest
from sqlalchemy import create_engine, event, text
from sqlalchemy.exc import OperationalError

from moe_watch.metrics.board import Board
from moe_watch.sidecar import writer as writing
from moe_watch.sidecar.writer import Writer
from moe_watch.store import engine, migrate
from moe_watch.store.spool import Spool
from moe_watch.store.write.batch import Writes, write
from tests.sidecar.test_sidecar import Process
from tests.sidecar.test_writer import _batches, _requests, _until
from tests.support import postgres
from tests.support.frames import Tap
from tests.support.patience import PATIENCE_S
from tests.support.postgres import Postgres


@pytest.fixture
def server() -> Iterator[Postgres]:
    """Run a Postgres that a test may stop."""
    with postgres.running() as made:
        yield made
        _signal(made, signal.SIGCONT)


def _signal(server: Postgres, number: signal.Signals) -> None:
    """Send a signal to the server and to each of its processes."""
    assert server.process is not None
    parent = server.process.pid
    children = [int(pid) for pid in Path(f"/proc/{parent}/task/{parent}/children").read_text("ascii").split()]
    for pid in (parent, *children):
        os.kill(pid, number)


def _stand_still(server: Postgres) -> Callable[[], None]:
    _signal(server, signal.SIGSTOP)
    return lambda: _signal(server, signal.SIGCONT)


def _lock(server: Postgres) -> Callable[[], None]:
    other = psycopg.connect(host=str(server.folder), user="postgres", dbname="hang")
    other.execute("LOCK TABLE requests IN ACCESS EXCLUSIVE MODE")
    return other.close


def _counted(url: str) -> tuple[int, int]:
    opened = create_engine(url)
    with opened.connect() as connection:
        found = connection.execute(text("SELECT count(*), count(DISTINCT request_id) FROM requests")).one()
    opened.dispose()
    return int(found[0]), int(found[1])


@pytest.mark.real
@pytest.mark.parametrize("hang", [_stand_still, _lock], ids=["stands still", "locked"])
@pytest.mark.parametrize("noticed", [True, False], ids=["noticed", "at once"])
def test_a_stop_while_postgres_hangs_ends_and_loses_nothing(
    hang: Callable[[Postgres], Callable[[], None]], server: Postgres, tmp_path: Path, *, noticed: bool
) -> None:
    """Whether the hang was noticed before or not, all is in the spool, and the next start writes it, once."""
    url = server.url("hang")
    process, tap = Process(tmp_path, store_url=url), Tap()
    try:
        process.send(tap.announce(), tap.health(), *[frame for _ in range(50) for frame in tap.whole()])
        process.until(lambda s: s["replicas"] and s["replicas"][0]["requests"] == 50)
        go_on = hang(server)
        process.send(*[frame for _ in range(2000) for frame in tap.whole()])
        process.until(lambda s: s["replicas"][0]["requests"] == 2050)
        if noticed:
            process.until(lambda s: not s["store"]["up"] and s["store"]["spool_bytes"] > 0)
        process.server.process.terminate()
        assert process.server.process.wait(PATIENCE_S) == 0
        go_on()
        process.server = process.start()
        process.until(lambda s: s["store"]["up"] and not s["store"]["spool_bytes"])
        assert _counted(url) == (2050, 2050)
    finally:
        process.close()


@pytest.mark.real
def test_a_commit_that_succeeds_after_it_was_given_up_counts_once(
    server: Postgres, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server stands still when it is told to commit, commits when it goes on, and gets the batch again."""
    monkeypatch.setattr("moe_watch.store.write.batch._PATIENCE_S", 1.0)
    store = engine.connect(server.url("hang"))
    migrate.upgrade(store)
    stopped = threading.Event()

    def stop(_: object) -> None:
        if not stopped.is_set():
            _signal(server, signal.SIGSTOP)
            stopped.set()

    event.listen(store, "commit", stop)

    async def story() -> None:
        writer = Writer(store, Board(), Spool(tmp_path, 10**7))
        running = asyncio.create_task(writer.run())
        for batch in _batches(20):
            writer.put(batch)
        await _until(lambda: stopped.is_set() and not writer.up and writer.spool_bytes > 0)
        _signal(server, signal.SIGCONT)
        await _until(lambda: writer.up and not writer.spool_bytes)
        writer.stop()
        await running

    asyncio.run(story())
    assert _requests(store) == 20
    store.dispose()


@pytest.mark.parametrize("end", ["written", "refused"])
def test_memory_is_bounded_while_a_write_hangs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, end: str) -> None:
    """What waits behind it goes to the spool, after what is being written; each request is there once in the end."""
    monkeypatch.setattr(writing, "_MOST_QUEUED", 20)
    store = engine.connect(f"sqlite:///{tmp_path}/store.db")
    migrate.upgrade(store)
    hanging, go_on, order = threading.Event(), threading.Event(), list[str]()

    def slow(to: object, batch: Writes) -> int:
        first = not hanging.is_set()
        hanging.set()
        go_on.wait(PATIENCE_S)
        if first and end == "refused":
            raise OperationalError("", {}, Exception("given up"))
        order.extend(str(request.values["request_id"]) for request in batch.requests)
        return write(store, batch)

    monkeypatch.setattr(writing, "write", slow)

    async def story() -> None:
        writer = Writer(store, Board(), Spool(tmp_path / "spool", 10**8))
        running = asyncio.create_task(writer.run())
        batches = _batches(300)
        writer.put(batches[0])
        await _until(hanging.is_set)
        for batch in batches[1:]:
            writer.put(batch)
            await _until(lambda: not writer._too_much())
        assert writer.spool_bytes > 0
        go_on.set()
        await _until(lambda: not writer.spool_bytes and not writer._queue)
        writer.stop()
        await running

    asyncio.run(story())
    assert _requests(store) == 300
    assert list(dict.fromkeys(order)) == [f"cmpl-{number}" for number in range(300)]
    store.dispose()


def test_memory_is_bounded_in_bytes_too() -> None:
    """A few requests with long texts are as much as many short ones."""
    batches = _batches(30)
    for batch in batches:
        assert batch.requests[0].sample is not None
        batch.requests[0].sample["output"] = "x" * 40_000
    away = engine.connect("postgresql+psycopg://nobody@127.0.0.1:1/none")

    async def story() -> None:
        writer = Writer(away, Board(), None, 100_000)
        writer.hold()
        running = asyncio.create_task(writer.run())
        for batch in batches:
            writer.put(batch)
        await _until(lambda: not writer._too_much())
        assert sum(weight for _, weight in writer._queue) <= 100_000
        writer.stop()
        await running

    asyncio.run(story())
