"""What the live path and a fit cost at 30 x 128, on one core."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any, Final

import numpy as np

from bench.detection.traffic import pools
from moe_watch.detect import online
from moe_watch.detect.common.batch import Batch

BATCHES: Final = (1, 8, 64, 256)
FITTED: Final = 100_000
ROUNDS: Final = 5
FIT = """
import json, resource, sys, time
from bench.detection.parts import cost
print(json.dumps(cost.fit(int(sys.argv[1]), int(sys.argv[2]))))
"""


def run(done: dict[str, Any], save: Callable[[dict[str, Any]], None], *, seed: int) -> dict[str, Any]:
    """Return microseconds a request by size of batch, and seconds and memory of a fit in a process of its own."""
    if "live" not in done:
        done["live"] = _live(seed)
        save(done)
    if "fit" not in done:
        command = [sys.executable, "-c", FIT, str(seed), str(FITTED)]
        done["fit"] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        save(done)
    return done


def _live(seed: int) -> dict[str, float]:
    pieces = {piece.name: piece for piece in pools.sources(seed)["steady"]}
    baseline = pools.fit(pools.fingerprints("steady", pieces["fit"], seed).select(slice(4000)))
    batch = pools.fingerprints("steady", pieces["near"], seed).select(slice(1024))
    found = {}
    for size in BATCHES:
        parts = [batch.select(slice(i, i + size)) for i in range(0, len(batch), size)]
        seconds = []
        for _ in range(ROUNDS):
            state = online.start(baseline, 1e12)  # no alarm: all is watched
            fresh = [Batch(p.prompt, p.decode, p.top_k, finished_at=p.finished_at) for p in parts]  # nothing cached
            began = time.perf_counter()
            for part in fresh:
                state, _ = online.observe(baseline, state, part)
            seconds.append(time.perf_counter() - began)
        found[str(size)] = 1e6 * min(seconds) / len(batch)
    return found


def fit(seed: int, n: int) -> dict[str, float]:
    """Fit n fingerprints that come in batches of 1,000 and return seconds and peak memory in MB."""
    import mmap  # noqa: PLC0415
    import resource  # noqa: PLC0415

    from moe_watch.detect.fit.baseline_fit import BaselineBuilder  # noqa: PLC0415

    builder, seconds, done = BaselineBuilder(), 0.0, 0
    pool = np.load(pools.CACHE / f"seed{seed}" / "steady" / "fit.npy", mmap_mode="r")
    while done < n:
        at = done % pool.shape[1]
        prompt, decode = np.array(pool[:, at : at + 1000], np.uint32)
        # What is read of the file is not what a fit needs, and would count as its memory.
        pool._mmap.madvise(mmap.MADV_DONTNEED)  # noqa: SLF001 - numpy has no other way
        batch = Batch(prompt, decode, 8, finished_at=np.arange(done, done + 1000, dtype=float))
        began = time.perf_counter()
        builder.add(batch)
        seconds += time.perf_counter() - began
        done += 1000
    began = time.perf_counter()
    raw = builder.build().to_bytes()
    seconds += time.perf_counter() - began
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"requests": n, "seconds": seconds, "peak_mb": peak, "model_mb": len(raw) / 1e6}


def tables(result: dict[str, Any]) -> dict[str, str]:
    """Return the table of costs."""
    lines = ["| what | measured | goal |", "| --- | --- | --- |"]
    lines += [f"| live path, batches of {size} | {us:.0f} us a request | 50 |" for size, us in result["live"].items()]
    fitted = result["fit"]
    needed = f"{fitted['seconds']:.1f} s, {fitted['peak_mb']:,.0f} MB"
    lines.append(f"| fit of {fitted['requests']:,} fingerprints | {needed} | 60 s, 2 GB |")
    lines.append(f"| a baseline, stored | {fitted['model_mb']:.1f} MB | |")
    return {"cost": "\n".join(lines)}
