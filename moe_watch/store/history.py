"""Long stretches of the history: rows for an export, and all that is kept of a request or a person, to forget."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Engine, delete, select
from sqlalchemy.orm import Session

from moe_watch.store.models import Fingerprint, Model, Request, Sample, Shadow

_CHUNK = 500  # ids in one IN (...); SQLite takes at most 32,766 parameters


@dataclass(frozen=True)
class Forgotten:
    """How many rows of each kind were deleted."""

    requests: int
    fingerprints: int
    samples: int
    shadows: int


def rows(engine: Engine, model: Model, since: float, until: float, *, size: int = 2000) -> Iterator[Sequence[Any]]:
    """Yield requests with stored fingerprints, as packed bytes, in the order of time, ``size`` at once."""
    query = (
        select(
            *(Request.replica, Request.request_id, Request.choice, Request.finished_at, Request.outcome),
            *(Request.prompt_tokens, Request.output_tokens, Request.domain, Request.images, Request.canary),
            *(Request.user_hash, Request.ood_p, Request.ttft_s, Request.tpot_s),
            *(Fingerprint.prompt, Fingerprint.decode, Fingerprint.confidence),
        )
        .join(Fingerprint, Fingerprint.request_pk == Request.id)
        .where(Request.model_id == model.id, Request.finished_at >= since, Request.finished_at < until)
        .order_by(Request.finished_at, Request.id)
    )
    with engine.connect() as connection:
        yield from connection.execution_options(yield_per=size).execute(query).partitions()


def replicas(engine: Engine, model: Model) -> list[str]:
    """Return the names of the replicas that ever served ``model``."""
    query = select(Request.replica).where(Request.model_id == model.id).distinct().order_by(Request.replica)
    with engine.connect() as connection:
        return list(connection.scalars(query))


def forget(engine: Engine, *, request_id: str | None = None, user_hash: str | None = None) -> Forgotten:
    """Delete every row of one request id or of one person, in one transaction.

    Aggregates stay: they are sums over many requests and name nobody.
    """
    mine = Request.request_id == request_id if request_id is not None else Request.user_hash == user_hash
    counts = [0, 0, 0, 0]
    with Session(engine) as session, session.begin():
        keys = list(session.scalars(select(Request.id).where(mine)))
        for start in range(0, len(keys), _CHUNK):
            some = keys[start : start + _CHUNK]
            keyed = (Request.id, Fingerprint.request_pk, Sample.request_pk, Shadow.request_pk)
            for index, key in reversed(list(enumerate(keyed))):  # the request last: the others point at it
                done = session.execute(delete(key.class_).where(key.in_(some)))
                counts[index] += done.rowcount  # type: ignore[attr-defined]
    return Forgotten(*counts)
