"""Aggregates: the sums of each model, replica and stretch of time."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from sqlalchemy import Engine, select
from sqlalchemy.orm import Session

from moe_watch.domain.window import Window
from moe_watch.store import schema
from moe_watch.store.codecs import arrays
from moe_watch.store.write.batch import NewWindow


def row(identity: str, replica: str, start: float, seconds: float, window: Window) -> NewWindow:
    """Return ``window`` as it is to be written."""
    values = {
        "replica": replica,
        "start": start,
        "seconds": seconds,
        "requests": window.requests,
        "routed_requests": window.routed_requests,
        "counts": arrays.pack(window.counts),
        "moments": arrays.pack(window.moments),
        "scalars": window.scalars(),
    }
    return NewWindow(identity, values)


def load(found: schema.Window, model: schema.Model) -> Window:
    """Return the sums in one row; raise ``ValueError`` when it is not of the shape of ``model``."""
    window = Window(model.layers, model.experts, found.requests, found.routed_requests)
    shape = (2, model.layers, model.experts)
    window.counts = arrays.unpack(found.counts, shape).astype(np.uint64)
    window.moments = arrays.unpack(found.moments, shape).astype(np.float64)
    window.load_scalars(found.scalars)
    return window


def between(
    engine: Engine, model: schema.Model, since: float, until: float, replica: str | None = None
) -> Iterator[tuple[schema.Window, Window]]:
    """Yield the windows that begin in a period, in the order of time, each row with its sums."""
    query = (
        select(schema.Window)
        .where(schema.Window.model_id == model.id, schema.Window.start >= since, schema.Window.start < until)
        .order_by(schema.Window.start, schema.Window.replica)
        .execution_options(yield_per=64)
    )
    if replica is not None:
        query = query.where(schema.Window.replica == replica)
    with Session(engine, expire_on_commit=False) as session:
        for found in session.scalars(query):
            yield found, load(found, model)


def pooled(engine: Engine, model: schema.Model, since: float, until: float, replica: str | None = None) -> Window:
    """Return the sum of the windows that begin in a period."""
    total = Window(model.layers, model.experts)
    for _, window in between(engine, model, since, until, replica):
        total.merge(window)
    return total
