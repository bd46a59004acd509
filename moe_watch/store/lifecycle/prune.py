"""Retention: single requests and text go after their time, minutes become hours, and sums stay longest."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import Engine, delete, func, select
from sqlalchemy.orm import Session

from moe_watch.domain.window import Window
from moe_watch.settings import StoreSettings
from moe_watch.store import schema
from moe_watch.store.records import windows

DAY_S = 86_400.0
HOUR_S = 3600.0
_CHUNK = 500  # rows of one delete, so that a writer never waits long


@dataclass(frozen=True)
class Pruned:
    """How many rows went; ``rolled_up`` windows became hours."""

    requests: int
    samples: int
    windows: int
    rolled_up: int


def prune(engine: Engine, keep: StoreSettings, now: float) -> Pruned:
    """Delete what is past its time and roll windows older than a day up into hours; ``now`` in seconds."""
    samples = _delete(engine, schema.Sample.request_pk, schema.Sample.expires_at < now)
    old = schema.Request.finished_at < now - keep.keep_requests_days * DAY_S
    requests = _delete(engine, schema.Request.id, old)  # fingerprints, samples and shadows go with them
    oldest = now - keep.keep_windows_days * DAY_S
    gone = _delete(engine, schema.Window.id, schema.Window.start < oldest - oldest % HOUR_S)  # an hour goes whole
    return Pruned(requests, samples, gone, _roll_up(engine, now - DAY_S))


def _delete(engine: Engine, key: object, which: object) -> int:
    """Delete the rows that ``which`` picks, a chunk in a transaction; return how many."""
    gone = 0
    while True:
        with Session(engine) as session, session.begin():
            some = session.scalars(select(key).where(which).limit(_CHUNK)).all()  # type: ignore[call-overload]
            if not some:
                return gone
            session.execute(delete(key.class_).where(key.in_(some)))  # type: ignore[attr-defined]
            gone += len(some)


def _roll_up(engine: Engine, before: float) -> int:
    """Merge the windows of each whole hour that ended by ``before``; return how many windows were merged.

    The window that a replica wrote last is left: its next state may still wait in a spool, and would be added to an
    hour that has this one in it already. A sidecar writes the last state of a window before the next window.
    """
    done = 0
    short = schema.Window.seconds < HOUR_S
    last = select(func.max(schema.Window.id)).where(short).group_by(schema.Window.model_id, schema.Window.replica)
    fine = short & (schema.Window.start < before - before % HOUR_S) & schema.Window.id.not_in(last)
    with Session(engine) as session:
        query = select(schema.Window.id, schema.Window.model_id, schema.Window.replica, schema.Window.start).where(fine)
        hours: dict[tuple[int, str, float], list[int]] = defaultdict(list)
        for key, model_id, replica, start in session.execute(query):
            hours[model_id, replica, start - start % HOUR_S].append(key)
    for (model_id, replica, start), keys in hours.items():
        _merge(engine, model_id, replica, start, keys)
        done += len(keys)
    return done


def _merge(engine: Engine, model_id: int, replica: str, start: float, keys: Sequence[int]) -> None:
    """Put the sum of some windows in their place, in one transaction."""
    with Session(engine) as session, session.begin():
        model = session.get_one(schema.Model, model_id)
        whole = (schema.Window.model_id == model_id) & (schema.Window.replica == replica)
        whole &= (schema.Window.start == start) & (schema.Window.seconds == HOUR_S)
        found = session.scalars(select(schema.Window).where(schema.Window.id.in_(keys) | whole)).all()
        total = Window(model.layers, model.experts)
        for row in found:
            total.merge(windows.load(row, model))
            session.delete(row)
        session.flush()
        session.add(schema.Window(model_id=model_id, **windows.row("", replica, start, HOUR_S, total).values))
