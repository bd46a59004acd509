"""Baselines: versions of what is normal for one model, of which one is active."""

from __future__ import annotations

from dataclasses import dataclass
from zipfile import BadZipFile

from sqlalchemy import Engine, func, select, update
from sqlalchemy.orm import Session, defer

from moe_watch.detect.fit import baseline_fit as fitted
from moe_watch.store.engine import StoreError
from moe_watch.store.schema import Baseline, Event, Model


@dataclass(frozen=True)
class Active:
    """The active baseline of one model."""

    id: int
    identity: str  # of the model
    version: int
    promoted_at: float
    requests: int


def save(engine: Engine, model: Model, made: fitted.Baseline, *, now: float, note: str = "") -> Baseline:
    """Store ``made`` as the next version for ``model``, not yet active; raise ``StoreError`` when it is another's."""
    check(model, made)
    with Session(engine, expire_on_commit=False) as session, session.begin():
        latest = session.scalar(select(func.max(Baseline.version)).where(Baseline.model_id == model.id)) or 0
        row = Baseline(
            model_id=model.id,
            version=latest + 1,
            created_at=now,
            promoted_at=None,
            active=False,
            requests=made.requests,
            note=note,
            blob=made.to_bytes(),
        )
        session.add(row)
    return row


def check(model: Model, made: fitted.Baseline) -> None:
    """Raise ``StoreError`` when ``made`` is not of the shape of ``model``."""
    theirs, ours = (made.layers, made.experts, made.top_k), (model.layers, model.experts, model.top_k)
    if theirs != ours:
        raise StoreError(
            f"the baseline is of a model of {theirs} (layers, experts, top-k), {model.name} has {ours}: fit one on the "
            "traffic of the model that is served"
        )


def promote(engine: Engine, model: Model, version: int, *, now: float) -> Baseline:
    """Make one version the active one; raise ``StoreError`` when ``model`` has no such version."""
    with Session(engine, expire_on_commit=False) as session, session.begin():
        row = session.scalar(select(Baseline).where(Baseline.model_id == model.id, Baseline.version == version))
        if row is None:
            raise StoreError(_not_found(session, model, version))
        session.execute(update(Baseline).where(Baseline.model_id == model.id).values(active=False))
        row.active, row.promoted_at = True, now
        detail = f"baseline version {version} of {model.name}, {row.requests} requests"
        session.add(Event(at=now, replica="", model_id=model.id, kind="baseline_promoted", detail=detail))
    return row


def _not_found(session: Session, model: Model, version: int) -> str:
    others = session.execute(
        select(Model.name, Model.identity).join(Baseline).where(Baseline.version == version, Model.id != model.id)
    ).first()
    if others is None:
        return f"{model.name} has no baseline version {version}: see `moe-watch baseline list`"
    return (
        f"{model.name} ({model.identity[:8]}) has no baseline version {version}; {others.name} ({others.identity[:8]}) "
        "has, and a baseline holds for the model it was fitted on alone: fit one with `moe-watch baseline fit`"
    )


def listed(engine: Engine, model: Model | None = None) -> list[tuple[Baseline, Model]]:
    """Return all baselines without their arrays, newest first."""
    query = (
        select(Baseline, Model)
        .join(Model, Model.id == Baseline.model_id)
        .options(defer(Baseline.blob, raiseload=True))
        .order_by(Baseline.created_at.desc())
    )
    with Session(engine, expire_on_commit=False) as session:
        found = session.execute(query if model is None else query.where(Model.id == model.id))
        return [(row, of) for row, of in found]


def active(engine: Engine) -> dict[str, Active]:
    """Return the active baselines by the identity of their model; cheap enough to ask every second."""
    query = (
        select(Baseline.id, Model.identity, Baseline.version, Baseline.promoted_at, Baseline.requests)
        .join(Model, Model.id == Baseline.model_id)
        .where(Baseline.active.is_(True))
    )
    with engine.connect() as connection:
        rows = connection.execute(query).all()
    return {r.identity: Active(r.id, r.identity, r.version, r.promoted_at or 0.0, r.requests) for r in rows}


def load(engine: Engine, baseline_id: int) -> fitted.Baseline:
    """Return the fitted baseline of one row; raise ``StoreError`` when it is gone or cannot be read."""
    with engine.connect() as connection:
        blob = connection.scalar(select(Baseline.blob).where(Baseline.id == baseline_id))
    if blob is None:
        raise StoreError(f"baseline {baseline_id} is gone from the store")
    try:
        return fitted.Baseline.from_bytes(blob)
    except (ValueError, KeyError, OSError, TypeError, BadZipFile) as error:
        raise StoreError(f"baseline {baseline_id} cannot be read by this version: fit a new one ({error})") from error
