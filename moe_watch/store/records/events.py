"""Things that may explain a change: restarts, rebalances, promotions."""

from __future__ import annotations

from sqlalchemy import Engine, select
from sqlalchemy.orm import Session

from moe_watch.store.schema import Event


def between(engine: Engine, since: float, until: float, model_id: int | None = None) -> list[Event]:
    """Return the events of a period in the order of time; of one model, those of no model included."""
    query = select(Event).where(Event.at >= since, Event.at < until).order_by(Event.at, Event.id)
    if model_id is not None:
        query = query.where((Event.model_id == model_id) | Event.model_id.is_(None))
    with Session(engine, expire_on_commit=False) as session:
        return list(session.scalars(query))
