"""Migrations: they make what the models say, on both databases, and back."""

from __future__ import annotations

import itertools
import os
import shutil
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from alembic.script import Script, ScriptDirectory
from click.testing import CliRunner
from sqlalchemy import Engine

import moe_watch
from moe_watch.cli.main import main
from moe_watch.store import engine, migrate
from moe_watch.store.engine import StoreError
from moe_watch.store.schema import Base
from moe_watch.store.write.batch import write
from tests.store.test_store_write import some_writes


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


def _killed(url: str, revision: str, after: int) -> bool:
    """Upgrade to ``revision`` in a process that ends without a word after so many statements; say whether it did."""
    child = os.fork()
    if not child:
        left = itertools.count(after - 1, -1)

        def end(*_: object) -> None:
            if next(left) <= 0:
                os._exit(9)

        try:
            opened = engine.connect(url)
            sa.event.listen(opened, "after_cursor_execute", end)
            migrate.upgrade(opened, revision)
        finally:
            os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9


def _emptied(url: str) -> Engine:
    """Return the store without any table."""
    opened = engine.connect(url)
    path = engine.sqlite_path(url)
    if path is not None:
        for file in path.parent.glob(path.name + "*"):
            file.unlink()
        return opened
    with opened.begin() as connection:
        connection.execute(sa.text("DROP SCHEMA public CASCADE"))
        connection.execute(sa.text("CREATE SCHEMA public"))
    return opened


_STEPS = list(ScriptDirectory.from_config(migrate._config()).walk_revisions())


@pytest.mark.parametrize("step", _STEPS, ids=[step.revision for step in _STEPS])
def test_a_kill_after_any_statement_of_a_migration_leaves_all_or_nothing_of_it(store_url: str, step: Script) -> None:
    """The next upgrade brings the store to the newest schema."""
    before = step.down_revision
    assert before is None or isinstance(before, str)
    for after in itertools.count(1):
        opened = _emptied(store_url)
        if before is not None:
            migrate.upgrade(opened, before)
        opened.dispose()
        if not _killed(store_url, step.revision, after):
            break
        assert migrate.current(opened) in {before, step.revision}, after
        done = CliRunner().invoke(main, ["db", "upgrade", "--store", store_url])
        assert done.exit_code == 0, (after, done.output)
        assert migrate.is_current(opened)
        opened.dispose()
    assert after > 3
    opened.dispose()


def test_a_table_that_is_made_anew_keeps_what_refers_to_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """SQLite deletes the old table, and rows that refer to it would go with it."""
    folder = tmp_path / "migrations"
    shutil.copytree(migrate.scripts(), folder, ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "versions" / "9999_more.py").write_text(_MAKES_REQUESTS_ANEW.format(head=migrate.head()), "utf-8")
    store = engine.connect(f"sqlite:///{tmp_path}/a.db")
    migrate.upgrade(store)
    write(store, some_writes(3))
    monkeypatch.setattr(migrate, "scripts", lambda: folder)
    migrate.upgrade(store)
    with store.connect() as connection:
        kept = [connection.scalar(sa.text(f"SELECT count(*) FROM {name}")) for name in ("requests", "fingerprints")]  # noqa: S608
        connection.execute(sa.text("SELECT more FROM requests"))
        assert connection.scalar(sa.text("PRAGMA foreign_keys")) == 1
    assert kept == [3, 3]
    store.dispose()


_MAKES_REQUESTS_ANEW = """
import sqlalchemy as sa
from alembic import op

revision = "9999"
down_revision = "{head}"


def upgrade():
    with op.batch_alter_table("requests", recreate="always") as batch_op:
        batch_op.add_column(sa.Column("more", sa.Integer()))
"""
