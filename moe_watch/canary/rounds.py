"""One round: the canaries replayed in every batch composition, with the fingerprints that came back through the tap."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import httpx
import numpy as np
from numpy.typing import NDArray
from sqlalchemy import Engine

from moe_watch.canary.replay import Answer, Load, Server, padded, replay
from moe_watch.detect.canary.replay import Replay, Round
from moe_watch.store.records import canaries
from moe_watch.store.records.canaries import Routed

_POLL_S = 0.5


@dataclass(frozen=True)
class Played:
    """A round and where it came from; ``model_id`` is None when no fingerprint arrived."""

    round: Round
    at: float  # seconds since the epoch
    model_id: int | None
    replica: str
    asked: int
    answered: int
    routed: int
    error: str  # of the first canary that failed, empty if none did


async def play(
    http: httpx.AsyncClient,
    server: Server,
    loads: Sequence[Load],
    engine: Engine,
    *,
    seed: int,
    wait_s: float = 20.0,
    shape: tuple[int, int] = (1, 1),
) -> Played:
    """Replay the canaries at each of ``loads`` and wait for their fingerprints until none came for ``wait_s``.

    ``shape`` (layers, experts) is that of the empty counts when none arrives.
    """
    at = time.time()
    answers = {load.name: await replay(http, server, load, seed) for load in loads}
    ids = [a.request_id for load in answers.values() for a in load if not a.error]
    routed = await _arrived(engine, ids, wait_s)
    first = next(iter(routed.values()), None)
    failed = [a.error for load in answers.values() for a in load if a.error]
    return Played(
        round=Round(tuple(assemble(name, found, routed, shape) for name, found in answers.items())),
        at=at,
        model_id=first.model_id if first else None,
        replica=first.replica if first else "",
        asked=sum(len(load) for load in answers.values()),
        answered=len(ids),
        routed=len(routed),
        error=failed[0] if failed else "",
    )


async def _arrived(engine: Engine, ids: Sequence[str], wait_s: float) -> dict[str, Routed]:
    """Poll the store until the fingerprints of all ``ids`` are there or none came for ``wait_s``: both may be busy."""
    deadline = time.monotonic() + wait_s
    found: dict[str, Routed] = {}
    while True:
        missing = [request_id for request_id in ids if request_id not in found]
        came = await asyncio.to_thread(canaries.fingerprints, engine, missing)
        found |= came
        deadline = time.monotonic() + wait_s if came else deadline
        if len(found) == len(ids) or time.monotonic() > deadline:
            return found
        await asyncio.sleep(_POLL_S)


def assemble(
    load: str, answers: Sequence[Answer], routed: Mapping[str, Routed], shape: tuple[int, int] = (1, 1)
) -> Replay:
    """Put answers and fingerprints of one load together, in the order of the canary set."""
    found = [routed.get(answer.request_id) for answer in answers]
    known = next((one for one in found if one is not None), None)
    layers, experts = known.prompt.shape if known is not None else shape
    empty: NDArray[np.uint32] = np.zeros((layers, experts), np.uint32)
    fits = [one if one is not None and one.prompt.shape == (layers, experts) else None for one in found]
    return Replay(
        load=load,
        top_k=known.top_k if known is not None else 1,
        prompt=np.stack([empty if one is None else one.prompt for one in fits]),
        decode=np.stack([empty if one is None else one.decode for one in fits]),
        prompt_tokens=np.array([answer.prompt_tokens for answer in answers], np.int64),
        prompt_digest=np.array([answer.prompt_digest for answer in answers], np.uint64),
        output=padded([answer.output for answer in answers], -1, np.int32),
        prompt_logprob=padded([answer.prompt_logprob for answer in answers], np.nan, np.float32),
        output_logprob=padded([answer.output_logprob for answer in answers], np.nan, np.float32),
    )
