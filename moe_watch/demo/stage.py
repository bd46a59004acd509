"""What the demo's story is told with: the servers, the traffic with its progress bar and live table, the commands."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import httpx
import msgspec
from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from moe_watch.demo import servers
from moe_watch.demo.traffic import Prompt, send
from moe_watch.status import Replica, Status
from moe_watch.store import engine, shadows

MODELS = Path(__file__).parent / "models"
MODEL = "gemma-4-tiny-moe"
DENSE = "gemma-4-tiny-dense"
WINDOW_S = 10
_START_TIMEOUT_S = 240
_POLL_S = 0.25


class Stage:
    """Runs the parts and shows them; everything started is stopped by ``stack``."""

    def __init__(self, console: Console, out: Path, stack: ExitStack) -> None:
        self.console = console
        self.out = out.resolve()
        self.out.mkdir(parents=True, exist_ok=True)
        self._stack = stack
        self.requests = 0
        for old in self.out.glob("moe-watch.db*"):
            shutil.rmtree(old) if old.is_dir() else old.unlink()  # the spool is a folder
        self._vllm_port = servers.free_port()
        self.env = {
            "MOE_WATCH_ENDPOINT": f"ipc://{self.out}/tap.sock",
            "MOE_WATCH_STORE__URL": f"sqlite:///{self.out}/moe-watch.db",
            "MOE_WATCH_REPLICA": "demo",
            "MOE_WATCH_SAMPLE_RATE": "1",
            "MOE_WATCH_VLLM_URL": f"http://127.0.0.1:{self._vllm_port}",
            "MOE_WATCH_WINDOW_S": str(WINDOW_S),
            "MOE_WATCH_CANARY__LOADS": '["16"]',  # one batch composition keeps the demo short
            "MOE_WATCH_HTTP__PAGE_SAMPLES": "true",
            "MOE_WATCH_SHADOW__REQUESTS_PER_S": "20",
            "MOE_WATCH_SHADOW__TOKENS_PER_S": "10000",
            "MOE_WATCH_SHADOW__BASE_RATE": "0.5",
        }
        self.running: dict[str, servers.Server] = {}

    def start_servers(self) -> None:
        """Start the MoE with the tap, the dense model and the sidecar, and wait until all of them answer."""
        with self.console.status("Starting vLLM with the MoE, vLLM with the dense model, and the sidecar …"):
            dense = self._track(servers.start_vllm("vllm-dense", MODELS / "dense", work=self.out, served_name=DENSE))
            self.env["MOE_WATCH_SHADOW__URL"] = f"{dense.url}/v1"
            sidecar = self._track(servers.start_sidecar(self.out, env=self.env))
            self.env["MOE_WATCH_HTTP__PORT"] = sidecar.url.rpartition(":")[2]
            self.start_moe(MODELS / "moe")
            sidecar.wait_ready("/healthz", _START_TIMEOUT_S)
            dense.wait_ready("/health", _START_TIMEOUT_S)
        for server in self.running.values():
            self.console.print(f"  {server.name:<11} {server.url}  (log: {server.log})")

    def start_moe(self, checkpoint: Path) -> None:
        """Serve ``checkpoint`` with the tap; ends the MoE that was served before, at the same address."""
        if before := self.running.pop("vllm-moe", None):
            before.stop()
        moe = servers.start_vllm(
            "vllm-moe",
            checkpoint,
            work=self.out,
            served_name=MODEL,
            args=["--middleware", "moe_watch.tap.samples.Middleware"],
            env=self.env,
            port=self._vllm_port,
        )
        self._track(moe).wait_ready("/health", _START_TIMEOUT_S)

    def _track(self, server: servers.Server) -> servers.Server:
        self._stack.callback(server.stop)
        self.running[server.name] = server
        return server

    def title(self, text: str) -> None:
        """Begin an act."""
        self.console.print()
        self.console.rule(f"[bold]{text}", align="left")

    def command(self, *args: str, may_exit: Sequence[int] = (0,)) -> None:
        """Run ``moe-watch ARGS`` as a user would and show what it prints; ``ServerError`` for another exit code."""
        self.console.print(f"[dim]$ moe-watch {' '.join(args)}")
        command = [sys.executable, "-m", "moe_watch.cli", *args]
        code = subprocess.run(command, env={**os.environ, **self.env}, check=False).returncode
        if code not in may_exit:
            raise servers.ServerError(f"moe-watch {args[0]} ended with code {code}")

    def status(self) -> Replica | None:
        """Return what the sidecar sees of the demo's replica, None while it sees none; ``ServerError`` if it died."""
        sidecar = self.running["sidecar"]
        try:
            answer = httpx.get(f"{sidecar.url}/api/v1/status", timeout=10).raise_for_status()
        except httpx.HTTPError as error:
            if sidecar.process.poll() is None:
                return None
            raise servers.ServerError(f"The sidecar ended.\n{sidecar.log_tail()}") from error
        replicas = msgspec.json.decode(answer.content, type=Status).replicas
        return next((replica for replica in replicas if replica.replica == "demo"), None)

    def open_episode(self, kind: str) -> float | None:
        """Return when an alarm of this kind that is open now was flagged, in seconds since the epoch."""
        replica = self.status()
        return next((e.flagged_at for e in replica.episodes if e.kind == kind), None) if replica else None

    def traffic(self, title: str, prompts: Sequence[Prompt]) -> list[float]:
        """Send ``prompts`` and show the verdict meanwhile; return when each was answered."""
        bar = Progress(TextColumn(f"  {title}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        task = bar.add_task("", total=len(prompts))
        answered: list[float] = []
        done = threading.Event()

        def note(_: object) -> None:
            answered.append(time.time())
            bar.advance(task)

        with Live(Group(bar, _table(None)), console=self.console, refresh_per_second=4) as live:

            def watch() -> None:
                try:
                    while not done.is_set():
                        live.update(Group(bar, _table(self.status())))
                        done.wait(_POLL_S)
                except servers.ServerError:
                    done.set()  # the main thread asks too, and tells

            watcher = threading.Thread(target=watch, daemon=True)
            watcher.start()
            asyncio.run(send(self.running["vllm-moe"].url, MODEL, prompts, on_answer=note, stop=done.is_set))
            self._settle(len(answered))
            live.update(Group(bar, _table(self.status())))
            done.set()
            watcher.join()
        self.console.print()
        return sorted(answered)

    def _settle(self, sent: int, timeout_s: float = 20) -> None:
        """Wait until the sidecar has seen all that was sent so far."""
        self.requests += sent
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            replica = self.status()
            if replica is not None and replica.routed >= self.requests:
                return
            time.sleep(_POLL_S)

    def settle_shadow(self, timeout_s: float = 45) -> None:
        """Wait until the dense model has answered what it was given, so that each act is judged by its own requests."""
        deadline = time.monotonic() + timeout_s
        store = engine.connect(self.env["MOE_WATCH_STORE__URL"])
        with self.console.status("The dense model answers the last sampled requests …"):
            while time.monotonic() < deadline and shadows.waiting(store):
                time.sleep(_POLL_S)
        store.dispose()

    def print_addresses(self) -> None:
        """Say where everything that was left running is, and how to end it."""
        self.console.print("\nLeft running:")
        for server in self.running.values():
            self.console.print(f"  {server.name:<11} {server.url}  (pid {server.process.pid})")
        self.console.print(f"Page: {self.running['sidecar'].url}/   End it with:")
        self.console.print("  kill " + " ".join(f"-- -{server.process.pid}" for server in self.running.values()))


def _table(replica: Replica | None) -> Table:
    """Return the few figures worth watching while traffic flows."""
    table = Table(box=None, padding=(0, 2))
    for column in ("verdict", "requests", "routed", "OOD share (95 %)", "drift"):
        table.add_column(column)
    if replica is not None:
        ood = replica.ood
        share = "-" if ood.value is None else f"{ood.value:.1%} ({ood.lower:.1%} to {ood.upper:.1%})"
        evidence = "alarm" if replica.episodes else f"{max(replica.evidence, 0):.0%} of an alarm"
        table.add_row(replica.verdict, str(replica.requests), str(replica.routed), share, evidence)
    return table
