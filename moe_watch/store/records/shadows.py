"""Queries of the dense shadow: texts that wait for it, what it found, and the side-by-side loads of both servers."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import Any

import numpy as np
from sqlalchemy import ColumnElement, Engine, Row, case, func, select
from sqlalchemy.orm import Session

from moe_watch.detect.common.weighted_estimates import Floats
from moe_watch.detect.quality.against_dense import Observed
from moe_watch.metrics.series import CONTEXT_BUCKETS, CONTEXTS
from moe_watch.store.schema import Model, Request, Sample, ServerBench, Shadow

_CHUNK = 500  # keys in one IN (...)
LOOK_BACK = 4000  # requests: rows of a slow transaction and replays that a restart cut short are found behind others


@dataclass(frozen=True)
class Pending:
    """One sampled text that has no shadow row yet, with what is needed to choose and replay it."""

    request_pk: int
    request_id: str
    choice: int
    replica: str
    model: str
    ood_p: float | None
    prompt_tokens: int
    output_tokens: int
    finish_reason: str
    corrupted: bool
    images: int
    endpoint: str
    prompt: str
    output: str
    params: dict[str, Any]
    prompt_truncated: bool
    output_truncated: bool
    sample_rate: float


def resume(session: Session) -> int:
    """Return the last request that was looked at, as far as the rows written so far tell."""
    return session.scalar(select(func.max(Shadow.request_pk))) or 0


def pending(session: Session, after: int, limit: int, but: Collection[int] = ()) -> list[Pending]:
    """Return up to ``limit`` sampled requests without a shadow row, oldest first.

    ``after`` is the primary key of the last one looked at; those up to ``LOOK_BACK`` before it are looked at as well,
    ``but`` these.
    """
    columns = [getattr(Request, name) for name in _OF_REQUEST] + [getattr(Sample, name) for name in _OF_SAMPLE]
    found = session.execute(
        select(Sample.request_pk, Model.name, *columns)
        .join(Request, Request.id == Sample.request_pk)
        .join(Model, Model.id == Request.model_id)
        .outerjoin(Shadow, Shadow.request_pk == Sample.request_pk)
        .where(Sample.request_pk > after - LOOK_BACK, Sample.request_pk.not_in(but))
        .where(Shadow.request_pk.is_(None), Request.canary.is_(False))
        .order_by(Sample.request_pk)
        .limit(limit)
    )
    return [
        Pending(request_pk=row[0], model=row[1], **dict(zip(_OF_REQUEST + _OF_SAMPLE, row[2:], strict=True)))
        for row in found
    ]


_OF_REQUEST = (
    *("request_id", "choice", "replica", "ood_p", "prompt_tokens", "output_tokens"),
    *("finish_reason", "corrupted", "images"),
)
_OF_SAMPLE = ("endpoint", "prompt", "output", "params", "prompt_truncated", "output_truncated", "sample_rate")


def waiting(engine: Engine) -> int:
    """Return how many sampled requests have no shadow row yet."""
    query = select(func.count()).select_from(Sample).outerjoin(Shadow, Shadow.request_pk == Sample.request_pk)
    with Session(engine) as session:
        return session.scalar(query.where(Shadow.request_pk.is_(None))) or 0


def save(session: Session, rows: Sequence[Shadow]) -> int:
    """Add ``rows`` whose request is still there (not pruned, not forgotten meanwhile); return how many were added."""
    wanted = [row.request_pk for row in rows]
    alive = set(session.scalars(select(Request.id).where(Request.id.in_(wanted))))
    done = set(session.scalars(select(Shadow.request_pk).where(Shadow.request_pk.in_(wanted))))
    fresh = [row for row in rows if row.request_pk in alive - done]
    session.add_all(fresh)
    return len(fresh)


BATCHES = ("1", "2-4", "5-16", "17-64", "65+")
_BATCH_BOUNDS = (1.5, 4.5, 16.5, 64.5)
_SEEN = (
    *(Shadow.at, Shadow.weight, Shadow.sample_weight, Shadow.outcome, Shadow.nll_moe_output, Shadow.nll_dense_output),
    *(Request.ood_score, Shadow.agreement, Shadow.top1, Shadow.judge, Shadow.defects, Request.domain, Request.images),
    *(Request.prompt_tokens, Request.batch_mean, Request.model_id),
)


def observed(
    session: Session,
    since: float,
    until: float,
    *,
    model: str | None = None,
    replica: str | None = None,
    dense: str | None = None,
) -> Observed:
    """Return what the shadow found from ``since`` (exclusive) to ``until``, in order of time; all models unless named.

    With ``dense``, replays to other dense models are left out, and requests that no dense model answered are not.

    The groups are domain, modality (text, image), context (by prompt length), batch (by the mean number of requests in
    a step: a kernel may be wrong at some only) and version (the model's row).
    """
    return _columns(_rows(session, (Shadow.at > since) & (Shadow.at <= until), model, replica, dense))


def of_keys(session: Session, keys: Sequence[int], *, dense: str | None = None) -> Observed:
    """Return what the shadow found of the requests of these keys, as ``observed`` does."""
    chunks = (keys[start : start + _CHUNK] for start in range(0, len(keys), _CHUNK))
    rows = [row for some in chunks for row in _rows(session, Shadow.request_pk.in_(some), None, None, dense)]
    return _columns(sorted(rows, key=itemgetter(0)))


def _rows(
    session: Session, which: ColumnElement[bool], model: str | None, replica: str | None, dense: str | None
) -> list[Row[Any]]:
    query = _of(select(*_SEEN).join(Request, Request.id == Shadow.request_pk).where(which), model, replica)
    if dense is not None:
        query = query.where(Shadow.dense_model.in_((dense, "")))
    return list(session.execute(query.order_by(Shadow.at, Shadow.request_pk)).all())


def arrived(
    session: Session, model: str, replica: str, *, since: float, until: float, beyond: float = math.inf
) -> dict[int, float]:
    """Return the times, by key, of results from ``since`` (exclusive) to ``until``.

    Those of requests with a key above ``beyond`` are among them however early they are: a clock may be set back.
    """
    query = select(Shadow.request_pk, Shadow.at).join(Request, Request.id == Shadow.request_pk)
    late = (Shadow.at > since) if math.isinf(beyond) else (Shadow.at > since) | (Shadow.request_pk > beyond)
    query = _of(query.where(late, Shadow.at <= until), model, replica)
    return {row.request_pk: row.at for row in session.execute(query)}


def newest(session: Session, model: str, replica: str) -> int:
    """Return the highest key of a request with a result; 0 before the first."""
    query = select(func.max(Shadow.request_pk)).join(Request, Request.id == Shadow.request_pk)
    return session.scalar(_of(query, model, replica)) or 0


def _of(query: Any, model: str | None, replica: str | None) -> Any:
    """Return ``query`` over requests, of one model and one replica where they are named."""
    if model is not None:
        query = query.join(Model, Model.id == Request.model_id).where(Model.name == model)
    return query if replica is None else query.where(Request.replica == replica)


def _columns(rows: Sequence[Row[Any]]) -> Observed:
    at, weight, sample_weight, outcome, nll_moe, nll_dense, ood, agreement, top1, judge, defects, *group = (
        zip(*rows, strict=True) if rows else ((),) * len(_SEEN)
    )
    domain, images, prompt_tokens, batch, model_id = group
    contexts = np.searchsorted(np.array(list(CONTEXT_BUCKETS.values())), np.array(prompt_tokens, dtype=np.int64))
    return Observed(
        at=_floats(at),
        weight=_floats(weight),
        sample_weight=_floats(sample_weight),
        outcome=np.array(outcome, dtype=np.str_),
        nll_moe=_floats(nll_moe),
        nll_dense=_floats(nll_dense),
        ood=_floats(ood),
        agreement=_floats(agreement),
        top1=_floats(top1),
        judge=_floats(judge),
        defects=_flags(defects, "moe"),
        dense_defects=_flags(defects, "dense"),
        groups={
            "domain": list(domain),
            "modality": ["image" if count else "text" for count in images],
            "context": [CONTEXTS[place] for place in contexts],
            "batch": [_batch(mean) for mean in batch],
            "version": [str(pk) for pk in model_id],
        },
    )


def _batch(mean: float | None) -> str:
    """Return the bucket of the mean number of requests in a step.

    >>> [_batch(mean) for mean in (1.2, 3.0, 16.4, None)]
    ['1 at a time', '2-4 at a time', '5-16 at a time', 'unknown']
    """
    if mean is None:
        return "unknown"
    return f"{BATCHES[int(np.searchsorted(_BATCH_BOUNDS, mean))]} at a time"


def _floats(values: Sequence[float | None]) -> Floats:
    return np.array(values, dtype=np.float64)  # None becomes nan


def _flags(defects: Sequence[dict[str, list[str]]], whose: str) -> dict[str, Floats]:
    """Return 0/1 flags [n] by kind; nan where this model's output was not looked at."""
    looked = np.array([whose in found for found in defects], dtype=bool)
    kinds = sorted({kind for found in defects for kind in found.get(whose, ())})
    flags = {kind: np.where(looked, 0.0, np.nan) for kind in kinds}
    for place, found in enumerate(defects):
        for kind in found.get(whose, ()):
            flags[kind][place] = 1.0
    return flags


def dense_model(session: Session, model: str, replica: str) -> str | None:
    """Return the name of the dense model of the newest scored request of one replica; None before the first."""
    return session.scalar(
        select(Shadow.dense_model)
        .join(Request, Request.id == Shadow.request_pk)
        .join(Model, Model.id == Request.model_id)
        .where(Model.name == model, Request.replica == replica, Shadow.outcome == "scored")
        .order_by(Shadow.request_pk.desc())  # not by time: a clock may be set back
        .limit(1)
    )


@dataclass(frozen=True)
class Speeds:
    """Time per output token of both models on the same requests, with the concurrency that each had; rows [n]."""

    at: Floats
    weight: Floats
    moe_tpot_s: Floats
    dense_tpot_s: Floats
    moe_ttft_s: Floats
    dense_ttft_s: Floats
    moe_concurrency: Floats
    dense_concurrency: Floats


def speeds(
    session: Session,
    since: float,
    until: float,
    *,
    model: str | None = None,
    replica: str | None = None,
    dense: str | None = None,
) -> Speeds:
    """Return the latencies of replayed requests from ``since`` (exclusive) to ``until``."""
    query = (
        select(
            *(Shadow.at, Shadow.weight, Request.tpot_s, Shadow.dense_tpot_s, Request.ttft_s, Shadow.dense_ttft_s),
            *(Request.batch_mean, Shadow.dense_concurrency),
        )
        .join(Request, Request.id == Shadow.request_pk)
        .where(Shadow.at > since, Shadow.at <= until, Shadow.dense_tpot_s.is_not(None))
    )
    query = _of(query, model, replica)
    if dense is not None:
        query = query.where(Shadow.dense_model == dense)
    rows = session.execute(query.order_by(Shadow.at)).all()
    return Speeds(*(_floats(column) for column in (zip(*rows, strict=True) if rows else ((),) * 8)))


def add_benches(session: Session, rows: Sequence[ServerBench]) -> None:
    """Add the result of one ``moe-watch bench-servers``, a row for each concurrency."""
    session.add_all(rows)


def benches(session: Session, since: float, until: float, *, model: str | None = None) -> list[ServerBench]:
    """Return the side-by-side loads of a period, newest first, by concurrency within each."""
    query = select(ServerBench).where(ServerBench.at > since, ServerBench.at <= until)
    if model is not None:
        query = query.where(ServerBench.moe_model == model)
    return list(session.scalars(query.order_by(ServerBench.at.desc(), ServerBench.concurrency)))


def concurrency(session: Session, model: str, replica: str, since: float, until: float) -> float | None:
    """Return how many requests the MoE had under way on average over the requests of a period; None without any."""
    query = (
        select(func.avg(Request.batch_mean))
        .join(Model, Model.id == Request.model_id)
        .where(Model.name == model, Request.replica == replica, Request.canary.is_(False))
        .where(Request.finished_at > since, Request.finished_at <= until)
    )
    found = session.scalar(query)
    return None if found is None else float(found)


def coverage(session: Session, model: str, replica: str, since: float, until: float) -> float | None:
    """Return the share of finished requests of a period that the shadow scored; None without requests."""
    query = (
        select(func.count(), func.sum(case((Shadow.outcome == "scored", 1), else_=0)))
        .select_from(Request)
        .join(Model, Model.id == Request.model_id)
        .outerjoin(Shadow, Shadow.request_pk == Request.id)
        .where(Model.name == model, Request.replica == replica, Request.canary.is_(False))
        .where(Request.finished_at > since, Request.finished_at <= until)
    )
    requests, scored = session.execute(query).one()
    return float(scored or 0) / requests if requests else None
