"""The engine: SQLite is tuned and has one owner, and what cannot be opened is explained."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from sqlalchemy import Engine, text

from moe_watch.store import engine, migrate
from moe_watch.store.engine import StoreError


def test_sqlite_is_tuned(tmp_path: Path) -> None:
    """Write-ahead log, foreign keys and a busy timeout are on for every connection."""
    opened = engine.connect(f"sqlite:///{tmp_path}/a.db")
    with opened.connect() as connection:
        found = [connection.scalar(text(f"PRAGMA {name}")) for name in ("journal_mode", "foreign_keys", "busy_timeout")]
    assert found == ["wal", 1, 5000]


def test_what_sqlite_keeps_is_private(tmp_path: Path) -> None:
    """File and log are for this user alone, since there may be text of requests in them."""
    store = engine.connect(f"sqlite:///{tmp_path}/a.db")
    migrate.upgrade(store)
    assert {path.name: path.stat().st_mode & 0o777 for path in tmp_path.glob("a.db*")} == dict.fromkeys(
        ("a.db", "a.db-shm", "a.db-wal"), 0o600
    )
    store.dispose()


def test_a_second_owner_of_one_file_is_refused(tmp_path: Path) -> None:
    """The message names the other process and the ways out; after it is gone the file is free."""
    url = f"sqlite:///{tmp_path}/a.db"
    held = engine.own(url)
    assert held is not None
    with pytest.raises(StoreError, match=r"another moe-watch \(process \d+\)"):
        engine.own(url)
    held.close()
    again = engine.own(url)
    assert again is not None
    again.close()


def test_a_killed_owner_leaves_the_file_free(tmp_path: Path) -> None:
    """The lock goes with the process, however that ends."""
    url = f"sqlite:///{tmp_path}/a.db"
    script = f"import os; from moe_watch.store import engine; held = engine.own({url!r}); os.kill(os.getpid(), 9)"
    subprocess.run([sys.executable, "-c", script], check=False)
    held = engine.own(url)
    assert held is not None
    held.close()


def test_postgres_has_no_single_owner() -> None:
    """Many sidecars share one Postgres."""
    assert engine.own("postgresql+psycopg://x@y/z") is None


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("nonsense", "cannot be used"),
        ("mysql://x@y/z", "SQLite and Postgres are supported"),
        ("postgresql+nosuch://x@y/z", "cannot be used"),
    ],
)
def test_a_url_that_cannot_be_is_explained(url: str, why: str) -> None:
    """Neither a stack trace nor silence."""
    with pytest.raises(StoreError, match=why):
        engine.connect(url)


def test_a_folder_that_cannot_be_written_is_explained() -> None:
    """The message names the file."""
    with pytest.raises(StoreError, match="cannot write beside"):
        engine.own("sqlite:////proc/nowhere/a.db")


def test_a_store_that_does_not_answer_is_explained(tmp_path: Path) -> None:
    """A file that is no database, and a server that is not there."""
    (tmp_path / "a.db").write_text("this is no database, but long enough to be looked at as one " * 20)
    for url in (f"sqlite:///{tmp_path}/a.db", "postgresql+psycopg://nobody@127.0.0.1:1/none"):
        with pytest.raises(StoreError, match="does not answer"):
            engine.check(engine.connect(url))


def test_the_size_is_known(store: Engine) -> None:
    """Both databases say how large they are."""
    engine.check(store)
    assert engine.size_bytes(store) > 10_000
