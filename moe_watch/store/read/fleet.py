"""What the replicas of one model have in common: their windows side by side, and where their comparison stands."""

from __future__ import annotations

from sqlalchemy import Engine, func, select, update
from sqlalchemy.dialects import postgresql, sqlite

from moe_watch.domain.window import Window
from moe_watch.store import schema
from moe_watch.store.records import windows

_KEY = "fleet:"


def routed(engine: Engine, model: schema.Model, since: float, until: float) -> dict[str, int]:
    """Return the requests with routing of each replica in the windows that begin in a period."""
    row = schema.Window
    query = (
        select(row.replica, func.sum(row.routed_requests))
        .where(row.model_id == model.id, row.start >= since, row.start < until)
        .group_by(row.replica)
    )
    with engine.connect() as connection:
        return {replica: int(requests) for replica, requests in connection.execute(query)}


def by_replica(engine: Engine, model: schema.Model, since: float, until: float) -> dict[str, Window]:
    """Return the sums of each replica over the windows that begin in a period."""
    found: dict[str, Window] = {}
    for row, window in windows.between(engine, model, since, until):
        found.setdefault(row.replica, Window(model.layers, model.experts)).merge(window)
    return found


def read(engine: Engine, identity: str) -> str:
    """Return what was written last of the model of this identity; empty when nothing was."""
    query = select(schema.Meta.value).where(schema.Meta.key == _KEY + identity)
    with engine.connect() as connection:
        return connection.scalar(query) or ""


def swap(engine: Engine, identity: str, before: str, after: str) -> bool:
    """Write ``after`` where ``before`` stands; return False, and write nothing, when somebody else was faster."""
    key, row = _KEY + identity, schema.Meta
    with engine.begin() as connection:
        if before:
            change = update(row).where(row.key == key, row.value == before).values(value=after)
            return connection.execute(change.returning(row.key)).first() is not None
        insert = postgresql.insert if connection.dialect.name == "postgresql" else sqlite.insert
        first = insert(row).values(key=key, value=after).on_conflict_do_nothing()
        return connection.execute(first.returning(row.key)).first() is not None
