"""Opens the store: SQLite in WAL mode beside one sidecar, or Postgres for many."""

from __future__ import annotations

import contextlib
import fcntl
import math
import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import IO, Any, Final

from sqlalchemy import URL, Connection, Engine, create_engine, event, text
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, NoSuchModuleError, SQLAlchemyError

from moe_watch.domain import private_files

BUSY_TIMEOUT_S = 5.0
# A machine that is gone without a word is noticed within half a minute; TCP alone would wait for a quarter of an hour.
_POSTGRES: Final = {
    "connect_timeout": 5,
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 25_000,  # milliseconds
}
_PRAGMAS: Final = (
    "journal_mode=WAL",
    "synchronous=NORMAL",
    "foreign_keys=ON",
    "temp_store=MEMORY",
    # For whoever writes, not for whoever deletes alone: a page that is split keeps a copy of what moved to another.
    "secure_delete=ON",
)
_LIMITS: Final = "SELECT set_config('lock_timeout', %s, {local}), set_config('statement_timeout', %s, {local})"


class StoreError(RuntimeError):
    """The store cannot be used; the message says why and what to do."""


class OwnedError(StoreError):
    """Another sidecar has the file."""


def connect(url: str, silence_s: float = math.inf) -> Engine:
    """Return an engine for ``url``; raise ``StoreError`` for a URL that none can be made for.

    A Postgres that says nothing for ``silence_s``, or works that long at one statement, is given up.
    """
    try:
        parsed = _parse(url)
        if parsed.get_backend_name() == "sqlite":
            engine = create_engine(parsed, connect_args={"timeout": BUSY_TIMEOUT_S}, hide_parameters=True)
            event.listen(engine, "do_connect", partial(_make_private, sqlite_path(url)))
            event.listen(engine, "connect", _tune_sqlite)
            return engine
        if parsed.get_backend_name() == "postgresql":
            return _postgres(parsed, silence_s)
    except (ArgumentError, NoSuchModuleError, ImportError) as error:
        raise StoreError(f"store.url cannot be used: {error}") from error
    raise StoreError(f"store.url is for {parsed.get_backend_name()}; SQLite and Postgres are supported")


def _postgres(parsed: URL, silence_s: float) -> Engine:
    from moe_watch.store import bounded  # noqa: PLC0415 - psycopg is an extra

    patience = bounded.Patience(silence_s)
    engine = create_engine(
        parsed,
        pool_pre_ping=True,
        connect_args=_POSTGRES,
        execution_options={"patience": patience},
        hide_parameters=True,
    )

    def connect(_dialect: Any, _record: Any, args: Any, kwargs: Any) -> Any:
        return bounded.connect(patience, *args, **kwargs)

    event.listen(engine, "do_connect", connect)
    if math.isfinite(silence_s):
        event.listen(engine, "connect", partial(_limit, silence_s))
    return engine


def _limit(seconds: float, connection: Any, _: object) -> None:
    """Let the server end what takes longer too: it would go on for a client that has given up, and hold its locks."""
    connection.execute(_LIMITS.format(local="false"), _limits(seconds))
    connection.commit()


@contextlib.contextmanager
def quick(engine: Engine, seconds: float) -> Iterator[Connection]:
    """Begin a transaction; on Postgres, give up what takes longer than ``seconds``, a lock that is held included."""
    if engine.dialect.name != "postgresql":
        with engine.begin() as connection:
            yield connection
        return
    from moe_watch.store import bounded  # noqa: PLC0415

    with bounded.within(seconds), engine.begin() as connection:
        connection.exec_driver_sql(_LIMITS.format(local="true"), _limits(seconds))
        yield connection


def _limits(seconds: float) -> tuple[str, str]:
    """Return the server's limits of a lock and of a statement, milliseconds; it speaks before the client leaves."""
    return str(round(seconds * 500)), str(round(seconds * 800))


def give_up(engine: Engine) -> None:
    """Let every statement that waits for Postgres fail now, and every later one at once."""
    patience = engine.get_execution_options().get("patience")
    if patience is not None:
        patience.over = True


def _parse(url: str) -> URL:
    """Return ``url`` in its parts; raise ``StoreError``, which quotes nothing of what may be a password."""
    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError):
        parsed = None
    if parsed is None or "@" in (parsed.host or ""):
        raise StoreError(
            "store.url cannot be used: it is not of the form sqlite:///file.db or "
            "postgresql+psycopg://user:password@host/database, where a special character of the password is written as "
            "%40 for @, %2F for / and so on"
        )
    return parsed


def _make_private(path: Path | None, *_: object) -> None:
    """Make a new SQLite file one that this user alone can read; its log gets the mode of the file."""
    if path is not None:
        with contextlib.suppress(OSError):  # it is there; whatever else is wrong, SQLite will say
            # Exclusive: to open and close a file that is in use would give up SQLite's own locks on it.
            os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))


def _tune_sqlite(connection: Any, _: object) -> None:
    cursor = connection.cursor()
    for pragma in _PRAGMAS:
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def sqlite_path(url: str) -> Path | None:
    """Return the file of a SQLite URL; None for Postgres and for a database in memory."""
    parsed = _parse(url)
    if parsed.get_backend_name() != "sqlite" or not parsed.database or parsed.database == ":memory:":
        return None
    return Path(parsed.database)


def own(url: str) -> IO[bytes] | None:
    """Lock a SQLite file for one sidecar until the result is closed; raise ``OwnedError`` when another holds it.

    The lock is the kernel's, so it goes with the process however that ends. Postgres needs none.
    """
    path = sqlite_path(url)
    if path is None:
        return None
    lock = path.with_name(path.name + ".lock")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        held = private_files.opened(lock, "ab+")
    except OSError as error:
        raise StoreError(f"cannot write beside {path}: {error.strerror}") from error
    try:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        held.seek(0)
        owner = held.read().decode(errors="replace").strip() or "unknown"
        held.close()
        raise OwnedError(
            f"another moe-watch (process {owner}) already writes to {path}: stop it, give this one another store.url, "
            "or use one Postgres for both"
        ) from error
    with contextlib.suppress(OSError):  # a full disk: the number is for the message above only
        os.truncate(held.fileno(), 0)
        os.write(held.fileno(), str(os.getpid()).encode())
    return held


def check(engine: Engine) -> None:
    """Return when the store answers; raise ``StoreError`` when it does not."""
    try:
        with engine.connect() as connection:
            connection.execute(text("SELECT 1"))
    except SQLAlchemyError as error:
        raise StoreError(f"the store does not answer: {getattr(error, 'orig', None) or error}") from error


def empty_log(engine: Engine) -> bool:
    """Take what was deleted out of SQLite's write-ahead log as well; return False while others read it."""
    if engine.dialect.name != "sqlite":
        return True
    with engine.connect() as connection:
        return not connection.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)").scalar()


def rewrite(engine: Engine) -> None:
    """Write SQLite's file anew with nothing but its rows; raise ``sqlalchemy.exc.OperationalError`` while it cannot be.

    The copy is made in a file that has no name, since it may be larger than memory.
    """
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.exec_driver_sql("PRAGMA temp_store=FILE")
        try:
            connection.exec_driver_sql("VACUUM")
        finally:
            connection.exec_driver_sql("PRAGMA temp_store=MEMORY")


def files(engine: Engine) -> list[Path]:
    """Return the files in which SQLite keeps rows; none for Postgres."""
    path = sqlite_path(str(engine.url.render_as_string(hide_password=False)))
    return [] if path is None else [path, path.with_name(path.name + "-wal")]


def size_bytes(engine: Engine) -> int:
    """Return the size of the store on disk, the write-ahead log included."""
    if kept := files(engine):
        return sum(map(_size, kept))
    with engine.connect() as connection:
        return int(connection.scalar(text("SELECT pg_database_size(current_database())")) or 0)


def _size(file: Path) -> int:
    """Return the size of ``file``; 0 when it is gone, as the log is whenever SQLite has no use for it."""
    try:
        return file.stat().st_size
    except FileNotFoundError:
        return 0
