"""What each process of a tap has dropped in all by its own count, as far as it is in the windows already."""

from __future__ import annotations

import contextlib
from typing import Final

import msgspec
from sqlalchemy import Engine, select
from sqlalchemy.orm import Session

from moe_watch.store import schema
from moe_watch.store.records.served_models import digest

Counts = dict[str, dict[str, int]]  # source -> reason -> frames
MOST_SOURCES: Final = 32  # of a replica: each start of vLLM makes new ones


class _Kept(msgspec.Struct):
    replica: str
    counts: Counts


def kept(sidecar: str, replica: str, counts: Counts) -> dict[str, str]:
    """Return what to write so that the next process of ``sidecar`` counts nothing twice."""
    return {_key(sidecar) + digest(replica, 32): msgspec.json.encode(_Kept(replica, counts)).decode()}


def read(engine: Engine, sidecar: str) -> dict[str, Counts]:
    """Return what is known by replica."""
    found: dict[str, Counts] = {}
    with Session(engine) as session:
        for value in session.scalars(select(schema.Meta.value).where(schema.Meta.key.startswith(_key(sidecar)))):
            with contextlib.suppress(msgspec.MsgspecError):  # of another version: counted once more, not refused
                one = msgspec.json.decode(value, type=_Kept)
                found[one.replica] = one.counts
    return found


def _key(sidecar: str) -> str:
    return f"dropped:{digest(sidecar, 16)}:"
