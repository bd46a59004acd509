"""Alembic's entry: runs on the connection that ``store.migrate`` (or the tests) hands over."""

from __future__ import annotations

from alembic import context
from sqlalchemy import Connection

from moe_watch.store.schema import Base


def _run(connection: Connection) -> None:
    context.configure(
        connection=connection,
        target_metadata=Base.metadata,
        compare_type=True,
        render_as_batch=connection.dialect.name == "sqlite",  # SQLite cannot alter most things in place
    )
    with context.begin_transaction():
        context.run_migrations()


_run(context.config.attributes["connection"])
