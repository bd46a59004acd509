"""The writer: a store that is away costs a wait, a row that it refuses costs that row."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psycopg
import pytest
from sqlalchemy import Engine, exc, func, select, text

from moe_watch.metrics import series
from moe_watch.metrics.board import Board
from moe_watch.sidecar.writer import Writer
from moe_watch.store import engine, migrate, schema
from moe_watch.store.batches import ended, pack
from moe_watch.store.spool import Spool
from moe_watch.store.write.batch import NewAlarm, NewRequest, Writes, is_away, write
from tests.store.test_store_write import some_writes
from tests.support import postgres


def _batches(n: int) -> list[Writes]:
    """Return batches of one request each, of ids 0 to n - 1."""
    made = []
    for number in range(n):
        writes = some_writes(1)
        writes.requests[0].values["request_id"] = f"cmpl-{number}"
        made.append(writes)
    return made


def _value(board: Board, metric: series.Metric) -> Any:
    return next((family.series[0].value for family in board.read() if family.metric is metric), 0)


def _requests(store: Engine) -> int:
    with store.connect() as connection:
        return int(connection.scalar(select(func.count()).select_from(schema.Request)) or 0)


async def _until(true: Callable[[], bool]) -> None:
    while not true():  # noqa: ASYNC110 - a writer has nothing to wait on but its state
        await asyncio.sleep(0.05)


async def _write(writer: Writer, batches: list[Writes], wait_s: float = 0.0) -> None:
    running = asyncio.create_task(writer.run())
    for batch in batches:
        writer.put(batch)
    await asyncio.sleep(wait_s)
    writer.stop()
    await running


def test_everything_is_written_before_the_end(store: Engine, tmp_path: Path) -> None:
    """Stopping waits for what was put."""
    board = Board()
    asyncio.run(_write(Writer(store, board, Spool(tmp_path / "spool", 10**6)), _batches(50)))
    assert _requests(store) == 50
    assert _value(board, series.STORE_ROWS) == 50
    assert _value(board, series.STORE_UP) == 1


def test_a_row_that_the_store_refuses_costs_that_row_alone(store: Engine, tmp_path: Path) -> None:
    """The rest of its batch is written, and the loss is counted."""
    batches, board = _batches(9), Board()
    batches[4].requests[0].values["outcome"] = None
    asyncio.run(_write(Writer(store, board, None), batches))
    assert _requests(store) == 8
    assert _value(board, series.STORE_REFUSED) == 1


def test_a_number_that_no_column_holds_costs_its_row_alone(store: Engine) -> None:
    """Errors that are not the database's own are no reason to stop either."""
    batches, board = _batches(3), Board()
    batches[1].requests[0].values["prompt_tokens"] = 2**70
    asyncio.run(_write(Writer(store, board, None), batches))
    assert _requests(store) == 2


@pytest.fixture
def own_postgres() -> Iterator[postgres.Postgres]:
    """Run a Postgres that a test may kill."""
    with postgres.running() as server:
        yield server


@pytest.mark.real
def test_an_outage_of_postgres_loses_nothing(own_postgres: postgres.Postgres, tmp_path: Path) -> None:
    """Batches of before, during and after a SIGKILL of Postgres are all there once, in the end."""
    store = engine.connect(own_postgres.url("outage"))
    migrate.upgrade(store)
    board, spool = Board(), Spool(tmp_path, 10**7)

    async def story() -> None:
        writer = Writer(store, board, spool)
        running = asyncio.create_task(writer.run())
        batches = _batches(60)
        for batch in batches[:20]:
            writer.put(batch)
        await asyncio.sleep(0.3)
        assert own_postgres.process is not None
        own_postgres.stop(signal.SIGQUIT)
        for batch in batches[20:40]:
            writer.put(batch)
            await asyncio.sleep(0.02)
        await _until(lambda: writer.spool_bytes > 0)
        assert not writer.up
        await asyncio.to_thread(own_postgres.start)
        for batch in batches[40:]:
            writer.put(batch)
        await _until(lambda: writer.up and not writer.spool_bytes)
        writer.stop()
        await running

    asyncio.run(story())
    assert _requests(store) == 60
    assert _value(board, series.SPOOL_DROPPED) == 0
    store.dispose()


def test_what_could_not_be_written_is_there_at_the_next_start(tmp_path: Path) -> None:
    """A stop while the store is away leaves everything in the spool, and a later start writes it."""
    away = engine.connect("postgresql+psycopg://nobody@127.0.0.1:1/none")
    asyncio.run(_write(Writer(away, Board(), Spool(tmp_path / "spool", 10**7)), _batches(5), wait_s=0.2))
    store = engine.connect(f"sqlite:///{tmp_path}/store.db")
    migrate.upgrade(store)
    asyncio.run(_write(Writer(store, Board(), Spool(tmp_path / "spool", 10**7)), _batches(7)[5:], wait_s=0.5))
    assert _requests(store) == 7


def test_without_a_spool_memory_is_bounded_and_the_loss_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """The newest batches beyond the bound are lost, and said to be."""
    monkeypatch.setattr("moe_watch.sidecar.writer._MOST_QUEUED", 10)
    away = engine.connect("postgresql+psycopg://nobody@127.0.0.1:1/none")
    board = Board()
    asyncio.run(_write(Writer(away, board, None), _batches(30), wait_s=0.5))
    assert _value(board, series.SPOOL_DROPPED) == 30
    assert _value(board, series.STORE_UP) == 0


def test_a_full_spool_drops_the_newest_and_counts_it(tmp_path: Path) -> None:
    """What came first is kept."""
    away = engine.connect("postgresql+psycopg://nobody@127.0.0.1:1/none")
    board, spool = Board(), Spool(tmp_path / "spool", 10**6)

    async def story() -> None:
        writer, batches = Writer(away, board, spool), _batches(30)
        running = asyncio.create_task(writer.run())
        for batch in batches[:10]:
            writer.put(batch)
        await _until(lambda: writer.spool_bytes > 0)
        spool._most = spool.size + 10
        for batch in batches[10:]:
            writer.put(batch)
        writer.stop()
        await running

    asyncio.run(story())
    assert _value(board, series.SPOOL_DROPPED) == 20
    store = engine.connect(f"sqlite:///{tmp_path}/store.db")
    migrate.upgrade(store)
    asyncio.run(_write(Writer(store, board, Spool(tmp_path / "spool", 10**6)), [], wait_s=0.5))
    assert _requests(store) == 10


def test_a_locked_sqlite_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody else's long transaction delays the writes and loses none."""
    monkeypatch.setattr("moe_watch.store.engine.BUSY_TIMEOUT_S", 0.1)
    store = engine.connect(f"sqlite:///{tmp_path}/store.db")
    migrate.upgrade(store)

    async def story() -> None:
        writer = Writer(store, Board(), Spool(tmp_path / "spool", 10**7))
        with store.connect() as other:
            other.execute(text("BEGIN IMMEDIATE"))
            running = asyncio.create_task(writer.run())
            for batch in _batches(5):
                writer.put(batch)
            await _until(lambda: writer.spool_bytes > 0)
            other.rollback()
        await _until(lambda: not writer.spool_bytes)
        writer.stop()
        await running

    asyncio.run(story())
    assert _requests(store) == 5


def test_a_batch_in_the_spool_brings_its_models_along(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The batch that announced them may be lost, or the store be another one by then; nothing stops for a stranger."""
    monkeypatch.setattr("moe_watch.sidecar.writer._AT_ONCE", 1)
    away = engine.connect("postgresql+psycopg://nobody@127.0.0.1:1/none")
    batches = _batches(4)
    for batch in batches[1:]:
        batch.models.clear()
    spool, board = Spool(tmp_path / "spool", 10**7), Board()
    asyncio.run(_write(Writer(away, board, spool), batches, wait_s=0.3))
    spool = Spool(tmp_path / "spool", 10**7)
    spool.pop()
    spool.append(pack(Writes(requests=[_stranger()])))
    store = engine.connect(f"sqlite:///{tmp_path}/store.db")
    migrate.upgrade(store)
    asyncio.run(_write(Writer(store, board, spool), _batches(6)[5:], wait_s=0.5))
    assert _value(board, series.STORE_REFUSED) == 1
    assert _requests(store) == 3 + 1
    store.dispose()


def _stranger() -> NewRequest:
    request = some_writes(1).requests[0]
    request.identity = "never announced"
    return request


def test_an_alarm_of_the_process_before_is_over_when_it_comes_from_the_spool() -> None:
    """Its detectors are gone with it; one of this process stays open."""
    old, new = (NewAlarm("a", {"flagged_at": at, "ended_at": None}) for at in (10.0, 30.0))
    over = ended(Writes(alarms=[old, new]), 20.0)
    assert [alarm.values["ended_at"] for alarm in over.alarms] == [20.0, None]


@pytest.mark.parametrize(
    ("error", "away"),
    [
        (exc.TimeoutError("no connection is free"), True),
        (exc.InvalidRequestError("this connection is closed"), True),
        (exc.ProgrammingError("", {}, psycopg.errors.UndefinedTable()), True),
        (exc.ProgrammingError("", {}, psycopg.ProgrammingError("cannot adapt type")), False),
        (exc.OperationalError("", {}, psycopg.errors.DeadlockDetected()), True),
        (exc.DataError("", {}, psycopg.errors.NumericValueOutOfRange()), False),
        (exc.OperationalError("", {}, psycopg.errors.ProgramLimitExceeded()), False),
        (exc.OperationalError("", {}, psycopg.errors.LockNotAvailable()), True),
        (exc.OperationalError("", {}, psycopg.errors.QueryCanceled()), True),
        (exc.InternalError("", {}, psycopg.errors.ReadOnlySqlTransaction()), True),
        (KeyError("identity"), False),
    ],
    ids=str,
)
def test_what_a_row_is_not_to_blame_for_is_tried_again(error: Exception, *, away: bool) -> None:
    """A store that is not set up, or has no connection to give, is no reason to throw a batch away."""
    assert is_away(error) is away


class _Odd:
    """What neither a database nor the spool knows how to write."""


@pytest.mark.parametrize("away", [True, False], ids=["spooled", "written"])
def test_a_row_that_nobody_can_write_costs_that_row_alone(tmp_path: Path, *, away: bool) -> None:
    """In the spool as in the store; the writer goes on, and says what it left out."""
    store = engine.connect(f"sqlite:///{tmp_path}/store.db")
    migrate.upgrade(store)
    batches, board = _batches(9), Board()
    batches[3].alarms[0].values["evidence"] = {"value": np.float64(0.5), "other": _Odd()}
    batches[4].requests[0].values["e2e_s"] = _Odd()
    writer = Writer(store, board, Spool(tmp_path / "spool", 10**7))

    async def story() -> None:
        if away:
            writer.hold()
        running = asyncio.create_task(writer.run())
        for batch in batches:
            writer.put(batch)
        await _until(lambda: not writer._queue)
        if away:
            assert writer.spool_bytes > 0
            writer.release()
        await _until(lambda: not writer.spool_bytes)
        writer.stop()
        await running

    asyncio.run(story())
    assert _requests(store) == 8
    assert _value(board, series.STORE_REFUSED) == 2
    store.dispose()


def test_an_error_that_nobody_foresaw_ends_no_writer(store: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever writing one row raises, the others are written."""
    batches, board = _batches(9), Board()

    def broken(to: Engine, batch: Writes) -> int:
        if any(request.values["request_id"] == "cmpl-4" for request in batch.requests):
            raise AttributeError("a bug")
        return write(to, batch)

    monkeypatch.setattr("moe_watch.sidecar.writer.write", broken)
    asyncio.run(_write(Writer(store, board, None), batches))
    assert _requests(store) == 8
    assert _value(board, series.STORE_REFUSED) == 1
