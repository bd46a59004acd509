"""Inserts of many requests, handed to the driver as tuples: SQLAlchemy's work per row costs more than SQLite's own.

The statements are SQLAlchemy's, compiled once for each database. A row whose key is there already is left alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from operator import itemgetter
from typing import Any, Final

from sqlalchemy import Connection, Dialect, Table, bindparam, select
from sqlalchemy.dialects import postgresql, sqlite

from moe_watch.store import schema

Insert = postgresql.Insert | sqlite.Insert
_AT_ONCE: Final = 500  # ids in one query
KEY: Final = ("replica", "request_id", "choice")


def insert(dialect: str, model: type[schema.Base]) -> Insert:
    """Return an insert into the table of ``model`` that knows conflicts."""
    table = model.__table__
    if not isinstance(table, Table):
        raise TypeError(table)
    return postgresql.insert(table) if dialect == "postgresql" else sqlite.insert(table)


def insert_requests(connection: Connection, rows: Sequence[dict[str, Any]]) -> int:
    """Insert ``requests``, every column but the id given; return how many were new."""
    if not rows:
        return 0
    sql, order = _compiled_requests(connection.dialect.name, tuple(rows[0]))
    return connection.exec_driver_sql(sql, list(map(itemgetter(*order), rows))).rowcount


def finished(connection: Connection, rows: Sequence[dict[str, Any]]) -> dict[tuple[Any, ...], float]:
    """Return when the requests ended that the store has under the ``KEY`` of ``rows``."""
    table, found = schema.Request.__table__.c, dict[tuple[Any, ...], float]()
    wanted = sorted({row["request_id"] for row in rows})
    for start in range(0, len(wanted), _AT_ONCE):
        some = table.request_id.in_(wanted[start : start + _AT_ONCE])
        query = select(*(table[name] for name in (*KEY, "finished_at"))).where(some)
        found |= {tuple(row[:-1]): row[-1] for row in connection.execute(query)}
    return found


def insert_fingerprints(connection: Connection, rows: Sequence[dict[str, Any]]) -> None:
    """Insert fingerprints; ``rows`` have ``KEY`` of their requests in place of ``request_pk``."""
    if rows:
        sql, order = _compiled_fingerprints(connection.dialect.name, tuple(rows[0]))
        connection.exec_driver_sql(sql, list(map(itemgetter(*order), rows)))


def insert_samples(connection: Connection, rows: Sequence[dict[str, Any]]) -> None:
    """Insert samples, which are few: SQLAlchemy converts their JSON; ``rows`` as for fingerprints."""
    if rows:
        connection.execute(_of_requests(connection.dialect.name, schema.Sample, tuple(rows[0])), rows)


@lru_cache
def _compiled_requests(dialect: str, columns: tuple[str, ...]) -> tuple[str, tuple[str, ...]]:
    given: dict[str, Any] = {name: bindparam(name) for name in columns}
    return _compiled(dialect, insert(dialect, schema.Request).values(given).on_conflict_do_nothing())


@lru_cache
def _compiled_fingerprints(dialect: str, columns: tuple[str, ...]) -> tuple[str, tuple[str, ...]]:
    return _compiled(dialect, _of_requests(dialect, schema.Fingerprint, columns))


def _of_requests(dialect: str, model: type[schema.Base], columns: tuple[str, ...]) -> Insert:
    """Return the insert of what belongs to a request that is known by its key."""
    given = [name for name in columns if name not in KEY]
    requests, own = schema.Request.__table__.c, model.__table__.c
    mine = select(requests.id, *(bindparam(name, type_=own[name].type) for name in given))
    mine = mine.where(*(requests[name] == bindparam(name, type_=requests[name].type) for name in KEY))
    return insert(dialect, model).from_select(["request_pk", *given], mine).on_conflict_do_nothing()


def _compiled(dialect: str, statement: Insert) -> tuple[str, tuple[str, ...]]:
    """Return SQL for the driver and the columns in the order of its parameters."""
    psycopg: Callable[..., Dialect] = postgresql.psycopg.dialect
    spoken = psycopg(paramstyle="format") if dialect == "postgresql" else sqlite.dialect()
    compiled = statement.compile(dialect=spoken)
    return str(compiled), tuple(compiled.positiontup or ())
