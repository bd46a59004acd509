"""How soon a replica that differs from its siblings is flagged, and how often one that does not.

    python -m bench.sidecar.fleet

Simulated 30 x 128 traffic (``bench/simulate.py``) is handed to k replicas at random, 40 to 80 requests of each in a
block (a minute or longer in production); one of them has a fault. Medians over runs of the blocks until it is flagged,
at a promise of 10,000 blocks; flags on replicas that serve alike at a promise of 300, so that there are any to count.
Writes bench/results/fleet.json as it goes, what is in there is not run again, and the tables in docs/fleet.md.
"""

from __future__ import annotations

import json
import tempfile
import time
from typing import Any

import click
import numpy as np

from bench import DOCS, RESULTS
from bench.simulate import World
from moe_watch import wire
from moe_watch.detect.common.batch import Batch
from moe_watch.detect.drift import replica
from moe_watch.detect.drift.moments import Moments
from moe_watch.detect.drift.replica import Standing
from moe_watch.domain.window import Window
from moe_watch.fleet import siblings
from moe_watch.settings import Settings
from moe_watch.store import engine, migrate
from moe_watch.store.records import served_models, windows
from moe_watch.store.write.batch import Writes, write

POOL, RUNS, LONGEST = 1500, 9, 120
FEW, MANY = 40, 80
SIZES = (2, 3, 8, 50)
PROMISE, SHORT = 10_000.0, 300.0
BEGIN, END = "<!-- fleet:begin, made by python -m bench.sidecar.fleet -->", "<!-- fleet:end -->"


class Pool:
    """Requests whose sums over any rows are quick to take."""

    def __init__(self, counts: np.ndarray) -> None:
        self.counts = counts
        self.share = (counts / np.maximum(counts.sum(2, keepdims=True), 1)).astype(np.float32)
        self.root = np.sqrt(self.share)

    def block(self, random: np.random.Generator) -> Moments:
        """Return the sums over a block of one replica."""
        rows = random.integers(0, len(self.counts), int(random.integers(FEW, MANY)))
        sums = (values[rows].sum(0, dtype=np.float64) for values in (self.root, self.share))
        return Moments(len(rows), self.counts[rows].sum(0, dtype=np.uint64), *sums)


def faults(world: World, random: np.random.Generator) -> dict[str, Pool]:
    """Return what a bad replica's requests look like."""
    normal = world.draw(POOL, random).total
    swapped = normal.copy()
    swapped[:, 12, [3, 87]] = swapped[:, 12, [87, 3]]
    dead = normal.copy()
    dead[:, 20, 5] = 0
    return {
        "none": Pool(normal),
        "a tenth of one layer's choices moved": Pool(world.draw(POOL, random, moved=(7, 0.1)).total),
        "a fortieth of one layer's choices moved": Pool(world.draw(POOL, random, moved=(7, 0.025)).total),
        "two experts of one layer swapped": Pool(swapped),
        "one expert dead": Pool(dead),
    }


def until_flagged(pools: tuple[Pool, Pool], k: int, seed: int, normal: Moments | None) -> tuple[float, int]:
    """Return after how many blocks a replica with the first of ``pools`` is flagged, and how many others are."""
    random, standings = np.random.default_rng(seed), dict[str, Standing]()
    for block in range(1, LONGEST + 1):
        made = {f"r{i}": pools[min(i, 1)].block(random) for i in range(k)}
        standings = replica.observe(standings, made, PROMISE, normal)
        if standings["r0"].deviates:
            return block, sum(one.deviates for one in standings.values()) - 1
    return float("inf"), sum(one.deviates for one in standings.values())


def false_flags(pool: Pool, k: int, blocks: int) -> int:
    """Return how often any of k replicas that serve alike is flagged."""
    random, standings, flags = np.random.default_rng(k), dict[str, Standing](), 0
    for _ in range(blocks):
        after = replica.observe(standings, {f"r{i}": pool.block(random) for i in range(k)}, SHORT)
        flags += sum(one.deviates and not standings.get(n, replica.new()).deviates for n, one in after.items())
        standings = after
    return flags


@click.command()
def main() -> None:
    """Measure, print, and write the results."""
    pools = faults(World(), np.random.default_rng(0))
    whole = pools["none"]
    sums = (values.sum(0, dtype=np.float64) for values in (whole.root, whole.share))
    normal = Moments(POOL, whole.counts.sum(0, dtype=np.uint64), *sums)
    path = RESULTS / "fleet.json"
    results = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    for fault in list(pools)[1:]:
        if fault not in results:
            results[fault] = delays((pools[fault], whole), normal)
            path.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    for k, blocks in ((3, 1500), (8, 1500), (50, 300)):
        if f"false {k}" not in results:
            results[f"false {k}"] = [false_flags(whole, k, blocks), blocks]
            path.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    if "cost" not in results:
        results["cost"] = cost(whole)
        path.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    made = table(results, list(pools)[1:])
    print(made)
    page = DOCS / "fleet.md"
    text = page.read_text(encoding="utf-8")
    page.write_text(f"{text.partition(BEGIN)[0]}{BEGIN}\n{made}\n{END}{text.partition(END)[2]}", encoding="utf-8")


def delays(pools: tuple[Pool, Pool], normal: Moments) -> dict[str, list[float]]:
    """Return, by number of replicas, the median delay in blocks (-1: not within the run) and wrong flags."""
    found = {}
    for k in SIZES:
        runs = [until_flagged(pools, k, seed, normal if k == 2 else None) for seed in range(RUNS if k < 50 else 3)]
        median = float(np.median([blocks for blocks, _ in runs]))
        found[str(k)] = [median if np.isfinite(median) else -1.0, sum(wrong for _, wrong in runs)]
    return found


def cost(pool: Pool, k: int = 50) -> list[float]:
    """Return CPU seconds to compare a block of k replicas that a SQLite store holds, and KB of arrays of a window."""
    random, settings = np.random.default_rng(0), Settings()
    seen = wire.Model(replica="r", source="e", seq=0, sent_at=0.0, model="m", layers=30, experts=128, top_k=8)
    times, rows = [], []
    with tempfile.TemporaryDirectory() as folder:
        store = engine.connect(f"sqlite:///{folder}/fleet.db")
        migrate.upgrade(store)
        write(store, served_models.announcement(seen, 0.0))
        identity = served_models.identity(seen)
        for minute in range(3):
            rows = []
            for number in range(k):
                window, chosen = Window(30, 128, requests=MANY), pool.counts[random.integers(0, POOL, MANY)]
                window.add_routing(Batch(chosen, np.zeros_like(chosen), 8))
                rows.append(windows.row(identity, f"r{number}", 60.0 * minute, 60.0, window))
            write(store, Writes(windows=rows))
            began = time.process_time()
            siblings.compare(store, settings, identity, 60.0 * minute + 70)
            times.append(time.process_time() - began)
    sizes = [len(row.values["counts"]) + len(row.values["moments"]) for row in rows]
    return [round(min(times), 3), round(float(np.mean(sizes)) / 1e3)]


def table(results: dict[str, Any], faulty: list[str]) -> str:
    """Return both tables as Markdown."""
    lines = [f"| fault of one replica | {' | '.join(f'of {k}' for k in SIZES)} |", f"| --- |{' ---: |' * len(SIZES)}"]
    for fault in faulty:
        medians = [results[fault][str(k)][0] for k in SIZES]
        cells = [f"{median:g}" if median > 0 else f"not in {LONGEST}" for median in medians]
        lines.append(f"| {fault} | {' | '.join(cells)} |")
    wrong = sum(results[fault][str(k)][1] for fault in faulty for k in SIZES)
    lines += ["", f"Other replicas flagged in these runs: {wrong}.", ""]
    lines += ["| replicas that serve alike | blocks | flags | promised, at most |", "| ---: | ---: | ---: | ---: |"]
    for k in (3, 8, 50):
        flags, blocks = results[f"false {k}"]
        lines.append(f"| {k} | {blocks:,} | {flags} | {blocks / SHORT:g} |")
    seconds, kb = results["cost"]
    lines += [
        "",
        f"Comparing a block of 50 replicas at 30 x 128: {1e3 * seconds:.0f} ms of CPU, {kb} KB of arrays a window.",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
