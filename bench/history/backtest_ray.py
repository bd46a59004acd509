"""A backtest on a local Ray cluster of one and of two workers: ``python -m bench.history.backtest_ray``.

Eight replicas of a 30 x 128 model with 5,000 stored requests each, as Parquet; the same detectors, the same answer.
Prints seconds with and without the start of the cluster; writes ``bench/results/backtest_ray.json``.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Iterator
from types import SimpleNamespace

import click
import numpy as np

from bench import RESULTS
from bench.simulate import World
from moe_watch import wire
from moe_watch.detect.common.batch import Batch
from moe_watch.detect.fit.baseline_fit import Baseline, BaselineBuilder
from moe_watch.ops import archive, backtest
from moe_watch.store.codecs import counts
from moe_watch.store.schema import Model

REPLICAS, POOL, CHUNK = 8, 1000, 500
START = 1_790_000_000.0
MODEL = Model(identity="b" * 32, name="bench", layers=30, experts=128, top_k=8, first_seen=START, detail={})


def recorded(batch: Batch, each: int) -> Iterator[list[SimpleNamespace]]:
    """Yield rows as the store has them, a chunk at a time; replicas take turns."""
    prompt, decode = (counts.pack_all([wire.pack_counts(one) for one in part]) for part in (batch.prompt, batch.decode))
    pick = np.random.default_rng(2).integers(POOL, size=REPLICAS * each).tolist()
    fixed = {
        "choice": 0, "outcome": "stop", "prompt_tokens": 1, "output_tokens": 1, "domain": "", "images": 0,
        "canary": False, "user_hash": "", "ood_p": None, "ttft_s": None, "tpot_s": None, "confidence": None,
    }  # fmt: skip
    for start in range(0, len(pick), CHUNK):
        yield [
            SimpleNamespace(
                replica=f"r{index % REPLICAS}", request_id=f"q-{index}", finished_at=START + index,
                prompt=prompt[pick[index]], decode=decode[pick[index]], **fixed,
            )
            for index in range(start, min(start + CHUNK, len(pick)))
        ]  # fmt: skip


def fitted(world: World) -> Baseline:
    """Return a baseline of the same traffic."""
    builder = BaselineBuilder()
    builder.add(world.draw(2000, np.random.default_rng(3)))
    return builder.build()


@click.command()
@click.option("--each", default=5000, show_default=True, help="Requests of each replica.")
def main(each: int) -> None:
    """Run here, on one worker and on two, and compare."""
    world = World(longest=2048)
    baseline = fitted(world)
    with tempfile.TemporaryDirectory() as address:
        archive.write(recorded(world.draw(POOL, np.random.default_rng(1)), each), MODEL, address)
        source = archive.ParquetSource(address, archive.shapes(address)[MODEL.identity])
        names = archive.replicas(address, MODEL.identity)
        start = time.monotonic()
        here = list(backtest.run_here(names, source, baseline, 10_000, 0.01))
        result: dict[str, object] = {"requests": REPLICAS * each, "here_s": round(time.monotonic() - start, 1)}
        for workers in (1, 2):
            times = []
            for some in ([], names):
                start = time.monotonic()
                there = list(
                    backtest.run_on_ray(some, source, baseline, 10_000, 0.01, address="local", workers=workers)
                )
                times.append(time.monotonic() - start)
            result[f"workers_{workers}"] = {
                "all_s": round(times[1], 1), "without_start_s": round(times[1] - times[0], 1), "same": there == here,
            }  # fmt: skip
    print(json.dumps(result))
    (RESULTS / "backtest_ray.json").write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
