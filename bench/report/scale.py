"""How long a weekly report takes over 10,000 to 1,000,000 stored requests of a 30 x 128 model, and how much memory.

    python -m bench.report.scale [--sizes 10000,100000,1000000] [--window 60] [--json out.json]

The store is filled directly (the rows are drawn, their arrays come from a pool of simulated windows), for the week of
the report and the week before. Each report runs in a process of its own, which prints the parts' seconds and its peak
memory; the best of three counts.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from sqlalchemy import insert
from sqlalchemy.orm import Session

from moe_watch.detect.common.batch import Batch
from moe_watch.detect.fit.baseline_fit import BaselineBuilder
from moe_watch.domain import window as aggregate
from moe_watch.domain.request import Joined
from moe_watch.store import engine, migrate, schema
from moe_watch.store.codecs import arrays
from moe_watch.store.records import baselines, served_models
from moe_watch.store.write.batch import write
from tests.support.store_factory import DAY, UNTIL, Story, World

WEEKS = 2
POOL = 24  # windows whose arrays are reused
CHUNK = 20_000
SHADOWED = 0.01  # share of the requests that the dense model replayed

REPORT = """
import json, resource, sys, time
began = time.perf_counter()
from moe_watch.report import as_html, as_json, as_markdown
from moe_watch.report.gather import gather
from moe_watch.report.terms import Period
from moe_watch.settings import Settings
from moe_watch.store import engine
seconds = {"import": time.perf_counter() - began}
until = float(sys.argv[2])
began = time.perf_counter()
report = gather(engine.connect(sys.argv[1]), Settings(), Period(until - 7 * 86400, until), now=until)
seconds["gather"] = time.perf_counter() - began
began = time.perf_counter()
written = [len(form.render(report)) for form in (as_html, as_markdown, as_json)]
seconds["write"] = time.perf_counter() - began
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
requests = report.reviews[0].totals.requests
print(json.dumps({"seconds": seconds, "peak_mb": peak, "requests": requests, "bytes": written}))
"""


def fill(path: Path, requests: int, window_s: float) -> None:
    """Fill a store with ``requests`` of the reported week and as many of the week before."""
    story = Story(layers=30, experts=128, top_k=8, baseline_day=None, drift=None, sample_rate=0.0)
    world = World(story)
    store = engine.connect(f"sqlite:///{path}")
    migrate.upgrade(store)
    announced = world.announcement()
    write(store, served_models.announcement(announced, UNTIL - WEEKS * 7 * DAY))
    model = served_models.by_name(store, announced.model)[0]
    random = np.random.default_rng(5)
    starts = np.arange(UNTIL - WEEKS * 7 * DAY, UNTIL, window_s)
    per_window = max(1, round(WEEKS * requests / len(starts)))
    drawn = [world.request(UNTIL - DAY) for _ in range(600)]
    _baseline(store, model, world, drawn)
    _windows(store, model.id, _pool(world, drawn, per_window), starts, random)
    _requests(store, model.id, WEEKS * requests, random)


def _pool(world: World, drawn: list[Joined], per_window: int) -> list[dict[str, object]]:
    """Return the columns of some windows of ``per_window`` requests each."""
    made = []
    for k in range(POOL):
        window = aggregate.Window(world.story.layers, world.story.experts)
        rest, some = per_window, [drawn[(k * 25 + i) % len(drawn)] for i in range(min(per_window, 200))]
        while rest > 0:
            part = some[:rest]
            batch = world.batch(part)
            window.add_requests(part)
            window.add_routing(batch)
            p = world.random.uniform(size=len(batch))
            window.add_scores(p, p <= 0.01)
            rest -= len(part)
        made.append(
            {
                "requests": window.requests,
                "routed_requests": window.routed_requests,
                "counts": arrays.pack(window.counts),
                "moments": arrays.pack(window.moments),
                "scalars": window.scalars(),
            }
        )
    return made


def _baseline(store: object, model: schema.Model, world: World, drawn: list[Joined]) -> None:
    builder = BaselineBuilder(minimum=200)
    batch: Batch = world.batch(drawn)
    builder.add(batch)
    row = baselines.save(store, model, builder.build(), now=UNTIL - 14 * DAY)  # type: ignore[arg-type]
    baselines.promote(store, model, row.version, now=UNTIL - 14 * DAY)  # type: ignore[arg-type]


def _windows(
    store: object, model_id: int, pool: list[dict[str, object]], starts: np.ndarray, random: np.random.Generator
) -> None:
    seconds = float(starts[1] - starts[0])
    with Session(store) as session, session.begin():  # type: ignore[arg-type]
        for at in range(0, len(starts), 500):
            rows = [
                {"model_id": model_id, "replica": "gpu-a", "start": float(start), "seconds": seconds}
                | pool[int(random.integers(len(pool)))]
                for start in starts[at : at + 500]
            ]
            session.execute(insert(schema.Window), rows)


def _requests(store: object, model_id: int, total: int, random: np.random.Generator) -> None:
    """Write the requests' rows, and shadow rows for some of them."""
    fixed = {
        "choice": 0, "replica": "gpu-a", "model_id": model_id, "outcome": "stop", "output_tokens": 150,
        "cached_tokens": 0, "decode_routed": 149, "preemptions": 0, "batch_mean": 8.0, "e2e_s": 3.0, "queue_s": 0.01,
        "ttft_s": 0.2, "tpot_s": 0.03, "finish_reason": "stop", "corrupted": False, "images": 0, "user_hash": "",
        "canary": False, "entropy": 2.1, "margin": 0.1, "baseline_id": 1,
    }  # fmt: skip
    for start in range(0, total, CHUNK):
        n = min(CHUNK, total - start)
        tokens, p = random.integers(10, 40_000, n), random.uniform(size=n)
        rows = [
            {
                **fixed,
                "request_id": f"chatcmpl-{start + i:08x}",
                "finished_at": UNTIL - WEEKS * 7 * DAY * (1 - (start + i) / total),
                "prompt_tokens": int(tokens[i]),
                "prompt_routed": int(tokens[i]),
                "domain": "chat",
                "ood_p": float(p[i]),
                "ood_score": float(1 / p[i]),
            }
            for i in range(n)
        ]
        with Session(store) as session, session.begin():  # type: ignore[arg-type]
            session.execute(insert(schema.Request), rows)
            picked = np.flatnonzero(random.uniform(size=n) < SHADOWED)
            chosen = [start + int(i) + 1 for i in picked]
            if chosen:
                session.execute(insert(schema.Shadow), [_shadow(pk, total, random) for pk in chosen])


def _shadow(pk: int, total: int, random: np.random.Generator) -> dict[str, object]:
    nll = float(random.normal(0.9, 0.1))
    return {
        "request_pk": pk, "at": UNTIL - WEEKS * 7 * DAY * (1 - pk / total), "outcome": "scored",
        "sample_weight": 100.0, "weight": 100.0, "dense_model": "dense", "nll_moe_output": nll + 0.05,
        "nll_dense_output": nll, "agreement": 0.6, "defects": {"moe": [], "dense": []}, "dense_tpot_s": 0.05,
        "dense_ttft_s": 0.4, "dense_concurrency": 8.0,
    }  # fmt: skip


def measure(path: Path) -> dict[str, object]:
    """Return the best of three reports over the store at ``path``."""
    command = [sys.executable, "-c", REPORT, f"sqlite:///{path}", str(UNTIL)]
    runs = [json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout) for _ in range(3)]
    return dict(min(runs, key=lambda run: sum(run["seconds"].values())))


def main() -> None:
    """Print a table and, if asked, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", default="10000,100000,1000000")
    parser.add_argument("--window", type=float, default=60.0, help="seconds in a window")
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    found = []
    print(f"windows of {asked.window:g} s, one replica, 30 x 128\n")
    print("| requests in the week | windows read | store, MB | read, s | write, s | all, s | peak memory, MB |")
    print("| ---: | ---: | ---: | ---: | ---: | ---: | ---: |")
    for size in (int(text) for text in asked.sizes.split(",")):
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "store.db"
            began = time.perf_counter()
            fill(path, size, asked.window)
            filled = time.perf_counter() - began
            run = measure(path)
            seconds: dict[str, float] = run["seconds"]  # type: ignore[assignment]
            megabytes = sum(file.stat().st_size for file in Path(folder).iterdir()) / 1e6
            windows = round(WEEKS * 7 * DAY / asked.window)
            print(
                f"| {run['requests']:,} | {windows:,} | {megabytes:,.0f} | {seconds['gather']:.2f} | "
                f"{seconds['write']:.2f} | {sum(seconds.values()):.2f} | {run['peak_mb']:.0f} |",
                flush=True,
            )
            found.append({"size": size, "window_s": asked.window, "store_mb": megabytes, "fill_s": filled, **run})
    if asked.json:
        asked.json.parent.mkdir(parents=True, exist_ok=True)
        asked.json.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
