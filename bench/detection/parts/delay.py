"""After how many requests a change is found, at the run length that false_alarms.py shows; its start and its end.

A stream begins with normal requests; then the change comes. What is counted starts at the change.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from bench.detection.traffic import pools, streams
from bench.detection.traffic.pools import LAYER, MOVED, Scored
from bench.detection.traffic.streams import Found, Rng, Scores
from bench.simulate import World
from moe_watch.detect import online

BEFORE: Final = 300  # normal requests before the change
LONGEST: Final = 5000  # requests after which a change counts as not found
TRIALS: Final = 5  # streams for each baseline
LASTS: Final = 300  # requests for which a change lasts whose end is awaited
Change = Callable[[Scored, int, Rng], Scores]


@dataclass(frozen=True)
class Case:
    """A change: how requests after it are drawn from the pools of a setting, and the goal for the median delay."""

    name: str
    setting: str
    change: Change
    goal: int | None = None


def _normal(scored: Scored, n: int, rng: Rng, setting: str) -> Scores:
    pool = scored.pools["normal"]
    if setting == "sessions":
        return pool[streams.by_session(len(pool), n, rng, session=pools.SESSION)]
    return pool[streams.apart(len(pool), n, rng)]


def unseen(kind: str, share: float) -> Change:
    """Return the change by which a share of the requests is of an unseen kind."""

    def change(scored: Scored, n: int, rng: Rng) -> Scores:
        other = scored.pools[kind]
        return np.where(rng.random((n, 1)) < share, other[rng.integers(0, len(other), n)], _normal(scored, n, rng, ""))

    return change


def in_sessions(kind: str, share: float) -> Change:
    """Return the change by which a share of the sessions is of an unseen kind."""

    def change(scored: Scored, n: int, rng: Rng) -> Scores:
        pool = scored.pools[kind]
        other = pool[streams.by_session(len(pool), n, rng, session=pools.SESSION)]
        mine = rng.random(-(-n // pools.SESSION)).repeat(pools.SESSION)[:n] < share
        return np.where(mine[:, None], other, _normal(scored, n, rng, "sessions"))

    return change


def mix(points: float, seed: int) -> Change:
    """Return the change by which the share of a topic, drawn at random, grows at the expense of all others."""
    popular = World(seed, layers=1, experts=2).popular

    def change(scored: Scored, n: int, rng: Rng) -> Scores:
        topic = int(rng.integers(len(popular)))
        other = scored.pools[f"topic{topic}"]
        more = rng.random((n, 1)) < points / (1 - popular[topic])
        return np.where(more, other[rng.integers(0, len(other), n)], _normal(scored, n, rng, ""))

    return change


def cases(seed: int) -> list[Case]:
    """Return all changes."""
    goals = {("far", 0.1): 30, ("near", 0.1): 60, ("far", 0.02): 250, ("near", 0.02): 700}
    found = [
        Case(f"{share:.0%} {kind} unseen", "steady", unseen(kind, share), goals.get((kind, share)))
        for kind in ("far", "near") for share in (0.02, 0.05, 0.1, 0.3)
    ]  # fmt: skip
    found.append(Case(f"{MOVED:.0%} of layer {LAYER} moved", "steady", unseen("moved", 1.0), 30))
    found += [Case(f"a topic +{100 * p:.0f} points", "steady", mix(p, seed), g) for p, g in ((0.05, None), (0.1, 400))]
    found += [
        Case(f"sessions, {s:.0%} {k} unseen", "sessions", in_sessions(k, s))
        for k in ("far", "near")
        for s in (0.02, 0.1)
    ]
    return [*found, Case("OLMoE base to SFT", "olmoe", unseen("sft", 1.0))]


def run(done: dict[str, Any], save: Callable[[dict[str, Any]], None], *, seed: int) -> dict[str, Any]:
    """Return ``done`` with what is missing; ``save`` is called after each row."""
    done |= {"promise": streams.PROMISE, "seed": seed, "before": BEFORE, "longest": LONGEST}
    rows = done.setdefault("rows", {})
    kept: dict[str, list[Scored]] = {}

    def scored(setting: str) -> list[Scored]:
        if setting not in kept:
            files = pools.prepare(setting, seed)
            kept[setting] = [pools.scored(file) for file in files if file.stem.split("-")[1] == "4000"]
        return kept[setting]

    known = pools.sources(seed)
    for case in cases(seed):
        if case.name not in rows and case.setting in known:
            rows[case.name] = {"goal": case.goal, **measure(scored(case.setting), case, seed)}
            save(done)
    if "ends" not in done:
        done["ends"] = [
            ends(scored("steady"), f"{share:.0%} {kind} unseen", unseen(kind, share), seed)
            for kind, share in (("far", 0.1), ("near", 0.1), ("far", 0.3), ("moved", 1.0))
        ]
        save(done)
    if "tolerance" not in done:
        done["tolerance"] = [tolerance(scored("steady"), 0.05, share, seed) for share in (0.0, 0.03, 0.05, 0.1, 0.2)]
        save(done)
    return done


def measure(found: list[Scored], case: Case, seed: int) -> dict[str, Any]:
    """Return delays, and how far the estimated start is from the true one (positive: too late)."""
    delays: list[Found | None] = []
    for number, scored in enumerate(found):
        rng = np.random.default_rng([seed, 4, number, *case.name.encode()])
        fresh = streams.detector(scored)
        for _ in range(TRIALS):
            before = _normal(scored, BEFORE, rng, case.setting)
            delays.append(streams.delay(fresh, before, case.change(scored, LONGEST, rng)))
    seen = [delay for delay in delays if delay]
    errors = [delay.after - delay.lasted for delay in seen]
    return {
        "delays": [delay.after if delay else None for delay in delays],
        "median": streams.median([delay.after if delay else None for delay in delays]),
        "found": len(seen) / len(delays),
        "start": [float(q) for q in np.quantile(errors, (0.1, 0.5, 0.9))] if errors else None,
    }


def ends(found: list[Scored], name: str, change: Change, seed: int) -> dict[str, Any]:
    """Return how long after the end of a change its alarm ends, and how often it ends while the change lasts."""
    after: list[float] = []
    early = watched = 0
    for number, scored in enumerate(found):
        rng = np.random.default_rng([seed, 5, number, *name.encode()])
        fresh = streams.detector(scored)
        _, state = _into_alarm(fresh, change(scored, LONGEST, rng))
        if state is None:
            continue
        _, alarms = online.follow(state, change(scored, LONGEST, rng))
        early += sum(not alarm.started for alarm in alarms)
        watched += LONGEST
        lasted, _ = online.follow(state, change(scored, LASTS, rng))
        if lasted.recovery is not None:
            _, alarms = online.follow(lasted, _normal(scored, LONGEST, rng, ""))
            after.append(float(alarms[0].at + 1) if alarms else np.inf)
    return {
        "change": name,
        "median": float(np.median(after)),
        "worst": float(np.max(after)),
        "trials": len(after),
        "early": early,
        "requests": watched,
    }


def _into_alarm(fresh: online.LiveState, scores: Scores) -> tuple[int, online.LiveState | None]:
    for start in range(0, len(scores), streams.STEP):
        fresh, alarms = online.follow(fresh, scores[start : start + streams.STEP])
        if alarms and fresh.recovery is not None:
            return start, fresh
    return len(scores), None


def tolerance(found: list[Scored], tolerated: float, share: float, seed: int) -> dict[str, Any]:
    """Return alarms of streams of which a share is far unseen, where a tolerated share is."""
    counts, delays = [], []
    for number, scored in enumerate(found):
        rng = np.random.default_rng([seed, 6, number])
        fresh = streams.detector(scored, tolerance=tolerated)
        stream = unseen("far", share)(scored, 2 * int(streams.PROMISE), rng)
        first = streams.until_alarm(fresh, stream)[1]
        counts.append(first is not None)
        delays.append(first.after if first else None)
    return {
        "tolerance": tolerated, "share": share, "streams": len(counts), "alarms": sum(counts),
        "median": streams.median(delays), "requests": 2 * int(streams.PROMISE),
    }  # fmt: skip


def tables(result: dict[str, Any]) -> dict[str, str]:
    """Return the tables of what was measured."""
    lines = [
        "| change | median requests until found | goal | found | its start, estimated (10 %, median, 90 %) |",
        "| --- | --- | --- | --- | --- |",
    ]
    for name, row in result["rows"].items():
        median = f"{row['median']:,.0f}" if row["median"] is not None else f"> {LONGEST:,}"
        goal = (
            ""
            if row["goal"] is None
            else f"{row['goal']}" + (" (missed)" if (row["median"] or np.inf) > row["goal"] else "")
        )
        start = " / ".join(f"{q:+,.0f}" for q in row["start"]) if row["start"] else ""
        lines.append(f"| {name} | {median} | {goal} | {row['found']:.0%} | {start} |")
    end = [
        "| change of 300 requests and more | alarm ends after (median / worst) | streams | ended while it lasted |",
        "| --- | --- | --- | --- |",
    ]
    end += [
        f"| {row['change']} | {row['median']:,.0f} / {row['worst']:,.0f} | {row['trials']} "
        f"| {row['early']} in {row['requests']:,} |"
        for row in result["ends"]
    ]
    bear = [
        "| tolerance | share of far unseen requests | in alarm within 20,000 requests | median requests until then |",
        "| --- | --- | --- | --- |",
    ]
    bear += [
        f"| {row['tolerance']:.0%} | {row['share']:.0%} | {row['alarms']} of {row['streams']} | "
        + ("" if row["median"] is None else f"{row['median']:,.0f}")
        + " |"
        for row in result["tolerance"]
    ]
    return {"delay": "\n".join(lines), "ends": "\n".join(end), "tolerance": "\n".join(bear)}
