"""Brings a store to the schema of this version, by Alembic; the scripts lie in ``migrations/`` and in the wheel."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from alembic.util import CommandError
from sqlalchemy import Connection, Engine, text
from sqlalchemy.exc import SQLAlchemyError

from moe_watch.store.engine import StoreError

_ADVISORY_LOCK = 0x6D6F6577  # "moew": sidecars that upgrade one Postgres wait for each other


def scripts() -> Path:
    """Return the folder of the migration scripts: in the wheel, else in the source tree."""
    package = Path(__file__).resolve().parents[1]
    for folder in (package / "_migrations", package.parent / "migrations"):
        if (folder / "env.py").is_file():
            return folder
    raise StoreError(f"the migration scripts are missing from {package}: install moe-watch again")


def head() -> str:
    """Return the newest revision that this version knows."""
    newest = ScriptDirectory.from_config(_config()).get_current_head()
    if newest is None:
        raise StoreError(f"no migration in {scripts()}")
    return newest


def current(engine: Engine) -> str | None:
    """Return the revision of the store; None for an empty one. Raises ``StoreError`` when it does not answer."""
    try:
        with engine.connect() as connection:
            return MigrationContext.configure(connection).get_current_revision()
    except SQLAlchemyError as error:
        raise StoreError(f"the store does not answer: {getattr(error, 'orig', None) or error}") from error


def is_current(engine: Engine) -> bool:
    """Say whether the store has the newest schema; raise ``StoreError`` when it is from a newer moe-watch."""
    found = current(engine)
    if found is not None and found != head():
        _check_known(found)
    return found == head()


def upgrade(engine: Engine, revision: str = "head") -> None:
    """Upgrade the store to ``revision``; raise ``StoreError`` when it is from a newer moe-watch or does not answer."""
    is_current(engine)
    _run(engine, lambda config: command.upgrade(config, revision))


def downgrade(engine: Engine, revision: str) -> None:
    """Take the store back to ``revision`` ("base": empty)."""
    _run(engine, lambda config: command.downgrade(config, revision))


def _run(engine: Engine, action: Callable[[Config], None]) -> None:
    config = _config()
    try:
        with engine.connect() as connection, _whole(connection):
            config.attributes["connection"] = connection
            action(config)
    except SQLAlchemyError as error:
        raise StoreError(f"the store could not be upgraded: {getattr(error, 'orig', None) or error}") from error


@contextlib.contextmanager
def _whole(connection: Connection) -> Iterator[None]:
    """Make all that happens meanwhile one transaction, so that an end at any statement leaves what was there before."""
    with _alone(connection) if connection.dialect.name == "sqlite" else connection.begin():
        if connection.dialect.name == "postgresql":
            connection.execute(text(f"SELECT pg_advisory_xact_lock({_ADVISORY_LOCK})"))
        yield


@contextlib.contextmanager
def _alone(connection: Connection) -> Iterator[None]:
    """Open SQLite's transaction, which its driver leaves closed until the first row is written: after the tables.

    Foreign keys rest meanwhile, since a table that is made anew is deleted first, and rows go with those they refer to.
    They are checked at the end instead.
    """
    connection.exec_driver_sql("PRAGMA foreign_keys=OFF")  # in a transaction it would have no effect
    connection.rollback()
    try:
        with connection.begin():
            connection.exec_driver_sql("BEGIN IMMEDIATE")
            yield
            if connection.exec_driver_sql("PRAGMA foreign_key_check").first() is not None:
                raise StoreError("the store could not be upgraded: rows would refer to rows that are not there")
    finally:
        connection.exec_driver_sql("PRAGMA foreign_keys=ON")


def _check_known(revision: str) -> None:
    try:
        ScriptDirectory.from_config(_config()).get_revision(revision)
    except CommandError as error:
        raise StoreError(
            f"the store has schema {revision}, which this moe-watch does not know: it was written by a newer version; "
            "install that, or use another store"
        ) from error


def _config() -> Config:
    config = Config()
    config.set_main_option("script_location", str(scripts()).replace("%", "%%"))
    return config
