"""Whether the memory of a sidecar stays flat under a long steady load.

    python -m bench.sidecar.soak [--minutes 60] [--rate 1500]

Synthetic replicas send 30 x 128 requests to a real ``moe-watch serve`` on SQLite, with a baseline and every detector
on. Memory is read twice a minute. Prints the readings and the slope over the second half, in MB an hour with its
standard error; writes ``bench/results/soak.json``.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import click
import numpy as np

from bench import RESULTS
from bench.sidecar.ingest import LEARN, Replicas, Sidecar, pace
from bench.sidecar.taps import Taps

EVERY_S = 30.0


@click.command()
@click.option("--minutes", default=60.0, show_default=True)
@click.option("--rate", default=1500.0, show_default=True, help="Requests a second.")
@click.option("--keep-minutes", default=5.0, show_default=True, help="Retention, so that pruning takes part.")
def main(minutes: float, rate: float, keep_minutes: float) -> None:
    """Send, and watch the memory."""
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        days = str(keep_minutes / 24 / 60)
        sidecar = Sidecar(work, f"sqlite:///{work}/soak.db", pinned=False, MOE_WATCH_STORE__KEEP_REQUESTS_DAYS=days)
        try:
            readings = list(soak(sidecar, rate, minutes * 60))
        finally:
            sidecar.server.stop()
    result = {"minutes": minutes, "rate_per_s": rate, **slope(readings), "readings": readings}
    print(json.dumps({name: value for name, value in result.items() if name != "readings"}))
    (RESULTS / "soak.json").write_text(json.dumps(result, indent=1) + "\n")


def soak(sidecar: Sidecar, rate: float, seconds: float):  # noqa: ANN201 - a generator of readings
    """Learn a baseline, then send for ``seconds``; yield a reading twice a minute."""
    replicas = Replicas(sidecar.endpoint, Taps())
    pace(replicas, min(rate, 100), LEARN / min(rate, 100))
    sidecar.settle(LEARN, 120)
    fit = [sys.executable, "-m", "moe_watch.cli.main", "baseline", "fit", "--promote"]
    subprocess.run(fit, env=sidecar.environment(), check=True)
    start, sent = time.monotonic(), 0
    while time.monotonic() - start < seconds:
        more, _ = pace(replicas, rate, EVERY_S)
        sent += more
        rows = sidecar.counter("moe_watch_store_rows_total") - LEARN
        reading = {
            "at_s": round(time.monotonic() - start), "sent": sent, "written": int(rows),
            "not_sent": replicas.not_sent, "rss_mb": round(sidecar.rss_mb(), 1), "cpu_s": round(sidecar.cpu_s(), 1),
            "store_mb": round(sidecar.counter("moe_watch_store_bytes") / 2**20, 1),
        }  # fmt: skip
        print(" ".join(f"{name}={value}" for name, value in reading.items()), flush=True)
        yield reading


def slope(readings: list[dict[str, Any]]) -> dict[str, float]:
    """Return how fast memory grew over the second half, MB an hour, by least squares."""
    half = readings[len(readings) // 2 :]
    hours, mb = (np.array([reading[name] for reading in half], float) for name in ("at_s", "rss_mb"))
    hours /= 3600
    (growth, _), covariance = np.polyfit(hours, mb, 1, cov=True)
    return {
        "rss_first_mb": readings[0]["rss_mb"], "rss_last_mb": readings[-1]["rss_mb"],
        "growth_mb_per_h": round(float(growth), 2), "standard_error": round(float(covariance[0, 0] ** 0.5), 2),
    }  # fmt: skip


if __name__ == "__main__":
    main()
