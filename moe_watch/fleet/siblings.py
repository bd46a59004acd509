"""Compares the replicas of one model with each other, whichever sidecars watch them: they meet in the store.

Whoever comes first claims the next block of time, compares it and writes where every replica stands; the others read
that. So a block is compared once, and a sidecar that dies is replaced by the next.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

import msgspec
import structlog
from sqlalchemy import Engine
from sqlalchemy.exc import SQLAlchemyError

from moe_watch.detect.drift import location, replica
from moe_watch.detect.drift.localise import localise
from moe_watch.detect.drift.moments import Moments, of_baseline
from moe_watch.detect.drift.replica import Standing
from moe_watch.domain.window import Window
from moe_watch.settings import Settings
from moe_watch.store.engine import StoreError
from moe_watch.store.read import fleet
from moe_watch.store.records import baselines, served_models
from moe_watch.store.schema import Model

_POLL_S: Final = 5.0
_GRACE_S: Final = 7.0  # a window is written to its end within so many seconds
_LONGEST: Final = 15  # windows of a block at most, where requests are few
_RIPE: Final = 0.8  # of the replicas must have enough requests
_CLAIM_S: Final = 60.0  # after which a claim that led to nothing is void
_BACK: Final = 30  # windows behind an answer to where a replica differs
_AGAIN: Final = 5  # blocks after which the answer is looked for again, until experts can be named
_GONE_S: Final = 86_400.0  # a replica that was not seen for so long is forgotten
_LATEST: Final = 60  # blocks behind the fleet's share of unusual requests

_log = structlog.get_logger()


class State(msgspec.Struct):
    """Where the comparison of one model's replicas stands; times are seconds since the epoch."""

    through: float = 0.0  # everything before it was compared
    claimed: float = 0.0  # since when somebody compares what follows; 0: nobody
    standings: dict[str, Standing] = {}
    seen: dict[str, float] = {}  # replica -> when it had requests last
    since: dict[str, float] = {}  # replica -> when it was flagged
    where: dict[str, dict[str, Any]] = {}  # replica -> layers and experts in which it differs
    scored: list[tuple[int, int]] = []  # of the latest blocks: requests with a p-value, and unusual ones among them


def read(engine: Engine, identity: str) -> State:
    """Return where the replicas of one model stand; an empty state when they were never compared."""
    return _decode(fleet.read(engine, identity))


def _decode(raw: str) -> State:
    try:
        return msgspec.json.decode(raw, type=State) if raw else State()
    except msgspec.MsgspecError:
        return State()  # written by another version


async def run(settings: Settings, store: Engine, identities: Callable[[], Iterable[str]]) -> None:
    """Compare until cancelled; a store that is away is tried again."""
    while settings.detect.siblings:
        await asyncio.sleep(_POLL_S)
        for identity in set(identities()):
            try:
                await asyncio.to_thread(compare, store, settings, identity, time.time())
            except SQLAlchemyError as error:
                _log.debug("siblings were not compared", why=str(error))
            except Exception:  # noqa: BLE001 - whatever it is, the pipeline goes on
                _log.exception("siblings could not be compared")


def compare(engine: Engine, settings: Settings, identity: str, now: float) -> bool:
    """Compare the next block of the model's replicas if it is due and nobody else does; say whether that was done."""
    until = (now - _GRACE_S) // settings.window_s * settings.window_s
    raw = fleet.read(engine, identity)
    state = _decode(raw)
    longest = _LONGEST * settings.window_s
    # What was compared far ahead of now was so by a clock that has been set back since.
    since = max(state.through if state.through <= until + longest else 0.0, until - longest)
    model = served_models.by_identity(engine, identity)
    if model is None or until <= since or 0 <= now - state.claimed < _CLAIM_S:
        return False
    requests = fleet.routed(engine, model, since, until)
    if not _is_ripe(requests, windows=(until - since) / settings.window_s):
        return False
    state.claimed = now
    claim = msgspec.json.encode(state).decode()
    if not fleet.swap(engine, identity, raw, claim):
        return False
    block = fleet.by_replica(engine, model, since, until)
    after = advance(state, block, settings.detect.average_run_length, until, _normal(engine, identity, block))
    for name in [name for name, one in after.standings.items() if one.deviates]:
        _say_where(engine, model, after, name, since=until - _BACK * settings.window_s)
    return fleet.swap(engine, identity, claim, msgspec.json.encode(after).decode())


def _is_ripe(requests: Mapping[str, int], windows: float) -> bool:
    """Say whether enough replicas have enough requests; it looks at their number alone, so it biases nothing."""
    enough = sum(n >= replica.FEWEST for n in requests.values())
    return len(requests) > 1 and (enough >= max(2, _RIPE * len(requests)) or windows >= _LONGEST)


def _normal(engine: Engine, identity: str, block: Mapping[str, Window]) -> Moments | None:
    """Return the baseline where there are but two replicas, which only it can tell apart."""
    active = baselines.active(engine).get(identity) if len(block) == 2 else None
    try:
        return None if active is None else of_baseline(baselines.load(engine, active.id))
    except StoreError:
        return None


def advance(
    state: State, block: Mapping[str, Window], run_length: float, until: float, normal: Moments | None = None
) -> State:
    """Return the state after a block that ended at ``until``."""
    seen = state.seen | {name: until for name, window in block.items() if window.requests}
    seen = {name: at for name, at in seen.items() if until - at < _GONE_S}
    known = {name: one for name, one in state.standings.items() if name in seen}
    sums = {name: moments(window) for name, window in block.items() if window.routed_requests}
    standings = replica.observe(known, sums, run_length, normal)
    flagged = [name for name, one in standings.items() if one.deviates]
    scored = sum(int(window.sums.scored or 0) for window in block.values())
    unusual = sum(int(window.sums.ood or 0) for window in block.values())
    return State(
        through=until,
        standings=standings,
        seen=seen,
        since={name: state.since.get(name, until) for name in flagged},
        where={name: state.where[name] for name in flagged if name in state.where},
        scored=[*state.scored, (scored, unusual)][-_LATEST:],
    )


def moments(window: Window) -> Moments:
    """Return the sums of a window that tell how requests were routed."""
    return Moments(window.routed_requests, window.counts.sum(0), window.moments[0], window.moments[1])


def _say_where(engine: Engine, model: Model, state: State, name: str, *, since: float) -> None:
    """Find the layers and experts in which a flagged replica differs, until they can be named."""
    told = state.where.get(name)
    if told is not None and (told["experts"] is not None or state.standings[name].blocks % _AGAIN):
        return
    found = {other: moments(window) for other, window in fleet.by_replica(engine, model, since, state.through).items()}
    mine = found.pop(name, None)
    others = [sums for other, sums in found.items() if not state.standings.get(other, replica.new()).deviates]
    if mine is None or not others:
        return
    siblings = sum(others[1:], start=others[0])
    ids = list(model.detail.get("layer_ids") or range(model.layers))
    state.where[name] = location.evidence(localise(siblings, mine), ids)
