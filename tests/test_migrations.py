"""Migrations: they make what the models say, on both databases, and back."""

from __future__ import annotations

from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import Engine

import moe_watch
from moe_watch.store import engine, migrate
from moe_watch.store.engine import StoreError
from moe_watch.store.models import Base


@pytest.mark.filterwarnings("ignore:autogenerate skipping")
def test_the_migrations_make_what_the_models_say(store: Engine) -> None:
    """Nothing is left to generate after an upgrade."""
    with store.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        left = compare_metadata(context, Base.metadata)
    # SQLite cannot reflect an index over an expression: the next test sees that it is there.
    assert [step for step in left if getattr(step[1], "name", "") != "ix_requests_suspicious"] == []


def test_every_index_of_the_models_is_made(store: Engine) -> None:
    """Indexes that autogeneration cannot compare are there too."""
    with store.connect() as connection:
        table = "pg_indexes" if connection.dialect.name == "postgresql" else "sqlite_master"
        name = "indexname" if connection.dialect.name == "postgresql" else "name"
        made = set(connection.scalars(sa.text(f"SELECT {name} FROM {table}")))  # noqa: S608 - two constants
    wanted = {index.name for found in Base.metadata.tables.values() for index in found.indexes}
    assert wanted <= made


def test_an_upgrade_twice_is_an_upgrade_once(store: Engine) -> None:
    """A store at the newest schema is left alone."""
    migrate.upgrade(store)
    assert migrate.is_current(store)
    assert migrate.current(store) == migrate.head()


def test_all_the_way_down_is_empty(store: Engine) -> None:
    """Downgrading to nothing leaves nothing but Alembic's own table."""
    migrate.downgrade(store, "base")
    assert sa.inspect(store).get_table_names() == ["alembic_version"]
    assert not migrate.is_current(store)


def test_a_store_of_a_later_version_is_refused(store: Engine) -> None:
    """An older moe-watch does not touch what it does not know."""
    with store.begin() as connection:
        connection.execute(sa.text("UPDATE alembic_version SET version_num = 'later'"))
    with pytest.raises(StoreError, match="newer version"):
        migrate.is_current(store)
    with pytest.raises(StoreError, match="newer version"):
        migrate.upgrade(store)


def test_a_store_that_is_away_is_explained() -> None:
    """The message says so instead of a stack of SQL."""
    away = engine.connect("postgresql+psycopg://nobody@127.0.0.1:1/none")
    with pytest.raises(StoreError, match="does not answer"):
        migrate.current(away)


def test_the_scripts_of_a_wheel_win(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In an installed wheel the scripts lie in the package, in the source tree beside it."""
    assert migrate.scripts() == Path(moe_watch.__file__).parents[1] / "migrations"
    packaged = tmp_path / "moe_watch" / "_migrations"
    packaged.mkdir(parents=True)
    (packaged / "env.py").touch()
    monkeypatch.setattr(migrate, "__file__", str(tmp_path / "moe_watch" / "store" / "migrate.py"))
    assert migrate.scripts() == packaged
