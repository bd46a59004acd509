"""What the dense shadow sees, on real vLLM servers, by stage or all of them (about half an hour).

    python -m bench.quality.run STAGE|all

- ``learn``: normal traffic becomes the routing baseline and the reference of the quality alarms;
- ``ood``: traffic with unseen kinds: does the gap grow with the OOD decile;
- ``faults [--only a,b]``: faults of ``bench/incidents/faults/catalogue.py`` put into the live model
  one after the other;
- ``harm``: what rotated experts cost on held-out texts at all (no server);
- ``signals``: how often the reference-free signals call healthy texts garbled (no server);
- ``table``: writes ``bench/results/quality.json`` and the tables in ``docs/quality.md``.

Every request goes the product's own way: tap, sidecar, store, shadow in the sidecar, dense vLLM.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import click
import httpx
from sqlalchemy import Engine

from bench import DOCS, RESULTS, ROOT
from bench.quality import harm as rotated
from bench.quality import table as tables
from demo import servers
from demo.traffic import Prompt, mixture, send
from moe_watch.store import engine
from moe_watch.store.records import shadows

# Copies of what ``learn`` left, named quality-a and so on, can take faults at the same time; ``table`` reads them all.
OUT = Path(os.environ.get("QUALITY_OUT", ROOT / "out" / "quality")).resolve()
MODELS = ROOT / "demo" / "models"
MOE, DENSE = "tiny-moe", "tiny-dense"
LEARNED, MIXED, BROKEN, UNSEEN_SHARE, TOKENS = 600, 500, 240, 0.3, 32
FAULTS = (
    *("none", "experts_8_bits", "experts_4_bits", "experts_2_bits", "one_expert_zeroed", "upper_half_ignored"),
    *("first_layer_rotated", "third_layer_rotated", "last_layer_rotated", "two_experts_swapped", "not_renormalised"),
    *("equal_weights", "scale_lost", "shared_expert_lost", "negative_logits", "nan_router"),
)


@dataclass(frozen=True)
class Stack:
    """The whole product around two real servers."""

    moe: servers.Server
    store: Engine
    env: dict[str, str]

    def break_it(self, fault: str) -> None:
        """Put a fault into the live model; "none" takes the last one out."""
        body = {"method": "inject_fault", "args": [fault]}
        httpx.post(f"{self.moe.url}/collective_rpc", json=body, timeout=120).raise_for_status()

    def traffic(self, name: str, prompts: Sequence[Prompt]) -> None:
        """Begin the stretch ``name`` once the shadow is done with the one before; return when it is done with this."""
        self.settle()
        with (OUT / "stretches.jsonl").open("a") as file:
            file.write(json.dumps({"name": name, "since": time.time()}) + "\n")
        asyncio.run(send(self.moe.url, MOE, prompts, max_tokens=TOKENS))
        self.settle()

    def settle(self) -> None:
        """Return when every sampled request has its shadow row."""
        time.sleep(3)  # the sidecar writes the last requests
        while shadows.waiting(self.store):
            time.sleep(0.5)

    def command(self, *args: str) -> None:
        """Run ``moe-watch`` with the settings of the stack."""
        subprocess.run([sys.executable, "-m", "moe_watch.cli.main", *args], env={**os.environ, **self.env}, check=True)


@contextmanager
def stack() -> Iterator[Stack]:
    """Run the dense model, the sidecar with the shadow in it, and an MoE that can be broken."""
    OUT.mkdir(parents=True, exist_ok=True)
    env = {
        "MOE_WATCH_ENDPOINT": f"ipc://{OUT}/tap.sock",
        "MOE_WATCH_STORE__URL": f"sqlite:///{OUT}/moe-watch.db",
        "MOE_WATCH_REPLICA": "bench",
        "MOE_WATCH_SAMPLE_RATE": "1",
        "MOE_WATCH_SHADOW__BASE_RATE": "1",
        "MOE_WATCH_SHADOW__REQUESTS_PER_S": "1000",
        "MOE_WATCH_SHADOW__TOKENS_PER_S": "1000000",
        "MOE_WATCH_SHADOW__CONCURRENCY": "16",
        "MOE_WATCH_SHADOW__QUEUE": "4000",
        "OMP_NUM_THREADS": "1",
        "VLLM_SERVER_DEV_MODE": "1",
        "PYTHONPATH": str(ROOT),
    }
    # A cached prefix would carry keys and values of one fault into the next.
    broken = (
        "--middleware",
        "moe_watch.tap.middleware.Middleware",
        "--worker-extension-cls",
        "bench.incidents.faults.worker.Faults",
    )
    dense = servers.start_vllm("dense", MODELS / "dense", work=OUT, served_name=DENSE, env={"OMP_NUM_THREADS": "1"})
    env["MOE_WATCH_SHADOW__URL"] = dense.url
    sidecar = servers.start_sidecar(OUT, env=env)
    moe = servers.start_vllm(
        "moe", MODELS / "moe", work=OUT, served_name=MOE, args=(*broken, "--no-enable-prefix-caching"), env=env
    )
    try:
        for server, path in ((dense, "/health"), (moe, "/health"), (sidecar, "/healthz")):
            server.wait_ready(path, 300)
        yield Stack(moe, engine.connect(env["MOE_WATCH_STORE__URL"]), env)
    finally:
        for server in (moe, sidecar, dense):
            server.stop()


@click.group()
def main() -> None:
    """Measure what the dense shadow sees."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # servers are stopped whatever ends this


@main.command()
def learn() -> None:
    """Start anew: normal traffic, baseline, reference."""
    for old in (OUT / "stretches.jsonl", *OUT.glob("moe-watch.db*")):
        shutil.rmtree(old) if old.is_dir() else old.unlink(missing_ok=True)
    with stack() as running:
        running.traffic("learned", mixture(LEARNED, seed=1))
        running.command("baseline", "fit", "--promote")


@main.command()
def ood() -> None:
    """Send traffic with unseen kinds."""
    with stack() as running:
        time.sleep(5)  # the sidecar takes up the baseline
        running.traffic("mixed", mixture(MIXED, seed=2, unseen_share=UNSEEN_SHARE))


@main.command()
@click.option("--only", default=",".join(FAULTS), help="Faults, by name.")
def faults(only: str) -> None:
    """Break the model in each way and send normal traffic."""
    with stack() as running:
        for fault in only.split(","):
            running.break_it(fault)
            running.traffic(f"fault:{fault}", mixture(BROKEN, seed=100 + FAULTS.index(fault)))


@main.command()
def signals() -> None:
    """Count how often healthy texts are called garbled."""
    OUT.mkdir(parents=True, exist_ok=True)
    (OUT / "healthy.json").write_text(json.dumps(tables.healthy(), indent=1))


@main.command()
def harm() -> None:
    """Say what rotated experts cost on held-out texts, without any server."""
    OUT.mkdir(parents=True, exist_ok=True)
    rotated.keep(MODELS, OUT / "harm.json")


@main.command()
def table() -> None:
    """Write the results and the tables of the document."""
    tables.write(
        [OUT, *sorted(OUT.parent.glob(f"{OUT.name}-*"))],
        RESULTS / "quality.json",
        DOCS / "quality.md",
    )


@main.command()
@click.pass_context
def everything(ctx: click.Context) -> None:
    """Run all stages in order."""
    for stage in (learn, ood, faults, harm, signals, table):
        ctx.invoke(stage)


main.add_command(everything, "all")

if __name__ == "__main__":
    main()
