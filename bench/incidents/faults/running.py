"""What the scorecard runs on: a sidecar, and beside it a vLLM whose model can be broken in place."""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import httpx
from sqlalchemy import Engine

from bench import ROOT
from bench.incidents.faults import catalogue
from bench.incidents.faults.catalogue import Restart
from demo import servers
from moe_watch.canary import marks, prompts, replay
from moe_watch.canary.check import Checked, check, record
from moe_watch.canary.prompts import CanarySet
from moe_watch.canary.replay import Load
from moe_watch.settings import CanarySettings
from moe_watch.store import engine

OUT = ROOT / "out" / "incidents"
ERROR = 0.001
SETTINGS = ("quiet", "noisy", "second-quiet", "second-noisy")
"""Which model, and whether its matrix products sum in a random order."""
TRANSFORMERS = tuple(f"{model}transformers-{kind}" for model in ("", "second-") for kind in ("quiet", "noisy"))


def work(setting: str) -> Path:
    """Return where the store of a setting lies."""
    return OUT / setting


def checkpoint(setting: str) -> Path:
    """Return the model of a setting: the demo's, or the one that ``bench.incidents.faults.second`` trains."""
    second = setting.startswith("second")
    return OUT / "second" / "checkpoint" if second else ROOT / "demo" / "models" / "moe"


def loads(setting: str) -> list[Load]:
    """Return all batch compositions for the demo's quiet model, those of several requests at a time for the others.

    One request at a time is more than half of the time that a round takes.
    """
    return [load for load in replay.LOADS.values() if setting == "quiet" or load.canaries > 1]


def canaries(setting: str) -> CanarySet:
    """Return the set that ships; for the second model, every second prompt of it, which takes half the time."""
    ships = prompts.load()
    return replace(ships, prompts=ships.prompts[::2]) if setting.startswith("second") else ships


@dataclass(frozen=True)
class Stack:
    """The running parts."""

    vllm: servers.Server
    store: Engine
    canaries: CanarySet
    loads: Sequence[Load]

    def call(self, method: str, *args: str) -> None:
        """Call a method of the worker extension."""
        body = {"method": method, "args": list(args)}
        httpx.post(f"{self.vllm.url}/collective_rpc", json=body, timeout=120).raise_for_status()

    def check(self, *, sizes: bool) -> Checked:
        """Replay one round and judge it, as ``moe-watch canary run`` does; at all ``sizes`` of batch or the larger."""
        return asyncio.run(self._check([load for load in self.loads if sizes or load.canaries > 1]))

    async def _check(self, loads: Sequence[Load]) -> Checked:
        async with replay.client(self.vllm.url, None, marks.secret(CanarySettings(), self.store)) as http:
            server = await replay.probe(http, self.canaries)
            return await check(http, server, self.store, loads=loads, error=ERROR)

    def record(self, rounds: int) -> int:
        """Add ``rounds`` healthy rounds to the reference; return how many it has."""
        return asyncio.run(self._record(rounds))

    async def _record(self, rounds: int) -> int:
        async with replay.client(self.vllm.url, None, marks.secret(CanarySettings(), self.store)) as http:
            server = await replay.probe(http, self.canaries)
            return await record(http, server, self.loads, self.store, rounds=rounds, add=True)


@contextmanager
def stack(setting: str, restart: Restart | None = None) -> Iterator[Stack]:
    """Run a sidecar on the store of ``setting``, and vLLM beside it."""
    folder = work(setting)
    folder.mkdir(parents=True, exist_ok=True)
    env = {
        "MOE_WATCH_ENDPOINT": f"ipc://{folder}/tap.sock",
        "MOE_WATCH_STORE__URL": f"sqlite:///{folder}/moe-watch.db",
        "MOE_WATCH_REPLICA": "bench",
        "OMP_NUM_THREADS": "1",
        "VLLM_SERVER_DEV_MODE": "1",
        "PYTHONPATH": str(ROOT),
        **dict(restart.env if restart is not None else ()),
    }
    args = [
        "--middleware",
        "moe_watch.tap.middleware.Middleware",
        "--worker-extension-cls",
        "bench.incidents.faults.worker.Faults",
    ]
    model = checkpoint(setting)
    if restart is not None:
        model, args = _changed(model, folder / "checkpoint", restart.change), [*args, *restart.args]
    sidecar = servers.start_sidecar(folder, env=env)
    vllm = servers.start_vllm("vllm", model, work=folder, served_name="tiny-moe", args=args, env=env)
    try:
        sidecar.wait_ready("/healthz", 60)
        vllm.wait_ready("/health", 300)
        running = Stack(vllm, engine.connect(env["MOE_WATCH_STORE__URL"]), canaries(setting), loads(setting))
        running.call("set_noise", "1" if setting.endswith("noisy") else "0")
        yield running
    finally:
        vllm.stop()
        sidecar.stop()


def _changed(source: Path, target: Path, change: str) -> Path:
    """Return a copy of the checkpoint with one thing changed in its configuration, or ``source`` itself."""
    if not change:
        return source
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(source, target)
    if change == "top_k":
        config = json.loads((target / "config.json").read_text())
        name = next(key for key in ("top_k_experts", "num_experts_per_tok") if key in config)
        (target / "config.json").write_text(json.dumps(config | {name: config[name] - 1}))
        return target
    template = catalogue.NO_BOS if change == "missing_bos" else catalogue.OTHER_TEMPLATE
    tokenizer = json.loads((target / "tokenizer_config.json").read_text())
    (target / "tokenizer_config.json").write_text(json.dumps(tokenizer | {"chat_template": template}))
    (target / "chat_template.jinja").unlink(missing_ok=True)
    return target
