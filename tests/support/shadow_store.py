"""A small store with sampled requests and shadow rows, for the tests of everything that reads them."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from sqlalchemy import Engine
from sqlalchemy.orm import Session

from moe_watch.store import engine, migrate
from moe_watch.store.schema import Model, Request, Sample, Shadow

MESSAGES = '[{"role": "user", "content": "alphabet"}]'


def make(folder: Path) -> Engine:
    """Return a store at the newest schema with one model, ``moe``."""
    store = engine.connect(f"sqlite:///{folder / 'store.db'}")
    migrate.upgrade(store)
    with Session(store) as session, session.begin():
        session.add(Model(id=1, identity="m", name="moe", layers=3, experts=8, top_k=2, first_seen=0, detail={}))
    return store


def add_request(session: Session, pk: int, **values: Any) -> None:
    """Add one finished request."""
    row: dict[str, Any] = {
        "id": pk,
        "request_id": f"chatcmpl-{pk}",
        "choice": 0,
        "replica": "r0",
        "model_id": 1,
        "finished_at": float(pk),
        "outcome": "stop",
        "prompt_tokens": 20,
        "output_tokens": 8,
        "cached_tokens": 0,
        "prompt_routed": 20,
        "decode_routed": 7,
        "preemptions": 0,
        "batch_mean": 2.0,
        "e2e_s": 1.0,
        "queue_s": 0.0,
        "ttft_s": 0.1,
        "tpot_s": 0.02,
        "finish_reason": "length",
        "corrupted": False,
        "images": 0,
        "domain": "d",
        "user_hash": "",
        "canary": False,
        "entropy": None,
        "margin": None,
        "ood_score": 0.0,
        "ood_p": 0.5,
    }
    session.add(Request(**{**row, **values}))


def add_sample(session: Session, pk: int, output: str = "abcdefgh", **values: Any) -> None:
    """Add one sampled request."""
    add_request(session, pk, **values)
    session.add(
        Sample(
            request_pk=pk,
            endpoint="/v1/chat/completions",
            prompt=MESSAGES,
            output=output,
            params={"max_tokens": 8, "temperature": 0.0},
            sample_rate=0.5,
            expires_at=1e12,
        )
    )


def add_shadow(session: Session, pk: int, *, at: float, gap: float, weight: float = 10.0, **values: Any) -> None:
    """Add one scored request whose gap is ``gap`` nats per token."""
    of_request = {name: values.pop(name) for name in list(values) if not hasattr(Shadow, name)}
    add_request(session, pk, **{"finished_at": at, **of_request})
    row: dict[str, Any] = {
        "request_pk": pk,
        "at": at,
        "outcome": "scored",
        "sample_weight": 1.0,
        "weight": weight,
        "dense_model": "dense",
        "nll_moe_output": 2.0 + gap,
        "nll_dense_output": 2.0,
        "moe_tokens": 8,
        "dense_tokens": 8,
        "defects": {"moe": [], "dense": []},
        "dense_tpot_s": 0.03,
        "dense_ttft_s": 0.2,
        "dense_concurrency": 2.0,
    }
    session.add(Shadow(**{**row, **values}))


def rows(store: Engine) -> dict[int, Shadow]:
    """Return all shadow rows by request."""
    with Session(store, expire_on_commit=False) as session:
        return {row.request_pk: row for row in session.query(Shadow)}


def fill(store: Engine, gaps: Iterable[tuple[float, float]]) -> None:
    """Add scored requests with (time, gap), numbered from 1."""
    with Session(store) as session, session.begin():
        for pk, (at, gap) in enumerate(gaps, 1):
            add_shadow(session, pk, at=at, gap=gap)
