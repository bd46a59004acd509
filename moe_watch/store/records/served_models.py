"""Which models are and were served: their identity, and what each replica announced last."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Any, Final

import msgspec
from sqlalchemy import Engine, select
from sqlalchemy.orm import Session

from moe_watch import wire
from moe_watch.store import schema
from moe_watch.store.write.batch import NewModel, Writes

_ANNOUNCED: Final = "announced:"


def identity(model: wire.Model) -> str:
    """Return a digest of everything that may move routing; two replicas with the same one share baselines."""
    parts = (model.model, model.revision, model.weights, model.layers, model.experts, model.top_k)
    return hashlib.sha256(msgspec.json.encode(parts)).hexdigest()[:32]


def announcement(model: wire.Model, now: float, sidecar: str = "") -> Writes:
    """Return what to write when ``model`` is announced to ``sidecar``: its row, and that this replica serves it."""
    values: dict[str, Any] = {
        "name": model.model,
        "layers": model.layers,
        "experts": model.experts,
        "top_k": model.top_k,
        "first_seen": now,
        "detail": msgspec.to_builtins(model),
    }
    key = _key(sidecar) + digest(model.replica, 32)
    renewed = msgspec.json.encode(msgspec.structs.replace(model, sent_at=now)).decode()
    return Writes(models=[NewModel(identity(model), values)], meta={key: renewed})


def announced(engine: Engine, sidecar: str = "") -> list[wire.Model]:
    """Return what each replica announced last to ``sidecar``, so that it knows at once after a restart.

    ``sent_at`` is when that was written, by the sidecar's clock.
    """
    with Session(engine) as session:
        found = session.scalars(select(schema.Meta.value).where(schema.Meta.key.startswith(_key(sidecar)))).all()
    return list(_decode(found))


def _key(sidecar: str) -> str:
    """Return how the announcements to one sidecar begin; many may share a store."""
    return f"{_ANNOUNCED}{digest(sidecar, 16)}:"


def digest(text: str, length: int) -> str:
    """Return a name of any length as part of a key."""
    return hashlib.sha256(text.encode()).hexdigest()[:length]


def _decode(values: Iterable[str]) -> Iterable[wire.Model]:
    for value in values:
        try:
            yield msgspec.json.decode(value, type=wire.Model)
        except msgspec.MsgspecError:
            continue  # written by another version: the tap announces again


def by_name(engine: Engine, name: str | None = None) -> list[schema.Model]:
    """Return all models, or those of one name, the one that was first seen last at the front."""
    query = select(schema.Model).order_by(schema.Model.first_seen.desc(), schema.Model.id.desc())
    with Session(engine, expire_on_commit=False) as session:
        return list(session.scalars(query if name is None else query.where(schema.Model.name == name)))


def by_identity(engine: Engine, digest: str) -> schema.Model | None:
    """Return the model of one identity."""
    with Session(engine, expire_on_commit=False) as session:
        return session.scalar(select(schema.Model).where(schema.Model.identity == digest))
