"""Long stretches of the history: rows for an export."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from sqlalchemy import Engine, select

from moe_watch.store.schema import Fingerprint, Model, Request


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
