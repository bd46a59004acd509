"""CPU time of each stage of the live path, in one process without a socket: ``python -m bench.sidecar.ingest_stages``.

Frames of 30 x 128 requests go through the sidecar's own stages, 600 requests at a time (what comes in 0.2 s at 3,000 a
second), with a baseline and every detector on. Prints microseconds of CPU per request; writes
``bench/results/ingest_stages_<store>.json``.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from typing import Any, Final

import click
import structlog

from bench import RESULTS
from bench.sidecar.taps import Taps
from moe_watch import wire
from moe_watch.detect import online
from moe_watch.detect.fit.baseline_fit import BaselineBuilder
from moe_watch.domain.window import Window
from moe_watch.metrics.board import Board
from moe_watch.settings import Settings
from moe_watch.sidecar.intake import Intake
from moe_watch.sidecar.join import Join
from moe_watch.sidecar.monitor import publish, replica_monitor
from moe_watch.sidecar.monitor.detectors import Normal
from moe_watch.sidecar.monitor.replicas import ReplicaMonitors
from moe_watch.sidecar.monitor.rolling_window import RollingWindow
from moe_watch.store import engine, migrate
from moe_watch.store.read import requests
from moe_watch.store.records import baselines, served_models
from moe_watch.store.write import request_rows
from moe_watch.store.write.batch import write

AT_ONCE: Final = 600
LEARN: Final = 2000
INSIDE: Final = (  # stages inside the monitors: owner, name of the function, stage
    (replica_monitor, "batch_of", "judge: unpack"),
    (Window, "add_requests", "judge: window, requests"),
    (Window, "add_routing", "judge: window, routing"),
    (RollingWindow, "add_routing", "judge: latest fingerprints"),
    (online, "observe", "judge: detectors"),
    (request_rows, "new_requests", "judge: rows and packing"),
    (publish, "batch", "judge: metrics"),
)


class Stages:
    """CPU seconds by stage."""

    def __init__(self) -> None:
        self.spent: Counter[str] = Counter()

    def run(self, stage: str, work: Callable[..., Any], *args: Any, **more: Any) -> Any:
        """Do ``work`` and book its time."""
        began = time.thread_time()
        done = work(*args, **more)
        self.spent[stage] += time.thread_time() - began
        return done

    def watch(self, owner: Any, name: str, stage: str) -> None:
        """Book every call of a function from now on."""
        work = getattr(owner, name)
        setattr(owner, name, lambda *args, **more: self.run(stage, work, *args, **more))


class LivePath:
    """The live path without socket and threads."""

    def __init__(self, url: str, stages: Stages) -> None:
        self.stages = stages
        self.store = engine.connect(url)
        migrate.upgrade(self.store)
        self.monitors = ReplicaMonitors(Settings(), Board(started_at=time.time()))
        self.intake, self.join, self.taps = Intake(), Join(5.0), Taps()
        for frame in self.intake.take([wire.encode(frame) for frame in self.taps.announce()], 0.0):
            if isinstance(frame, wire.Model):
                self.monitors.announce(frame, time.time())

    def pass_on(self, n: int) -> None:
        """Take n requests from bytes to the store."""
        raws, run = [wire.encode(frame) for _ in range(n) for frame in self.taps.request()], self.stages.run
        frames = run("decode and admit", self.intake.take, raws, time.monotonic())
        joined = run("join", self.join.add, frames, time.monotonic())
        writes = run("judge", self.monitors.process, joined, time.time())
        run("write", write, self.store, writes)

    def learn(self) -> None:
        """Fit a baseline on what is stored, and judge by it."""
        model = served_models.by_name(self.store)[0]
        builder = BaselineBuilder()
        for found in requests.fingerprints(self.store, model):
            builder.add(found.batch)
        saved = baselines.save(self.store, model, builder.build(), now=time.time())
        baselines.promote(self.store, model, saved.version, now=time.time())
        active = baselines.active(self.store)
        self.monitors.use({key: Normal(one, baselines.load(self.store, one.id)) for key, one in active.items()}, 0.0)


@click.command()
@click.option("--store", help="SQLAlchemy URL of an empty store; a fresh SQLite file by default.")
@click.option("--passes", default=15, show_default=True)
def main(store: str | None, passes: int) -> None:
    """Measure and print."""
    structlog.configure(processors=[], logger_factory=structlog.ReturnLoggerFactory())
    stages = Stages()
    with tempfile.TemporaryDirectory() as folder:
        path = LivePath(store or f"sqlite:///{folder}/bench.db", stages)
        for _ in range(LEARN // 500):
            path.pass_on(500)
        path.learn()
        path.pass_on(AT_ONCE)
        before = engine.size_bytes(path.store)
        for inside in INSIDE:
            stages.watch(*inside)
        stages.spent.clear()
        for _ in range(passes):
            path.pass_on(AT_ONCE)
        grown = engine.size_bytes(path.store) - before
        kind = path.store.dialect.name
    n = passes * AT_ONCE
    table = {stage: round(1e6 * spent / n, 1) for stage, spent in sorted(stages.spent.items())}
    table["all"] = round(sum(us for stage, us in table.items() if ":" not in stage), 1)
    for stage, us in table.items():
        print(f"{stage:30s} {us:8.1f} us/request")
    print(f"{'stored':30s} {grown / n:8.0f} bytes/request")
    RESULTS.mkdir(exist_ok=True)
    result = {"us_per_request": table, "stored_bytes_per_request": round(grown / n)}
    (RESULTS / f"ingest_stages_{kind}.json").write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
