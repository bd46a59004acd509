"""A start beside a store that cannot be written: the sidecar lives, takes what comes, and writes it once it can."""

from __future__ import annotations

import contextlib
import resource
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pytest
from sqlalchemy import create_engine, text
from sqlalchemy.engine import make_url

from moe_watch.store import engine, migrate
from tests.sidecar.test_sidecar import Process
from tests.support import postgres
from tests.support.frames import Tap
from tests.support.postgres import Postgres

Heal = Callable[[], None]
Broken = contextlib.AbstractContextManager[tuple[str, Heal]]


def _migrated(url: str) -> None:
    """Make the tables, as an earlier start did."""
    store = engine.connect(url)
    migrate.upgrade(store)
    store.dispose()


@contextlib.contextmanager
def _locked(folder: Path, *, new: bool) -> Iterator[tuple[str, Heal]]:
    """Hold the write lock of a SQLite file from outside; of a new one all of it."""
    url = f"sqlite:///{folder}/store.db"
    if not new:
        _migrated(url)
    other = create_engine(url)
    with other.connect() as connection:
        connection.execute(text("BEGIN EXCLUSIVE"))
        yield url, connection.rollback
    other.dispose()


@contextlib.contextmanager
def _full(folder: Path, *, new: bool) -> Iterator[tuple[str, Heal]]:
    """Let no file of the sidecar grow beyond what spool and log need, as on a full disk."""
    url = f"sqlite:///{folder}/store.db"
    if not new:
        _migrated(url)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, before[1]))
    try:
        yield url, lambda: None
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@contextlib.contextmanager
def _read_only(server: Postgres, *, new: bool) -> Iterator[tuple[str, Heal]]:
    """Make every transaction of a database one that only reads."""
    url = server.url("readonly")
    if not new:
        _migrated(url)
    _run(server, "ALTER DATABASE readonly SET default_transaction_read_only = on")

    def heal() -> None:
        _run(server, "ALTER DATABASE readonly SET default_transaction_read_only = off")
        _run(server, "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = 'readonly'")

    yield url, heal


@contextlib.contextmanager
def _without_rights(server: Postgres, *, new: bool) -> Iterator[tuple[str, Heal]]:
    """Give the sidecar a role that may read only."""
    url = server.url("weak")
    if not new:
        _migrated(url)
    _run(server, "DROP ROLE IF EXISTS weak")
    _run(server, "CREATE ROLE weak LOGIN")
    _run(server, "GRANT SELECT ON ALL TABLES IN SCHEMA public TO weak", "weak")

    def heal() -> None:
        _run(server, "GRANT ALL ON SCHEMA public TO weak", "weak")
        _run(server, "GRANT ALL ON ALL TABLES IN SCHEMA public TO weak", "weak")
        _run(server, "GRANT ALL ON ALL SEQUENCES IN SCHEMA public TO weak", "weak")

    yield url.replace("postgres@", "weak@"), heal
    _run(server, "DROP OWNED BY weak", "weak")


@contextlib.contextmanager
def _standby(server: Postgres, *, new: bool) -> Iterator[tuple[str, Heal]]:
    """Let the server follow another that never comes, until it is promoted."""
    url = server.url("standby")
    if not new:
        _migrated(url)
    server.stop()
    (server.folder / "data" / "standby.signal").touch()
    server.start()
    yield url, lambda: _run(server, "SELECT pg_promote()")


def _run(server: Postgres, statement: str, database: str = "postgres") -> None:
    with psycopg.connect(host=str(server.folder), user="postgres", dbname=database, autocommit=True) as connection:
        connection.execute(statement.encode())


def _rows(url: str) -> int:
    opened = create_engine(make_url(url).set(username="postgres") if "weak@" in url else url)
    with opened.connect() as connection:
        found = int(connection.scalar(text("SELECT count(DISTINCT request_id) FROM requests")) or 0)
    opened.dispose()
    return found


def _waits(broken: Broken, work: Path) -> None:
    """Start a sidecar beside a broken store, let it have frames, mend the store, and look for the rows."""
    with broken as (url, heal):
        process = Process(work, store_url=url)
        try:
            tap = Tap()
            process.send(tap.announce(), tap.health(), *[frame for _ in range(8) for frame in tap.whole()])
            process.until(lambda s: bool(s["replicas"]) and s["replicas"][0]["requests"] == 8)
            process.until(lambda s: not s["store"]["up"] and s["store"]["spool_bytes"] > 0)
            heal()
            resource.prlimit(process.server.process.pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
            process.until(lambda s: s["store"]["up"] and s["store"]["spool_bytes"] == 0)
            assert _rows(url) == 8
        finally:
            process.close()


@pytest.mark.parametrize("new", [True, False], ids=["new", "old"])
@pytest.mark.parametrize("cause", [_locked, _full], ids=["locked", "full disk"])
def test_a_sqlite_that_cannot_be_written_is_waited_for(
    cause: Callable[..., Broken], tmp_path: Path, *, new: bool
) -> None:
    """Nothing that comes meanwhile is lost, whether the file has its tables or not."""
    (tmp_path / "store").mkdir()
    _waits(cause(tmp_path / "store", new=new), tmp_path)


@pytest.fixture(scope="module")
def server() -> Iterator[Postgres]:
    """Run a Postgres that is restarted as another's follower."""
    with postgres.running() as made:
        yield made


@pytest.mark.real
@pytest.mark.parametrize("new", [True, False], ids=["new", "old"])
@pytest.mark.parametrize("cause", [_read_only, _without_rights, _standby], ids=["read-only", "no rights", "standby"])
def test_a_postgres_that_cannot_be_written_is_waited_for(
    cause: Callable[..., Broken], server: Postgres, tmp_path: Path, *, new: bool
) -> None:
    """Nothing that comes meanwhile is lost, whether the database has its tables or not."""
    _waits(cause(server, new=new), tmp_path)


def test_what_a_stopped_sidecar_left_is_taken_up_when_the_store_can_be_written(tmp_path: Path) -> None:
    """Its open alarms end then, and its replicas are known without a new announcement."""
    process, tap = Process(tmp_path), Tap()
    try:
        process.send(tap.announce(), tap.health(), *tap.whole())
        process.until(lambda s: bool(s["replicas"]) and s["replicas"][0]["requests"] == 1)
        process.server.stop()
        other = create_engine(process.store_url)
        with other.begin() as connection:
            into = "INSERT INTO alarms (model_id, replica, kind, began_at, flagged_at, summary, evidence)"
            connection.execute(text(into + " VALUES (1, 'r0', 'traffic', 1, 2, 'left', '{}')"))
        with other.connect() as connection:
            connection.execute(text("BEGIN EXCLUSIVE"))
            process.server = process.start()
            process.send(*tap.whole())
            status = process.until(lambda s: not s["store"]["up"])
            assert status["replicas"] == []
            connection.rollback()
        process.until(lambda s: s["store"]["up"] and s["replicas"] and s["replicas"][0]["requests"] == 1)
        process.server.stop()
        assert process.rows("SELECT count(*) FROM alarms WHERE ended_at > flagged_at") == [(1,)]
        assert process.rows("SELECT count(*) FROM requests") == [(2,)]
        other.dispose()
    finally:
        process.close()
