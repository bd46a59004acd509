"""Does the shadow slow the MoE down? ``python -m bench.quality.shadow_isolation`` (some ten minutes, both cores).

The shadow never calls the MoE's server (``tests/shadow/test_shadow_worker.py`` holds it to that), so what is left is
hardware that both share. Two set-ups on one machine, the MoE at a steady load, the shadow on and off in turns:

- ``apart``: the MoE on one core; dense model, sidecar and client on the other: stands for two machines;
- ``shared``: MoE and dense model on one core, the rest on the other: a dense model that takes the MoE's hardware.

Latencies are vLLM's own, from the store. ``--only`` measures one of them and keeps the other's result; both go to
``bench/results/shadow_isolation.json`` and into the table of ``docs/quality.md``.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
from sqlalchemy import select
from sqlalchemy.orm import Session

from bench import DOCS, RESULTS, ROOT
from demo import servers
from demo.traffic import mixture, send
from moe_watch.detect.common.weighted_estimates import Floats
from moe_watch.detect.quality.advantage import rounds
from moe_watch.store import engine
from moe_watch.store.schema import Request

OUT = ROOT / "out" / "shadow_isolation"
MODELS = ROOT / "demo" / "models"
CORES = {"apart": (0, 1), "shared": (0, 0)}  # of the MoE, of the dense model
REST = {1}  # sidecar, shadow and client
CONCURRENCY, TOKENS = 4, 24
SAID = {"apart": "on cores of their own", "shared": "on one core"}
LATENCIES = {
    "ttft_p50": "time to first token, median",
    "ttft_p95": "time to first token, 95th percentile",
    "tpot_p50": "time per output token, median",
    "tpot_p95": "time per output token, 95th percentile",
    "cpu": "CPU time of the MoE's processes for a request",
}


@dataclass(frozen=True)
class Turn:
    """The MoE's latencies over one turn, seconds."""

    ttft: Floats
    tpot: Floats
    cpu_s: float  # that the MoE's processes used for one request: other work on the machine does not change it


Pair = dict[bool, Turn]  # whether the shadow was on


@contextmanager
def on(cores: set[int]) -> Iterator[None]:
    """Let processes that are started inside run on ``cores`` only."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


@contextmanager
def stack(work: Path, cores: tuple[int, int]) -> Iterator[tuple[servers.Server, servers.Server]]:
    """Run both models on their cores; yields the MoE's server and the dense one's."""
    tap = {"MOE_WATCH_ENDPOINT": f"ipc://{work}/tap.sock", "MOE_WATCH_SAMPLE_RATE": "1"}
    started = []
    for name, core, args, env in (
        ("moe", cores[0], ("--middleware", "moe_watch.tap.middleware.Middleware"), tap),
        ("dense", cores[1], (), {}),
    ):
        bound = {"OMP_NUM_THREADS": "1", "VLLM_CPU_OMP_THREADS_BIND": str(core), **env}
        with on({core}):
            started.append(servers.start_vllm(name, MODELS / name, work=work, served_name=name, args=args, env=bound))
    try:
        for server in started:
            server.wait_ready("/health", 300)
        yield started[0], started[1]
    finally:
        for server in started:
            server.stop()


@contextmanager
def sidecar(work: Path, dense: servers.Server | None) -> Iterator[servers.Server]:
    """Run the sidecar, with the shadow at full share when ``dense`` is given."""
    env = {"MOE_WATCH_ENDPOINT": f"ipc://{work}/tap.sock", "MOE_WATCH_STORE__URL": f"sqlite:///{work}/store.db"}
    if dense is not None:
        shadow = {"URL": dense.url, "BASE_RATE": "1", "REQUESTS_PER_S": "100", "TOKENS_PER_S": "100000"}
        env |= {f"MOE_WATCH_SHADOW__{name}": value for name, value in shadow.items()}
    with on(REST):
        started = servers.start_sidecar(work, env=env)
    try:
        started.wait_ready("/healthz", 60)
        yield started
    finally:
        started.stop()


def load(work: Path, moe: servers.Server, seconds: float, seed: int) -> Turn:
    """Keep ``CONCURRENCY`` requests under way for ``seconds``; return what vLLM says of each."""
    since, end, used = time.time(), time.monotonic() + seconds, cpu(moe)
    prompts = mixture(3000, seed)
    with on(REST):
        asyncio.run(
            send(
                moe.url,
                "moe",
                prompts,
                concurrency=CONCURRENCY,
                max_tokens=TOKENS,
                stop=lambda: time.monotonic() > end,
            )
        )
    used = cpu(moe) - used
    time.sleep(2)  # the sidecar writes the last ones
    with Session(engine.connect(f"sqlite:///{work}/store.db")) as session:
        query = select(Request.ttft_s, Request.tpot_s).where(Request.finished_at > since, Request.tpot_s > 0)
        ttft, tpot = zip(*session.execute(query), strict=True)
    return Turn(np.array(ttft), np.array(tpot), used / len(ttft))


def cpu(server: servers.Server) -> float:
    """Return the seconds of CPU that a server and the processes in its group have used so far."""
    ticks = 0
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # it ended meanwhile
            fields = stat.read_text().rpartition(")")[2].split()
            if int(fields[2]) == server.process.pid:
                ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


@click.command()
@click.option("--turns", default=4, show_default=True)
@click.option("--seconds", default=10.0, show_default=True)
@click.option("--only", type=click.Choice(sorted(CORES)), multiple=True, default=tuple(CORES))
def main(turns: int, seconds: float, only: tuple[str, ...]) -> None:
    """Measure and print the table."""
    results = RESULTS / "shadow_isolation.json"
    said = json.loads(results.read_text()) if results.exists() else {}
    for name in only:
        work = OUT / name
        shutil.rmtree(work, ignore_errors=True)
        with stack(work, CORES[name]) as (moe, dense):
            asyncio.run(send(moe.url, "moe", mixture(60, 0), concurrency=CONCURRENCY, max_tokens=TOKENS))  # warm up
            pairs = [measure(work, (moe, dense), seconds, turn) for turn in range(turns)]
        said[name] = summary(pairs)
        results.parent.mkdir(exist_ok=True)
        results.write_text(json.dumps(said, indent=1) + "\n")
    print(write_table(said, DOCS / "quality.md"))


def measure(work: Path, running: tuple[servers.Server, servers.Server], seconds: float, turn: int) -> Pair:
    """Return one turn without and one with the shadow, the order changing from pair to pair."""
    moe, dense = running
    found = {}
    for shadowed in (False, True) if turn % 2 else (True, False):
        with sidecar(work, dense if shadowed else None):
            found[shadowed] = load(work, moe, seconds, 10 + turn)
    return found


def summary(pairs: list[Pair]) -> dict[str, Any]:
    """Return medians without the shadow and the ratio with it, by latency and quantile, with 95 % intervals."""
    requests = {name: sum(len(pair[on].ttft) for pair in pairs) for name, on in (("off", False), ("on", True))}
    said: dict[str, Any] = {"pairs": len(pairs), "requests": requests}
    for name in ("ttft", "tpot"):
        for quantile in (50, 95):
            off, with_shadow = (
                np.array([np.percentile(getattr(pair[on], name), quantile) for pair in pairs]) for on in (False, True)
            )
            ratio = rounds(with_shadow, off)
            said[f"{name}_p{quantile}"] = {
                "off_ms": round(1000 * float(np.median(off)), 2),
                "ratio": [round(x, 3) for x in (ratio.value, ratio.lower, ratio.upper)],
            }
    off, with_shadow = (np.array([pair[on].cpu_s for pair in pairs]) for on in (False, True))
    ratio = rounds(with_shadow, off)
    said["cpu"] = {
        "off_ms": round(1000 * float(np.median(off)), 2),
        "ratio": [round(x, 3) for x in (ratio.value, ratio.lower, ratio.upper)],
    }
    return said


def write_table(said: dict[str, Any], document: Path) -> str:
    """Write the table between its marks in ``document`` and return it."""
    lines = ["| MoE and dense model | latency | without the shadow | with it, times |", "| --- | --- | --- | --- |"]
    for name, row in said.items():
        for key, words in LATENCIES.items():
            ratio = "{:.3f} ({:.3f} to {:.3f})".format(*row[key]["ratio"])
            lines.append(f"| {SAID[name]} | {words} | {row[key]['off_ms']:.1f} ms | {ratio} |")
    counted = [
        f"{SAID[name]}: {row['pairs']} pairs of turns, {row['requests']['off']} requests without the shadow and "
        f"{row['requests']['on']} with it"
        for name, row in said.items()
    ]
    table = "\n".join([*lines, "", "; ".join(counted).capitalize() + "."]) + "\n"
    before, rest = document.read_text().split("<!-- isolation -->\n")
    document.write_text(
        f"{before}<!-- isolation -->\n{table}<!-- end isolation -->{rest.split('<!-- end isolation -->')[1]}"
    )
    return table


if __name__ == "__main__":
    main()
