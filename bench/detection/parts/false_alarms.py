"""How often normal traffic raises an alarm, against what is promised: simulated and recorded, by size of baseline."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, Final

import numpy as np

from bench import data
from bench.detection.parts import naive
from bench.detection.traffic import pools, real, streams
from bench.detection.traffic.pools import Scored
from bench.detection.traffic.streams import PROMISE, Rng, Rows

REQUESTS: Final = 100_000  # of each stream
SPLITS: Final = 12  # baselines from each recording
AGAIN: Final = {"again": "sessions", "days again": "days"}  # settings measured in the next world too
Save = Callable[[dict[str, Any]], None]
Make = Callable[[int, int, Rng], Rows]
RECORDED: Final = (("tiny", 500), ("tiny", 1200), ("gptoss", 500), ("gptoss", 1000))
SAID: Final = {
    "steady": "simulated, independent requests",
    "sessions": f"simulated, sessions of {pools.SESSION}",
    "again": "the same in another world, not looked at before",
    "days": "simulated, day cycle of topics and lengths",
    "days again": "the same in another world, not looked at before",
    "olmoe": "simulated from OLMoE's counts",
    "tiny": "recorded, demo MoE",
    "gptoss": "recorded, gpt-oss-20b, answers in pieces",
}


def run(done: dict[str, Any], save: Save, *, seed: int) -> dict[str, Any]:
    """Return ``done`` with what is missing; ``save`` is called after each row."""
    data.path(real.GPTOSS)  # what is missing is said before hours are spent
    rows = done.setdefault("rows", {})
    done |= {"promise": PROMISE, "requests": REQUESTS, "seed": seed}
    for setting, size, found in _simulated(seed, rows):
        measure(f"{setting}/{size}", found, seed, done, save)
    for again, setting in AGAIN.items():
        if f"{again}/4000" not in rows:
            found = [pools.scored(file) for file in pools.prepare(setting, seed + 1)]
            measure(f"{again}/4000", found, seed + 1, done, save)
    for setting, size in RECORDED:
        if f"{setting}/{size}" not in rows:
            _real(setting, size, done, save)
    done["naive"] = naive.run(done.get("naive", {}), lambda found: save(done | {"naive": found}), seed=seed)
    return done


def _simulated(seed: int, rows: dict[str, Any]) -> Iterable[tuple[str, str, list[Scored]]]:
    for setting in pools.sources(seed):
        sizes = ("500", "2000", "4000", "10000") if setting == "steady" else ("4000",)
        missing = [size for size in sizes if f"{setting}/{size}" not in rows]
        files = pools.prepare(setting, seed) if missing else []
        for size in missing:
            yield setting, size, [pools.scored(f) for f in files if f.stem.split("-")[1] == size]


def _makers(setting: str) -> Make:
    makers: dict[str, Make] = {
        "sessions": partial(streams.by_session, session=pools.SESSION),
        "days": partial(streams.by_day, requests=pools.A_DAY),
    }
    return makers.get(setting, streams.apart)


def measure(key: str, found: list[Scored], seed: int, done: dict[str, Any], save: Save) -> None:
    """Put a row into ``done``: the alarms of each baseline on a stream of its own."""
    setting = key.split("/", maxsplit=1)[0]
    make = _makers(AGAIN.get(setting, setting))

    def alarms(number: int) -> int:
        rng = np.random.default_rng([seed, 1, number])
        pool = found[number].pools["normal"]
        return streams.alarms(streams.detector(found[number]), pool[make(len(pool), REQUESTS, rng)])

    _row(key, alarms, len(found), done, save)


def _real(setting: str, size: int, done: dict[str, Any], save: Save) -> None:
    def alarms(number: int) -> int:
        rng = np.random.default_rng([done["seed"], 2, number, size])
        found, start = real.scored((real.tiny if setting == "tiny" else real.gptoss)(size, rng))
        pool = found.pools["normal"]
        return streams.alarms(streams.detector(found), pool[streams.by_group(start, REQUESTS, rng)])

    _row(f"{setting}/{size}", alarms, SPLITS, done, save)


def _row(key: str, alarms: Callable[[int], int], count: int, done: dict[str, Any], save: Save) -> None:
    """Count the alarms of each baseline that is missing, then sum them up."""
    counts = done.setdefault("unfinished", {}).setdefault(key, [])
    while len(counts) < count:
        counts.append(alarms(len(counts)))
        save(done)
    done["rows"][key] = _summary(done["unfinished"].pop(key))
    save(done)


def _summary(counts: list[int]) -> dict[str, Any]:
    lengths = [streams.run_length(alarms, REQUESTS) for alarms in counts]
    mean, lower = streams.run_length(sum(counts), REQUESTS * len(counts))
    return {
        "alarms": counts,
        "run_length": mean,
        "lower": lower,
        "smallest": min(length for length, _ in lengths),
        "below": sum(length < PROMISE for length, _ in lengths),
        "proved": sum(limit >= PROMISE for _, limit in lengths),
    }


def tables(result: dict[str, Any]) -> dict[str, str]:
    """Return the tables of what was measured."""
    head = [
        "| traffic | baseline of | baselines | alarms | requests an alarm | at least (95 %) | worst baseline | below |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    lines = []
    for key, row in sorted(result["rows"].items(), key=lambda item: list(SAID).index(item[0].split("/")[0])):
        setting, size = key.split("/")
        none = "none: > " if not sum(row["alarms"]) else ""
        least = ("> " if not max(row["alarms"]) else "") + f"{row['smallest']:,.0f}"
        lines.append(
            f"| {SAID[setting]} | {int(size):,} | {len(row['alarms'])} | {sum(row['alarms'])} | {none}"
            f"{row['run_length']:,.0f} | {row['lower']:,.0f} | {least} | {row['below']} |"
        )
    return {"false alarms": "\n".join(head + lines), **naive.tables(result["naive"])}
