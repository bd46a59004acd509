"""Alarms from their start to their end."""

from __future__ import annotations

from typing import Final

from sqlalchemy import Engine, select, update
from sqlalchemy.orm import Session

from moe_watch.store.engine import quick
from moe_watch.store.schema import Alarm

_PATIENCE_S: Final = 10.0


def between(engine: Engine, since: float, until: float, model_id: int | None = None) -> list[Alarm]:
    """Return the alarms of which some part lies in a period, newest first."""
    query = (
        select(Alarm)
        .where(Alarm.flagged_at < until, Alarm.ended_at.is_(None) | (Alarm.ended_at >= since))
        .order_by(Alarm.flagged_at.desc())
    )
    with Session(engine, expire_on_commit=False) as session:
        return list(session.scalars(query if model_id is None else query.where(Alarm.model_id == model_id)))


def find(engine: Engine, alarm_id: int) -> Alarm | None:
    """Return one alarm by its number."""
    with Session(engine, expire_on_commit=False) as session:
        return session.get(Alarm, alarm_id)


def close_open(engine: Engine, replicas: list[str], now: float) -> int:
    """End the alarms that a stopped sidecar left open: its detectors start anew; return how many."""
    left = update(Alarm).where(Alarm.ended_at.is_(None), Alarm.replica.in_(replicas))
    with quick(engine, _PATIENCE_S) as connection:
        return connection.execute(left.values(ended_at=now, ending="sidecar_stopped")).rowcount
