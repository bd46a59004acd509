"""Records healthy rounds as the reference, and checks a new round against them; both end up in the store."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import httpx
from sqlalchemy import Engine

from moe_watch.canary import verdict_text
from moe_watch.canary.replay import LOADS, Load, Server
from moe_watch.canary.rounds import Played, play
from moe_watch.detect.canary.comparison import FAULTS, FEWEST_ROUNDS, Judgement, judge
from moe_watch.detect.canary.replay import Round
from moe_watch.detect.common.attribution import TELLING, Happening, named
from moe_watch.domain.amounts import plural
from moe_watch.store.records import canaries, events, served_models
from moe_watch.store.schema import CanaryRun

_IDLE = "1"
_KEPT_EVENTS = frozenset({"engine_start", "eplb_rebalance", "model_changed"})


class NotChecked(RuntimeError):  # noqa: N818 - the message reads as a sentence
    """No verdict is possible; the message says what is missing and what to do."""


@dataclass(frozen=True)
class Checked:
    """The verdict on one round, and the row that it became."""

    judgement: Judgement
    run: CanaryRun


def loads_by_name(names: Sequence[str]) -> list[Load]:
    """Return the loads called ``names``; raises ``NotChecked`` for one that there is not."""
    unknown = [name for name in names if name not in LOADS]
    if unknown or not names:
        raise NotChecked(f"no load is called {', '.join(unknown) or 'nothing'}; there are {', '.join(LOADS)}")
    return [LOADS[name] for name in dict.fromkeys(names)]


async def record(
    http: httpx.AsyncClient,
    server: Server,
    loads: Sequence[Load],
    engine: Engine,
    *,
    rounds: int,
    add: bool = False,
    on_round: Callable[[Played], None] = lambda _: None,
) -> int:
    """Replay ``rounds`` healthy rounds into the reference and return how many it has now.

    They replace the earlier ones unless ``add``. Raises ``NotChecked`` when a round is not whole: a reference with
    holes would hide faults.
    """
    version = server.canaries.version
    await play(http, server, loads[-1:], engine, seed=0, wait_s=0)  # warms up kernels and caches
    played = []
    for _ in range(rounds):
        one = await play(http, server, loads, engine, seed=secrets.randbelow(1 << 31))
        if one.routed < one.asked or one.model_id is None:
            raise NotChecked(_hole(one))
        played.append(one)
        on_round(one)
    if not add:
        await asyncio.to_thread(canaries.retire, engine, server.model, version)
    for one in played:
        await asyncio.to_thread(canaries.save, engine, _reference(one, version, "vllm"))
    return len(await asyncio.to_thread(canaries.references, engine, server.model, version))


def _hole(played: Played) -> str:
    if played.answered < played.asked:
        return f"{played.asked - played.answered} of {played.asked} canaries failed: {played.error}"
    missing = played.asked - played.routed
    return (
        f"{missing} of {played.asked} canaries came back without a fingerprint in the store: is the tap on in vLLM, "
        "and does `moe-watch serve` write to this store? `moe-watch doctor` finds out"
    )


def _reference(played: Played, version: str, kind: str) -> CanaryRun:
    return _row(played, version, kind, Judgement("healthy"), reference=True, verdict="", summary="")


def _row(
    played: Played, version: str, kind: str, judgement: Judgement, *, reference: bool, verdict: str, summary: str
) -> CanaryRun:
    idle = all(replay.load == _IDLE for replay in played.round.replays)
    return CanaryRun(
        model_id=played.model_id,
        at=played.at,
        set_version=version,
        engine=kind,
        load="idle" if idle else "loaded",
        replica=played.replica,
        reference=reference,
        verdict=verdict,
        first_layer=judgement.first_layer,
        effect=judgement.effect,
        summary=summary,
        evidence=verdict_text.evidence(judgement),
        blob=played.round.to_bytes(),
    )


def save_reference(engine: Engine, model: str, version: str, rounds: Sequence[Round], at: float) -> None:
    """Write rounds by transformers as the reference of ``model``; raises ``NotChecked`` when it was never served."""
    known = served_models.by_name(engine, model)
    if not known:
        raise NotChecked(f"the store knows no model {model!r}: let `moe-watch serve` see it served by vLLM first")
    canaries.retire(engine, model, version, "transformers")
    for one in rounds:
        played = Played(one, at, known[0].id, "", 0, 0, 0, "")
        canaries.save(engine, _reference(played, version, "transformers"))


async def check(
    http: httpx.AsyncClient,
    server: Server,
    engine: Engine,
    *,
    loads: Sequence[Load],
    error: float,
    against: str = "vllm",
) -> Checked:
    """Replay one round, judge it against the reference by engine ``against`` and store the verdict.

    Raises ``NotChecked`` without a reference for this set of prompts.
    """
    version = server.canaries.version
    reference = await asyncio.to_thread(canaries.references, engine, server.model, version, against)
    if len(reference) < FEWEST_ROUNDS:
        raise NotChecked(await asyncio.to_thread(_no_reference, engine, server, len(reference), against))
    known = {replay.load for replay in reference[0].replays}
    _, layers, experts = reference[0].shape
    common = [load for load in loads if load.name in known] or [LOADS[name] for name in known if name in LOADS]
    played = await play(http, server, common, engine, seed=secrets.randbelow(1 << 31), shape=(layers, experts))
    judgement = await asyncio.to_thread(judge, reference, played.round, error=error)
    return await asyncio.to_thread(_store, engine, server, played, judgement, against)


def _no_reference(engine: Engine, server: Server, found: int, against: str) -> str:
    others = canaries.reference_sets(engine, server.model, against)
    hint = "".join(f"; it has {plural(rounds, 'round')} of other prompts ({name})" for name, rounds in others[:1])
    return (
        f"of these canaries the store has {plural(found, 'healthy round')} for {server.model!r}, {FEWEST_ROUNDS} are "
        f"needed{hint}: run `moe-watch canary record` while the deployment is known to be good"
    )


def _store(engine: Engine, server: Server, played: Played, judgement: Judgement, against: str) -> Checked:
    last = canaries.latest(engine, server.model, verdicts=(*canaries.CHECKED, ""))
    if played.model_id is None and last is not None:  # nothing was routed: it is blind, but of that replica
        played = replace(played, model_id=last.model_id, replica=last.replica)
    layer_ids = canaries.layer_ids(engine, played.model_id)
    line = verdict_text.summary(judgement, layer_ids)
    if judgement.verdict in FAULTS:
        line += _since(engine, server.model, played)
    run = _row(
        played, server.canaries.version, against, judgement, reference=False, verdict=judgement.verdict, summary=line
    )
    run.id = canaries.save(engine, run)
    return Checked(judgement, run)


def _since(engine: Engine, model: str, played: Played) -> str:
    """Say what happened to the replica since its canaries were last healthy, and how many requests ago."""
    at, verdicts = played.at, ("healthy", "benign", "")
    healthy = canaries.latest(engine, model, played.replica, verdicts) or canaries.latest(engine, model, None, verdicts)
    found = events.between(engine, healthy.at if healthy else 0.0, at, played.model_id)
    seen = [event for event in found if event.replica in {"", played.replica}]
    last = {event.kind: event for event in seen if event.kind in _KEPT_EVENTS}
    if not last:
        return ""
    told = []
    for kind in (kind for kind in TELLING if kind in last):
        since = canaries.requests_since(engine, model, last[kind].at, at)
        told.append(f"{named(Happening(last[kind].at, kind, last[kind].detail))} {_ago(since)}")
    return f"; since they were last healthy: {', '.join(told)}"


def _ago(requests: int) -> str:
    return f"{plural(requests, 'request')} ago" if requests else "with no request since"
