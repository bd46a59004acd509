"""Deletes all that is kept of one request or one person, and counts what is left of it.

Aggregates stay: they are sums over many requests and name nobody.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

from sqlalchemy import ColumnElement, Engine, Text, cast, delete, func, select
from sqlalchemy.orm import Session

from moe_watch.domain.request_ids import is_called
from moe_watch.store.engine import empty_log, files, rewrite
from moe_watch.store.lifecycle import residue
from moe_watch.store.read.requests import called
from moe_watch.store.schema import Alarm, Base, Fingerprint, Meta, Request, Sample, Shadow
from moe_watch.store.write.batch import NewAlarm, Writes

_CHUNK = 500  # ids in one IN (...); SQLite takes at most 32,766 parameters
_LOOKED_UP = 50  # names found in bytes that are looked for in the rows of others, each a walk through the tables
_EXPORT = "export "  # key in meta, followed by a digest of the address
_KEYED: dict[str, tuple[type[Base], Any]] = {
    "requests": (Request, Request.id),
    "fingerprints": (Fingerprint, Fingerprint.request_pk),
    "samples": (Sample, Sample.request_pk),
    "shadow results": (Shadow, Shadow.request_pk),
}
# Where rows of others may have a name in their text; a hash is in none of them.
_MAY_QUOTE = (Request.request_id, cast(Alarm.evidence, Text), Sample.prompt, Sample.output, cast(Sample.params, Text))


@dataclass(frozen=True)
class Who:
    """Whose requests: those of an id, or those of a person by ``wire.user_hash``; one of the two."""

    request_id: str | None = None
    user_hash: str | None = None

    def has(self, values: dict[str, Any]) -> bool:
        """Say whether a row of ``requests`` is one of these."""
        if self.request_id is not None and is_called(values["request_id"], self.request_id):
            return True
        return self.user_hash is not None and values["user_hash"] == self.user_hash

    def where(self) -> ColumnElement[bool]:
        """Return the condition on ``requests``."""
        return called(self.request_id or "") if self.user_hash is None else Request.user_hash == self.user_hash


@dataclass(frozen=True)
class Mine:
    """What the store has: keys of rows, and ids under which alarms may name them."""

    keys: Sequence[int]
    ids: frozenset[str]


def find(engine: Engine, who: Who) -> Mine:
    """Return what the store has of ``who``."""
    with Session(engine) as session:
        found = session.execute(select(Request.id, Request.request_id).where(who.where())).all()
    named = {who.request_id} if who.request_id is not None else set()
    return Mine([key for key, _ in found], frozenset(named | {name for _, name in found}))


def forget(engine: Engine, mine: Mine) -> dict[str, int]:
    """Delete every row of ``mine`` in one transaction, and their ids in alarms; return how many of each kind."""
    gone = dict.fromkeys((*_KEYED, "mentions"), 0)
    with Session(engine) as session, session.begin():
        for some in _chunks(mine.keys):
            for name, (table, key) in reversed(_KEYED.items()):  # the request last: the others point at it
                done = session.execute(delete(table).where(key.in_(some)))
                gone[name] += done.rowcount  # type: ignore[attr-defined]
        for alarm in session.scalars(select(Alarm)):
            alarm.evidence, mentions = _unnamed(alarm.evidence, mine.ids)
            gone["mentions"] += mentions
    return gone


def left(engine: Engine, who: Who, mine: Mine) -> int:
    """Read again: return how many rows and mentions there are of ``who``, and of the keys that they had."""
    with Session(engine) as session:
        rows = session.scalar(select(func.count()).select_from(Request).where(who.where())) or 0
        for some in _chunks(mine.keys):
            for table, key in _KEYED.values():
                rows += session.scalar(select(func.count()).select_from(table).where(key.in_(some))) or 0
        return rows + sum(_unnamed(evidence, mine.ids)[1] for evidence in session.scalars(select(Alarm.evidence)))


def erase(engine: Engine, who: Who, mine: Mine) -> int:
    """Take what was deleted out of SQLite's files; return how many names of ``who`` their bytes still have.

    What an earlier version left in pages goes when the file is written anew, which is done only where it has such.
    """
    names = mine.ids | ({who.user_hash} if who.user_hash is not None else set())
    if _in_bytes(engine, names):
        rewrite(engine)
    return len(_in_bytes(engine, names))


def _in_bytes(engine: Engine, names: Collection[str]) -> set[str]:
    empty_log(engine)
    there = residue.found(files(engine), names)
    return there - _part_of_others(engine, there)


def _part_of_others(engine: Engine, names: set[str]) -> set[str]:
    """Return those of ``names`` that stand in rows of others, as one id in a longer one; of the first few."""
    with Session(engine) as session:
        return {
            name
            for name in sorted(names)[:_LOOKED_UP]
            if any(
                session.scalar(select(column).where(column.contains(name, autoescape=True)).limit(1)) is not None
                for column in _MAY_QUOTE
            )
        }


def without(writes: Writes, who: Who, ids: set[str]) -> int:
    """Take ``who`` out of a batch that was not written yet; return how many requests and mentions went.

    ``ids`` are those of the requests of ``who``; what is found is added.
    """
    mine = [request for request in writes.requests if who.has(request.values)]
    ids |= {str(request.values["request_id"]) for request in mine}
    gone, alarms = len(mine), list[NewAlarm]()
    writes.requests = [request for request in writes.requests if not who.has(request.values)]
    for alarm in writes.alarms:
        evidence, mentions = _unnamed(alarm.values["evidence"], ids)
        alarms.append(NewAlarm(alarm.identity, {**alarm.values, "evidence": evidence}))
        gone += mentions
    writes.alarms = alarms
    return gone


def note_export(engine: Engine, address: str) -> None:
    """Remember where an export was written to, so that ``moe-watch forget`` reaches it."""
    key = _EXPORT + blake2b(address.encode(), digest_size=20).hexdigest()
    with Session(engine) as session, session.begin():
        session.merge(Meta(key=key, value=address))


def exports(engine: Engine) -> list[str]:
    """Return the addresses of all exports that are remembered."""
    with Session(engine) as session:
        return list(session.scalars(select(Meta.value).where(Meta.key.startswith(_EXPORT)).order_by(Meta.value)))


def _unnamed(evidence: dict[str, Any], ids: Collection[str]) -> tuple[dict[str, Any], int]:
    """Return the evidence of an alarm without ``ids`` among the requests that it names, and how many went."""
    named = evidence.get("requests")
    if not isinstance(named, list):
        return evidence, 0
    kept = [name for name in named if name not in ids]
    return ({**evidence, "requests": kept} if len(kept) < len(named) else evidence), len(named) - len(kept)


def _chunks(keys: Sequence[int]) -> Iterator[Sequence[int]]:
    return (keys[start : start + _CHUNK] for start in range(0, len(keys), _CHUNK))
