"""Canary rounds: the healthy ones that are the reference, the checks against them, and the fingerprints behind both."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import Engine, func, select, update
from sqlalchemy.orm import Session, defer

from moe_watch.detect.canary.replay import Round
from moe_watch.store.codecs import arrays
from moe_watch.store.schema import CanaryRun, Fingerprint, Meta, Model, Request
from moe_watch.store.write import bulk

CHECKED = ("healthy", "benign", "routing", "weights", "deployment", "blind")
_SIGNS = "canary_secret"  # key in meta
_MOST_AT_ONCE = 500  # ids in one query; SQLite refuses very long lists


@dataclass(frozen=True)
class Routed:
    """The fingerprint of one canary as it arrived through the tap."""

    model_id: int
    replica: str
    top_k: int
    prompt: NDArray[np.uint32]  # [layers, experts]
    decode: NDArray[np.uint32]


def secret(engine: Engine) -> str:
    """Return what canaries of this store are signed with; who asks first makes it."""
    with Session(engine) as session, session.begin():
        found = session.get(Meta, _SIGNS)
        if found is None:
            made = bulk.insert(engine.dialect.name, Meta).values(key=_SIGNS, value=secrets.token_hex(32))
            session.execute(made.on_conflict_do_nothing())
            found = session.get_one(Meta, _SIGNS)
        return found.value


def fingerprints(engine: Engine, request_ids: Sequence[str]) -> dict[str, Routed]:
    """Return what arrived so far of the requests with these ids, by id."""
    found: dict[str, Routed] = {}
    with Session(engine) as session:
        for start in range(0, len(request_ids), _MOST_AT_ONCE):
            query = (
                select(Request.request_id, Request.replica, Model, Fingerprint.prompt, Fingerprint.decode)
                .join(Model, Model.id == Request.model_id)
                .join(Fingerprint, Fingerprint.request_pk == Request.id)
                .where(Request.request_id.in_(request_ids[start : start + _MOST_AT_ONCE]))
            )
            for request_id, replica, model, prompt, decode in session.execute(query).tuples():
                shape = (model.layers, model.experts)
                counts = (arrays.unpack_counts(prompt, *shape), arrays.unpack_counts(decode, *shape))
                found[request_id] = Routed(model.id, replica, model.top_k, *counts)
    return found


def save(engine: Engine, run: CanaryRun) -> int:
    """Write ``run`` and return its id."""
    with Session(engine, expire_on_commit=False) as session, session.begin():
        session.add(run)
        session.flush()
        return run.id


def references(engine: Engine, model: str, set_version: str, kind: str = "vllm") -> list[Round]:
    """Return the healthy rounds of ``model`` (its name, whatever its revision) by engine ``kind``, oldest first."""
    query = (
        select(CanaryRun.blob)
        .join(Model, Model.id == CanaryRun.model_id)
        .where(CanaryRun.reference, CanaryRun.set_version == set_version, CanaryRun.engine == kind, Model.name == model)
        .order_by(CanaryRun.at, CanaryRun.id)
    )
    with Session(engine) as session:
        return [Round.from_bytes(blob) for blob in session.scalars(query)]


def reference_sets(engine: Engine, model: str, kind: str = "vllm") -> list[tuple[str, int]]:
    """Return versions of canary sets that have healthy rounds of ``model``, newest first, with their number."""
    query = (
        select(CanaryRun.set_version, func.count())
        .join(Model, Model.id == CanaryRun.model_id)
        .where(CanaryRun.reference, CanaryRun.engine == kind, Model.name == model)
        .group_by(CanaryRun.set_version)
        .order_by(func.max(CanaryRun.at).desc())
    )
    with Session(engine) as session:
        return [(version, int(rounds)) for version, rounds in session.execute(query).tuples()]


def reference_since(engine: Engine, run: CanaryRun) -> float:
    """Return when the oldest round was recorded of the reference that ``run`` was held against; 0 without one."""
    query = select(func.min(CanaryRun.at)).where(
        *(CanaryRun.reference, CanaryRun.set_version == run.set_version),
        *(CanaryRun.engine == run.engine, CanaryRun.model_id == run.model_id),
    )
    with Session(engine) as session:
        return float(session.scalar(query) or 0.0)


def retire(engine: Engine, model: str, set_version: str, kind: str = "vllm") -> int:
    """Take the rounds of ``model`` out of the reference, keeping them as history; return how many they were."""
    of_model = select(Model.id).where(Model.name == model)
    statement = (
        update(CanaryRun)
        .where(CanaryRun.reference, CanaryRun.set_version == set_version, CanaryRun.engine == kind)
        .where(CanaryRun.model_id.in_(of_model))
        .values(reference=False)
        .execution_options(synchronize_session=False)
    )
    with Session(engine) as session, session.begin():
        done: Any = session.execute(statement)
        return int(done.rowcount)


def latest(
    engine: Engine, model: str | None = None, replica: str | None = None, verdicts: Sequence[str] = CHECKED
) -> CanaryRun | None:
    """Return the last round with one of ``verdicts`` (by default any check), without its arrays; None without one.

    Comparisons with transformers are left out: they are asked for, and say nothing of a change.
    """
    found = runs(engine, model, replica=replica, verdicts=verdicts, kind="vllm", limit=1)
    return found[0] if found else None


def runs(
    engine: Engine,
    model: str | None = None,
    *,
    replica: str | None = None,
    verdicts: Sequence[str] | None = None,
    kind: str | None = None,
    since: float = 0.0,
    limit: int = 100,
) -> list[CanaryRun]:
    """Return rounds without their arrays, newest first; those of the reference have the verdict ""."""
    query = select(CanaryRun).options(defer(CanaryRun.blob)).where(CanaryRun.at >= since)
    if model is not None:
        query = query.join(Model, Model.id == CanaryRun.model_id).where(Model.name == model)
    if replica is not None:
        query = query.where(CanaryRun.replica == replica)
    if kind is not None:
        query = query.where(CanaryRun.engine == kind)
    if verdicts is not None:
        query = query.where(CanaryRun.verdict.in_(verdicts))
    with Session(engine, expire_on_commit=False) as session:
        return list(session.scalars(query.order_by(CanaryRun.at.desc(), CanaryRun.id.desc()).limit(limit)))


def requests_since(engine: Engine, model: str, since: float, until: float) -> int:
    """Return how many requests other than canaries of ``model`` finished in a period."""
    query = (
        select(func.count())
        .select_from(Request)
        .join(Model, Model.id == Request.model_id)
        .where(Model.name == model, Request.canary.is_(False))
        .where(Request.finished_at >= since, Request.finished_at < until)
    )
    with Session(engine) as session:
        return int(session.scalar(query) or 0)


def layer_ids(engine: Engine, model_id: int | None) -> list[int]:
    """Return the indices in the whole model of its layers with experts, as the tap announced them; maybe empty."""
    with Session(engine) as session:
        model = session.get(Model, model_id) if model_id is not None else None
        return [int(index) for index in model.detail.get("layer_ids", [])] if model is not None else []


def round_of(engine: Engine, run_id: int) -> Round:
    """Return the arrays of one run; raises ``KeyError`` when there is no such run."""
    with Session(engine) as session:
        blob = session.scalar(select(CanaryRun.blob).where(CanaryRun.id == run_id))
    if blob is None:
        raise KeyError(run_id)
    return Round.from_bytes(blob)
