"""Incident scorecard on a real vLLM: ``python bench/incidents.py STAGE``.

Stages, each with servers of its own; what they find is kept under ``out/incidents``:

- ``record [--noise]``: eight healthy rounds become the reference;
- ``faults [--noise]``: every fault of ``faults/catalogue.py`` is put into the live model, judged, and taken out again;
- ``restarts``: vLLM is started anew, healthy and in broken configurations;
- ``healthy [--noise] --rounds N``: N more healthy rounds, none of which may be flagged;
- ``table``: writes ``bench/results/incidents.json`` and the table in ``docs/incidents.md``.

``--noise`` lets every matrix product sum in a random order, as GPU kernels do: vLLM on a CPU is deterministic.
"""

from __future__ import annotations

import asyncio
import json
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click
import httpx
from faults import catalogue, scoring
from faults.catalogue import INJECTED, RESTARTS, Restart
from sqlalchemy import Engine

from moe_watch.canary import prompts, replay
from moe_watch.canary.check import Checked, check, record
from moe_watch.demo import servers
from moe_watch.store import engine

HERE = Path(__file__).parent
OUT = HERE.parent / "out" / "incidents"
CHECKPOINT = HERE.parent / "moe_watch" / "demo" / "models" / "moe"
NAME = "tiny-moe"
LOADS = tuple(replay.LOADS.values())
ERROR = 0.001
ROUNDS = 8


@dataclass(frozen=True)
class Stack:
    """A sidecar and a vLLM whose model can be broken."""

    vllm: servers.Server
    sidecar: servers.Server
    store: Engine
    work: Path

    def rpc(self, method: str, *args: str) -> None:
        """Call a method of the worker extension."""
        body = {"method": method, "args": list(args)}
        httpx.post(f"{self.vllm.url}/collective_rpc", json=body, timeout=120).raise_for_status()

    def check(self) -> Checked:
        """Replay one round and judge it, as ``moe-watch canary run`` does."""
        return asyncio.run(self._check())

    async def _check(self) -> Checked:
        async with replay.client(self.vllm.url) as http:
            server = await replay.probe(http, prompts.load())
            return await check(http, server, self.store, loads=LOADS, error=ERROR)

    async def _record(self, rounds: int) -> int:
        async with replay.client(self.vllm.url) as http:
            server = await replay.probe(http, prompts.load())
            return await record(http, server, LOADS, self.store, rounds=rounds)

    def record(self, rounds: int) -> int:
        """Make ``rounds`` healthy rounds the reference."""
        return asyncio.run(self._record(rounds))


@contextmanager
def stack(*, noise: bool, restart: Restart | None = None) -> Iterator[Stack]:
    """Run a sidecar on the store of this kind of numerics, and vLLM beside it."""
    work = OUT / ("noisy" if noise else "quiet")
    work.mkdir(parents=True, exist_ok=True)
    env = {
        "MOE_WATCH_ENDPOINT": f"ipc://{work}/tap.sock",
        "MOE_WATCH_STORE__URL": f"sqlite:///{work}/moe-watch.db",
        "MOE_WATCH_REPLICA": "bench",
        "OMP_NUM_THREADS": "1",
        "VLLM_SERVER_DEV_MODE": "1",
        "PYTHONPATH": str(HERE),
        **dict(restart.env if restart is not None else ()),
    }
    args = ["--middleware", "moe_watch.tap.samples.Middleware", "--worker-extension-cls", "faults.worker.Faults"]
    checkpoint, more = CHECKPOINT, ()
    if restart is not None:
        checkpoint, more = changed(CHECKPOINT, work / "checkpoint", restart.change), restart.args
    sidecar = servers.start_sidecar(work, env=env)
    vllm = servers.start_vllm("vllm", checkpoint, work=work, served_name=NAME, args=[*args, *more], env=env)
    try:
        sidecar.wait_ready("/healthz", 60)
        vllm.wait_ready("/health", 300)
        running = Stack(vllm, sidecar, engine.connect(env["MOE_WATCH_STORE__URL"]), work)
        running.rpc("set_noise", "1" if noise else "0")
        yield running
    finally:
        vllm.stop()
        sidecar.stop()


def changed(source: Path, target: Path, change: str) -> Path:
    """Return a copy of the checkpoint with one thing changed in its configuration, or ``source`` itself."""
    if not change:
        return source
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(source, target)
    if change == "top_3":
        config = json.loads((target / "config.json").read_text())
        (target / "config.json").write_text(json.dumps(config | {"top_k_experts": 3}))
        return target
    template = catalogue.NO_BOS if change == "missing_bos" else catalogue.OTHER_TEMPLATE
    tokenizer = json.loads((target / "tokenizer_config.json").read_text())
    (target / "tokenizer_config.json").write_text(json.dumps(tokenizer | {"chat_template": template}))
    (target / "chat_template.jinja").unlink(missing_ok=True)
    return target


def keep(work: str, name: str, found: dict[str, Any]) -> None:
    """Add one result to those of its stage."""
    path = OUT / f"{work}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        file.write(json.dumps({"name": name, "at": time.time(), **found}) + "\n")


def told(done: Checked) -> dict[str, Any]:
    """Return what is kept of one check."""
    judged = done.judgement
    return {
        "run": done.run.id,
        "verdict": judged.verdict,
        "reason": judged.reason,
        "first_layer": judged.first_layer,
        "loads": list(judged.loads),
        "effect": judged.effect,
        "largest": max((e.value for e in judged.effects if e.feature.layer is not None), default=0.0),
        "loss": None if judged.loss is None else asdict(judged.loss),
        "summary": done.run.summary,
    }


def say(name: str, found: dict[str, Any]) -> None:
    """Print one result."""
    print(
        f"{name:28} {found['verdict']:10} {found['reason']:10} {found['first_layer']!s:5} {found['summary']}",
        flush=True,
    )


noisy = click.option("--noise", is_flag=True, help="Matrix products sum in a random order.")


@click.group(chain=False)
def main() -> None:
    """Score the canaries on real incidents."""


@main.command("record")
@noisy
def record_(*, noise: bool) -> None:
    """Record the reference."""
    shutil.rmtree(OUT / ("noisy" if noise else "quiet"), ignore_errors=True)
    with stack(noise=noise) as running:
        start = time.time()
        print(running.record(ROUNDS), f"rounds in {time.time() - start:.0f} s")


@main.command("faults")
@noisy
@click.option("--only", help="Names of faults, comma-separated.")
def faults_(only: str | None, *, noise: bool) -> None:
    """Inject every fault."""
    rows = [row for row in INJECTED if only is None or row.fault in only.split(",")]
    with stack(noise=noise) as running:
        for row in rows:
            running.rpc("inject_fault", row.fault)
            found = told(running.check())
            running.rpc("mend")
            keep(f"faults_{'noisy' if noise else 'quiet'}", row.fault, found)
            say(row.fault, found)


@main.command("restarts")
@click.option("--only", help="Names of restarts, comma-separated.")
def restarts_(only: str | None) -> None:
    """Start vLLM anew, healthy and broken."""
    for row in RESTARTS:
        if only is None or row.name in only.split(","):
            with stack(noise=False, restart=row) as running:
                found = told(running.check())
            keep("restarts", row.name, found)
            say(row.name, found)


@main.command("healthy")
@noisy
@click.option("--rounds", default=14)
def healthy_(rounds: int, *, noise: bool) -> None:
    """Check a healthy model again and again."""
    with stack(noise=noise) as running:
        for number in range(rounds):
            found = told(running.check())
            keep(f"healthy_{'noisy' if noise else 'quiet'}", str(number), found)
            say(str(number), found)


@main.command("table")
def table_() -> None:
    """Write the results and the document's table."""
    scoring.write(OUT, HERE / "results" / "incidents.json", HERE.parent / "docs" / "incidents.md")


if __name__ == "__main__":
    main()
