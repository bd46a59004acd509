"""Batched writes of the sidecar, exactly once: every row has a natural key, and writing it again changes nothing.

``Writes`` is also what the spool keeps on disk, so it names models by identity instead of by a row id.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec
from sqlalchemy import Connection, Engine, bindparam, select
from sqlalchemy.exc import (
    DataError,
    DBAPIError,
    IntegrityError,
    InvalidRequestError,
    NotSupportedError,
    ProgrammingError,
    TimeoutError,  # noqa: A004 - of the pool
)

from moe_watch.domain import request_ids
from moe_watch.store import schema
from moe_watch.store.engine import quick
from moe_watch.store.write import bulk

_PATIENCE_S: Final = 10.0  # a statement of Postgres that takes longer hangs
_LIMIT_CLASS: Final = "54"  # of Postgres' errors: a value that is too large for an index, and the like
_ROW_BYTES: Final = 2000  # in memory, without arrays and texts


class NewModel(msgspec.Struct, frozen=True):
    """A served model; ``values`` are the columns of ``models``."""

    identity: str
    values: dict[str, Any]


class NewRequest(msgspec.Struct):
    """A finished request; ``values`` are the columns of ``requests`` but for the ids."""

    identity: str  # of the model
    values: dict[str, Any]
    fingerprint: dict[str, Any] | None = None  # prompt, decode, confidence: packed arrays
    sample: dict[str, Any] | None = None


class NewWindow(msgspec.Struct, frozen=True):
    """A window as it stands; a later one of the same key replaces it."""

    identity: str
    values: dict[str, Any]


class NewAlarm(msgspec.Struct, frozen=True):
    """An alarm as it stands; a later one of the same key replaces it."""

    identity: str
    values: dict[str, Any]


class NewEvent(msgspec.Struct, frozen=True):
    """Something that may explain a change."""

    identity: str  # empty: no model
    values: dict[str, Any]


class Writes(msgspec.Struct):
    """What one pass of the sidecar wants written."""

    models: list[NewModel] = []
    requests: list[NewRequest] = []
    windows: list[NewWindow] = []
    alarms: list[NewAlarm] = msgspec.field(default_factory=list, name="episodes")  # so in the spools of each version
    events: list[NewEvent] = []
    meta: dict[str, str] = {}

    def __bool__(self) -> bool:
        """Say whether there is anything to write."""
        return bool(self.models or self.requests or self.windows or self.alarms or self.events or self.meta)

    def extend(self, more: Writes) -> None:
        """Append ``more``."""
        self.models += more.models
        self.requests += more.requests
        self.windows += more.windows
        self.alarms += more.alarms
        self.events += more.events
        self.meta |= more.meta

    def identities(self) -> set[str]:
        """Return the models that the rows refer to."""
        groups: list[list[Any]] = [self.requests, self.windows, self.alarms, self.events]
        return {row.identity for group in groups for row in group if row.identity}

    def weight(self) -> int:
        """Return about how many bytes of memory the rows take."""
        parts = [part for r in self.requests for part in (r.fingerprint, r.sample) if part is not None]
        parts += [window.values for window in self.windows]
        large = sum(len(value) for part in parts for value in part.values() if isinstance(value, bytes | str))
        return large + _ROW_BYTES * (len(self.requests) + len(self.windows) + len(self.alarms) + len(self.events))

    def halves(self) -> tuple[Writes, Writes] | None:
        """Return two parts that are written one after the other with the same effect; None for a single row."""
        filled = [name for name in self.__struct_fields__ if getattr(self, name)]
        if len(filled) > 1:  # models come first, which the others refer to
            rest: dict[str, Any] = {name: getattr(self, name) for name in filled[1:]}
            return Writes(**{filled[0]: getattr(self, filled[0])}), Writes(**rest)
        one = getattr(self, filled[0]) if filled else []
        middle = len(one) // 2
        if isinstance(one, dict) or not middle:
            return None
        first: dict[str, Any] = {filled[0]: one[:middle]}
        second: dict[str, Any] = {filled[0]: one[middle:]}
        return Writes(**first), Writes(**second)


def write(engine: Engine, writes: Writes) -> int:
    """Write everything in one transaction; return how many requests were new.

    Raises ``sqlalchemy.exc.OperationalError`` or ``InterfaceError`` when the store is away, or a statement hangs.
    """
    with quick(engine, _PATIENCE_S) as connection:
        for model in writes.models:
            values = {"identity": model.identity, **model.values}
            connection.execute(bulk.insert(connection.dialect.name, schema.Model).on_conflict_do_nothing(), values)
        ids = _model_ids(connection, writes)
        fresh = _write_requests(connection, writes.requests, ids)
        _upsert(
            connection, schema.Window, _with_model(writes.windows, ids), ("model_id", "replica", "start", "seconds")
        )
        _upsert(
            connection, schema.Alarm, _with_model(writes.alarms, ids), ("model_id", "replica", "kind", "flagged_at")
        )
        _upsert(connection, schema.Meta, [{"key": key, "value": value} for key, value in writes.meta.items()], ("key",))
        if writes.events:
            rows = _with_model(writes.events, ids)
            connection.execute(bulk.insert(connection.dialect.name, schema.Event).on_conflict_do_nothing(), rows)
    return fresh


def is_away(error: Exception) -> bool:
    """Say whether ``error`` is the store's (away, full, damaged, not set up) and worth a retry, not one of the rows'.

    A programming error that Postgres itself reports is about a database, table or right that is missing: the
    statements are ours and known to be right.
    """
    code = getattr(getattr(error, "orig", None), "sqlstate", None) or ""
    if isinstance(error, ProgrammingError):
        return bool(code)
    if code.startswith(_LIMIT_CLASS):
        return False
    if isinstance(error, DBAPIError):
        return not isinstance(error, DataError | IntegrityError | NotSupportedError)
    return isinstance(error, TimeoutError | InvalidRequestError)  # no connection was free, or it went away


def _write_requests(connection: Connection, requests: list[NewRequest], ids: dict[str, int]) -> int:
    if not requests:
        return 0
    fresh = bulk.insert_requests(connection, [{"model_id": ids[r.identity], **r.values} for r in requests])
    if fresh < len(requests):
        requests, others = _apart(connection, requests)
        fresh += bulk.insert_requests(connection, [{"model_id": ids[r.identity], **r.values} for r in others])
    fingerprints = [r.fingerprint | _key(r) for r in requests if r.fingerprint is not None]
    bulk.insert_fingerprints(connection, fingerprints)
    bulk.insert_samples(connection, [r.sample | _key(r) for r in requests if r.sample is not None])
    return fresh


def _apart(connection: Connection, requests: list[NewRequest]) -> tuple[list[NewRequest], list[NewRequest]]:
    """Return ``requests``, and those of them whose ids the store has of others, which get ids of their own.

    A client's id may come again long after: another request with it has ended at another time. The new id follows from
    that time, so that writing it once more changes nothing.
    """
    there = bulk.finished(connection, [request.values for request in requests])
    all_of_them, others = list[NewRequest](), list[NewRequest]()
    for request in requests:
        key, at = tuple(_key(request).values()), request.values["finished_at"]
        if there.get(key, at) != at:
            own = request_ids.apart(request.values["request_id"], f"{key} {at!r}")
            renamed = {**request.values, "request_id": own}
            others.append(request := msgspec.structs.replace(request, values=renamed))
        all_of_them.append(request)
    return all_of_them, others


def _key(request: NewRequest) -> dict[str, Any]:
    return {name: request.values[name] for name in bulk.KEY}


def _upsert(connection: Connection, table: type[schema.Base], rows: list[dict[str, Any]], key: tuple[str, ...]) -> None:
    if not rows:
        return
    statement = bulk.insert(connection.dialect.name, table)
    changed = {name: statement.excluded[name] for name in rows[0] if name not in key}
    connection.execute(statement.on_conflict_do_update(index_elements=list(key), set_=changed), rows)


def _model_ids(connection: Connection, writes: Writes) -> dict[str, int]:
    wanted = writes.identities()
    query = select(schema.Model.identity, schema.Model.id).where(
        schema.Model.identity.in_(bindparam("wanted", expanding=True))
    )
    return {row.identity: row.id for row in connection.execute(query, {"wanted": sorted(wanted)})} if wanted else {}


def _with_model(rows: list[Any], ids: dict[str, int]) -> list[dict[str, Any]]:
    return [{"model_id": ids.get(row.identity), **row.values} for row in rows]
