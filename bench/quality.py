"""What the dense shadow sees, on real vLLM servers: ``python bench/quality.py all`` (about half an hour), or by stage.

- ``learn``: normal traffic becomes the routing baseline and the reference of the quality alarms;
- ``ood``: traffic with unseen kinds: does the gap grow with the OOD decile;
- ``faults [--only a,b]``: faults of ``faults/catalogue.py`` put into the live model, one after the other;
- ``signals``: how often the reference-free signals call healthy texts garbled (no server);
- ``table``: writes ``bench/results/quality.json`` and the tables in ``docs/quality.md``.

Every request goes the product's own way: tap, sidecar, store, shadow in the sidecar, dense vLLM.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click
import httpx
import numpy as np
import quality_table
from sqlalchemy import Engine, func, select
from sqlalchemy.orm import Session

from moe_watch.demo import servers
from moe_watch.demo.traffic import Prompt, mixture, send
from moe_watch.detect import gap
from moe_watch.detect.quality import Observed
from moe_watch.store import engine, shadows
from moe_watch.store.models import Request, Shadow

HERE = Path(__file__).parent
OUT = HERE.parent / "out" / "quality"
MODELS = HERE.parent / "moe_watch" / "demo" / "models"
MOE, DENSE = "tiny-moe", "tiny-dense"
LEARNED, MIXED, BROKEN, UNSEEN_SHARE, TOKENS = 600, 600, 200, 0.3, 32
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

    def traffic(self, prompts: Sequence[Prompt], timeout_s: float = 240) -> Observed:
        """Send ``prompts`` and return what the shadow found of them, all of it."""
        since = time.time()
        asyncio.run(send(self.moe.url, MOE, prompts, max_tokens=TOKENS))
        deadline = time.monotonic() + timeout_s
        with Session(self.store) as session:
            while self._rows(session, since) < len(prompts) and time.monotonic() < deadline:
                session.rollback()
                time.sleep(0.5)
            seen = shadows.observed(session, since, time.time())
        if len(seen.at) < len(prompts):
            click.echo(f"  {len(prompts) - len(seen.at)} requests did not come back from the shadow")
        return seen

    def _rows(self, session: Session, since: float) -> int:
        return session.scalar(select(func.count()).select_from(Shadow).where(Shadow.at > since)) or 0

    def command(self, *args: str) -> None:
        """Run ``moe-watch`` with the settings of the stack."""
        subprocess.run([sys.executable, "-m", "moe_watch.cli", *args], env={**os.environ, **self.env}, check=True)


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
        "PYTHONPATH": str(HERE),
    }
    # A cached prefix would carry keys and values of one fault into the next.
    broken = ("--middleware", "moe_watch.tap.samples.Middleware", "--worker-extension-cls", "faults.worker.Faults")
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


def keep(name: str, seen: Observed, **more: Any) -> None:
    """Keep one stretch of traffic with all of its columns."""
    columns = {key: value for key, value in asdict(seen).items() if key != "groups"}
    record = {"name": name, **columns, "domain": list(seen.groups["domain"]), **more}
    with (OUT / "runs.jsonl").open("a") as file:
        file.write(json.dumps(record, default=lambda array: array.tolist()) + "\n")


@click.group()
def main() -> None:
    """Measure what the dense shadow sees."""


@main.command()
def learn() -> None:
    """Start anew: normal traffic, baseline, reference."""
    for old in ("runs.jsonl", *(path.name for path in OUT.glob("moe-watch.db*"))):
        (OUT / old).unlink(missing_ok=True)
    with stack() as running:
        keep("learned", running.traffic(mixture(LEARNED, seed=1)))
        running.command("baseline", "fit", "--promote")


@main.command()
def ood() -> None:
    """Send traffic with unseen kinds."""
    with stack() as running:
        time.sleep(5)  # the sidecar takes up the baseline
        keep("mixed", running.traffic(mixture(MIXED, seed=2, unseen_share=UNSEEN_SHARE)))


@main.command()
@click.option("--only", default=",".join(FAULTS), help="Faults, by name.")
def faults(only: str) -> None:
    """Break the model in each way and send normal traffic."""
    with stack() as running:
        for fault in only.split(","):
            running.break_it(fault)
            seen = running.traffic(mixture(BROKEN, seed=100 + FAULTS.index(fault)))
            keep(f"fault:{fault}", seen, ood_rate=ood_rate(running.store, seen))
            click.echo(f"{fault:22} gap {gap.mean(seen.gap, seen.weight).value:+.3f} {np.nanmean(seen.garbled):.3f}")


def ood_rate(store: Engine, seen: Observed) -> float | None:
    """Return the share of the requests of this stretch that their routing flagged."""
    with Session(store) as session:
        query = select(Request.ood_p).where(Request.finished_at > seen.at.min() - 60, Request.ood_p.is_not(None))
        p = np.array(list(session.scalars(query.order_by(Request.finished_at.desc()).limit(len(seen.at)))))
    return float((p <= 0.01).mean()) if len(p) else None


@main.command()
def signals() -> None:
    """Count how often healthy texts are called garbled."""
    OUT.mkdir(parents=True, exist_ok=True)
    (OUT / "healthy.json").write_text(
        json.dumps(quality_table.healthy(HERE.parent.parent / "shared" / "data"), indent=1)
    )


@main.command()
def table() -> None:
    """Write the results and the tables of the document."""
    quality_table.write(OUT, HERE / "results" / "quality.json", HERE.parent / "docs" / "quality.md")


@main.command()
@click.pass_context
def everything(ctx: click.Context) -> None:
    """Run all stages in order."""
    for stage in (learn, ood, faults, signals, table):
        ctx.invoke(stage)


main.add_command(everything, "all")

if __name__ == "__main__":
    main()
