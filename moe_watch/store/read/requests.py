"""Single requests by their id, and streams of fingerprints for fits and backtests."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import ColumnElement, Engine, Row, Select, and_, func, or_, select
from sqlalchemy.orm import Session

from moe_watch import wire
from moe_watch.detect.common.batch import Batch
from moe_watch.store.codecs import arrays
from moe_watch.store.schema import Fingerprint, Model, Request, Sample


@dataclass(frozen=True)
class Found:
    """One request with what is kept of it."""

    request: Request
    model: Model
    fingerprint: Fingerprint | None
    sample: Sample | None


@dataclass(frozen=True)
class Stored:
    """Fingerprints of n requests in the order in which they finished, and the requests' keys."""

    batch: Batch
    ids: Sequence[int]  # requests.id
    request_ids: Sequence[str]
    ood_p: NDArray[np.float64]  # [n], nan where it was not scored


def called(request_id: str) -> ColumnElement[bool]:
    """Return the condition that a client means a request by this id, as ``domain.request_ids.is_called`` says."""
    again = Request.request_id.startswith(f"{request_id}~", autoescape=True)
    length = func.length(Request.request_id) == len(request_id) + wire.AGAIN
    return or_(Request.request_id == request_id, and_(again, length))


def find(engine: Engine, request_id: str, replica: str | None = None) -> list[Found]:
    """Return the choices of the request(s) with this id, newest first; several may have had the same id."""
    query = (
        select(Request, Model, Fingerprint, Sample)
        .join(Model, Model.id == Request.model_id)
        .outerjoin(Fingerprint, Fingerprint.request_pk == Request.id)
        .outerjoin(Sample, Sample.request_pk == Request.id)
        .where(called(request_id))
        .order_by(Request.finished_at.desc(), Request.choice)
    )
    if replica is not None:
        query = query.where(Request.replica == replica)
    with Session(engine, expire_on_commit=False) as session:
        return [Found(*row) for row in session.execute(query)]


def count(engine: Engine, model_id: int, since: float = 0.0, until: float = float("inf")) -> int:
    """Return the number of requests of a period, canaries left out."""
    with Session(engine) as session:
        query = select(func.count()).where(_within(model_id, since, until), Request.canary.is_(False))
        return int(session.scalar(query) or 0)


def fingerprints(
    engine: Engine,
    model: Model,
    since: float = 0.0,
    until: float = float("inf"),
    *,
    size: int = 512,
    replica: str | None = None,
) -> Iterator[Stored]:
    """Yield the stored fingerprints of a period in the order of time, ``size`` at once; canaries are left out."""
    query = (
        select(Request.id, Request.request_id, Request.finished_at, Request.ood_p)
        .add_columns(Fingerprint.prompt, Fingerprint.decode, Fingerprint.confidence)
        .join(Fingerprint, Fingerprint.request_pk == Request.id)
        .where(_within(model.id, since, until), Request.canary.is_(False))
        .order_by(Request.finished_at, Request.id)
    )
    if replica is not None:
        query = query.where(Request.replica == replica)
    with engine.connect() as connection:
        for rows in _streamed(connection.execution_options(yield_per=size), query):
            yield _stored(rows, model)


def unpack_confidence(raw: bytes | None, layers: int) -> NDArray[np.float32] | None:
    """Return mean entropy and margin ``[2, layers]`` of one fingerprint."""
    return None if raw is None else arrays.unpack(raw, (2, layers)).astype(np.float32)


def _within(model_id: int, since: float, until: float) -> Any:
    return (Request.model_id == model_id) & Request.finished_at.between(since, min(until, 1e18))


def _streamed(connection: Any, query: Select[Any]) -> Iterator[Sequence[Row[Any]]]:
    result = connection.execute(query)
    yield from result.partitions()


def _stored(rows: Sequence[Row[Any]], model: Model) -> Stored:
    def counts(name: str) -> NDArray[np.uint32]:
        return np.stack([arrays.unpack_counts(getattr(row, name), model.layers, model.experts) for row in rows])

    confidence = [unpack_confidence(row.confidence, model.layers) for row in rows]
    known = any(one is not None for one in confidence)
    nothing = np.full((2, model.layers), np.nan, np.float32)
    both = np.stack([nothing if one is None else one for one in confidence]) if known else None
    batch = Batch(
        counts("prompt"),
        counts("decode"),
        model.top_k,
        None if both is None else both[:, 0],
        None if both is None else both[:, 1],
        np.array([row.finished_at for row in rows]),
    )
    p = np.array([np.nan if row.ood_p is None else row.ood_p for row in rows])
    return Stored(batch, [row.id for row in rows], [row.request_id for row in rows], p)
