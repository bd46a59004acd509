"""What the quality alarms take as normal, kept over restarts until it is to be learned anew."""

from __future__ import annotations

from hashlib import blake2b

import msgspec
from sqlalchemy import select
from sqlalchemy.orm import Session

from moe_watch.detect.quality.gap_alarm import Reference
from moe_watch.store.schema import Meta

_REFERENCE = "quality_reference/"
_RELEARN = "quality_relearn/"


class _Kept(msgspec.Struct, frozen=True):
    model: str
    reference: Reference


def load(session: Session, stream: tuple[str, str, str], kind: str) -> Reference | None:
    """Return what the alarm of ``kind`` takes as normal; None while it is being learned.

    ``stream`` is model, replica and dense model.
    """
    kept = session.get(Meta, _key(_REFERENCE, *stream, kind))
    return msgspec.json.decode(kept.value, type=_Kept).reference if kept is not None else None


def keep(session: Session, stream: tuple[str, str, str], kind: str, known: Reference) -> None:
    """Keep ``known`` until ``relearn``."""
    value = msgspec.json.encode(_Kept(stream[0], known)).decode()
    session.merge(Meta(key=_key(_REFERENCE, *stream, kind), value=value))


def relearn(session: Session, model: str, now: float) -> int:
    """Let the alarms of ``model`` learn anew from what comes after ``now``; return how many references went."""
    kept = session.scalars(select(Meta).where(Meta.key.startswith(_REFERENCE, autoescape=True))).all()
    rows = [row for row in kept if msgspec.json.decode(row.value, type=_Kept).model == model]
    for row in rows:
        session.delete(row)
    session.merge(Meta(key=_key(_RELEARN, model), value=repr(now)))
    session.flush()
    return len(rows)


def valid_from(session: Session, model: str) -> float:
    """Return the time of the last ``relearn`` of ``model``, seconds since the epoch; 0 before the first."""
    kept = session.get(Meta, _key(_RELEARN, model))
    return float(kept.value) if kept is not None else 0.0


def _key(prefix: str, *parts: str) -> str:
    return prefix + blake2b("\0".join(parts).encode(), digest_size=20).hexdigest()
