"""The deployment that ``fault_latency.py`` harms: a real vLLM with the tap, and a real sidecar that can be healed."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx

from bench import ROOT
from bench.quality.shadow_isolation import MODELS, on
from bench.sidecar.fault_latency_load import MODEL
from demo import servers
from moe_watch.servers.prometheus_text import samples
from moe_watch.tap.send.sender import HEALTH_S
from tests.support.postgres import Postgres

READY_S = 400
REPLICA = "bench"
QUEUE_FRAMES = 256  # of the tap: an eighth of the default, so that it overflows while a block lasts
_FLOOD, _AT_ONCE = 1200, 100  # prompts; more than the queue, ZMQ and the kernel hold for a sidecar that reads nothing


class Stage:
    """vLLM on one core; sidecar, stores and whoever harms them on the others, behind the client that shares those."""

    def __init__(self, work: Path, stack: ExitStack, postgres: Postgres | None) -> None:
        self.work, self.postgres = work, postgres
        self.endpoint = f"ipc://{work}/tap.sock"
        self._stores = {"postgres": postgres.url("bench")} if postgres else {}
        self._sidecar: servers.Server | None = None
        self._store = ""
        stack.callback(self.stop_sidecar)
        self.moe = self._start_vllm(stack)

    def _start_vllm(self, stack: ExitStack) -> servers.Server:
        core, *rest = sorted(os.sched_getaffinity(0))
        env = {"VLLM_CPU_OMP_THREADS_BIND": str(core), "OMP_NUM_THREADS": "1", "MOE_WATCH_ENDPOINT": self.endpoint,
               "MOE_WATCH_REPLICA": REPLICA, "MOE_WATCH_QUEUE_FRAMES": str(QUEUE_FRAMES)}  # fmt: skip
        args = ["--middleware", "moe_watch.tap.middleware.Middleware", "--no-enable-prefix-caching"]
        with on({core}):
            moe = servers.start_vllm("moe", MODELS / "moe", work=self.work, served_name=MODEL, args=args, env=env)
        stack.callback(moe.stop)
        os.sched_setaffinity(0, rest or {core})  # what is started from here on inherits it
        moe.wait_ready("/health", READY_S)
        return moe

    @property
    def sidecar(self) -> servers.Server:
        """The sidecar's process, dead or alive."""
        if self._sidecar is None:
            raise RuntimeError("no sidecar was started: heal first")
        return self._sidecar

    def url_of(self, store: str) -> str:
        """Return SQLAlchemy's address of a store by its name."""
        return self._stores.get(store) or f"sqlite:///{self.work}/{store}.db"

    def start_sidecar(self) -> servers.Server:
        """Start one in the place of the one before, on the same store; it is not waited for."""
        env = {"MOE_WATCH_ENDPOINT": self.endpoint, "MOE_WATCH_STORE__URL": self.url_of(self._store),
               "MOE_WATCH_SPOOL_DIR": f"{self.work}/{self._store}.spool", "OMP_NUM_THREADS": "1"}  # fmt: skip
        self._sidecar = servers.start_sidecar(self.work, env=env)
        stand_back(self._sidecar.process.pid)
        return self._sidecar

    def stop_sidecar(self) -> None:
        """End the sidecar, where there is one."""
        if self._sidecar is not None:
            self._sidecar.stop()

    def heal(self, store: str) -> None:
        """Return once a sidecar on ``store`` is well, hears the tap and has nothing left to write."""
        if self._sidecar is None or store != self._store or self._sidecar.process.poll() is not None:
            self.stop_sidecar()
            self._store = store
            self.start_sidecar().wait_ready("/readyz", 60)
        self.until(_well, "the sidecar is well")

    def status(self) -> dict[str, Any]:
        """Return what the sidecar says of itself."""
        found: dict[str, Any] = httpx.get(f"{self.sidecar.url}/api/v1/status", timeout=30).json()
        return found

    def until(self, true: Callable[[dict[str, Any]], bool], what: str, timeout_s: float = 60) -> None:
        """Return once ``true`` of the sidecar's status; raise with ``what`` was awaited when it takes too long."""
        deadline = time.monotonic() + timeout_s
        while not true(status := self.status()):
            if time.monotonic() > deadline:
                raise RuntimeError(f"{what}: not within {timeout_s:.0f} s: {status}\n{self.sidecar.log_tail()}")
            time.sleep(0.2)

    def counter(self, name: str, **labels: str) -> float:
        """Return the sum of the sidecar's samples of that name and labels."""
        text = httpx.get(f"{self.sidecar.url}/metrics", timeout=30).text
        return sum(sample.value for sample in samples(text, name) if labels.items() <= sample.labels.items())

    def dropped(self) -> int:
        """Return the frames that vLLM's taps have given up since they started; waits until both have said so."""
        time.sleep(HEALTH_S + 0.5)
        reasons = ("queue_full", "not_connected")
        return int(sum(self.counter("moe_watch_frames_dropped_total", replica=REPLICA, reason=r) for r in reasons))

    def flood(self) -> None:
        """Have so many requests of one token served that the tap's queue is full where nobody reads."""
        prompts = [[2, 300 + number] for number in range(_AT_ONCE)]
        for _ in range(_FLOOD // _AT_ONCE):
            body = {"model": MODEL, "prompt": prompts, "max_tokens": 1}
            httpx.post(f"{self.moe.url}/v1/completions", json=body, timeout=120).raise_for_status()


def _well(status: Mapping[str, Any]) -> bool:
    hears = any(one["replica"] == REPLICA and one["tap"]["up"] for one in status["replicas"])
    return hears and status["store"]["up"] and not status["store"]["spool_bytes"]


def stand_back(pid: int) -> None:
    """Let a process of a session of its own have only what the client leaves of their core: the client measures."""
    os.setpriority(os.PRIO_PROCESS, pid, min(19, os.getpriority(os.PRIO_PROCESS, 0) + 10))
    with contextlib.suppress(OSError):  # a kernel without autogroups
        Path(f"/proc/{pid}/autogroup").write_text("10")


def start_stranger(code: str, *arguments: str) -> subprocess.Popen[bytes]:
    """Start a process that has nothing to do with moe-watch and runs ``code``."""
    # It leads a group of its own, so that Ctrl-C leaves it to whoever started it.
    process = subprocess.Popen([sys.executable, "-c", code, *arguments], cwd=ROOT, start_new_session=True)
    stand_back(process.pid)
    return process
