"""What the demo's story is told with: the servers, the traffic with its progress bar and live table, the commands."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path

from rich.console import Console, Group
from rich.live import Live
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from demo import servers
from demo.claims import Said
from demo.servers import ServerError
from demo.sidecar import DYING_S, NO_ANSWER, Sidecar
from demo.traffic import Prompt, send
from demo.waiting import PATIENCE_S, Wait
from moe_watch.domain.status import Replica

MODELS = Path(__file__).parent / "models"
MODEL = "gemma-4-tiny-moe"
DENSE = "gemma-4-tiny-dense"
WINDOW_S = 10
_REPLICA = "demo"
_COMMAND = (sys.executable, "-m", "moe_watch.cli.main")
_POLL_S = 0.25


class Stage:
    """Runs the parts and shows them; everything started is stopped by ``stack``."""

    sidecar: Sidecar

    def __init__(self, console: Console, out: Path, stack: ExitStack) -> None:
        self.console = console
        self.out = out.resolve()
        self.out.mkdir(parents=True, exist_ok=True)
        self._stack = stack
        self.requests = 0
        self.alarms: list[str] = []  # of the last traffic, as they were seen first
        _clear(self.out)
        self._vllm_port = servers.free_port()
        self.env = {
            "MOE_WATCH_ENDPOINT": f"ipc://{self.out}/tap.sock",
            "MOE_WATCH_STORE__URL": f"sqlite:///{self.out}/moe-watch.db",
            "MOE_WATCH_REPLICA": _REPLICA,
            "MOE_WATCH_SAMPLE_RATE": "1",
            "MOE_WATCH_VLLM_URL": f"http://127.0.0.1:{self._vllm_port}",
            "MOE_WATCH_WINDOW_S": str(WINDOW_S),
            "MOE_WATCH_JOIN_TIMEOUT_S": "60",  # the processes of a busy machine are seconds apart
            "MOE_WATCH_CANARY__LOADS": '["16"]',  # one batch composition keeps the demo short
            "MOE_WATCH_HTTP__PAGE_SAMPLES": "true",
            "MOE_WATCH_SHADOW__REQUESTS_PER_S": "20",
            "MOE_WATCH_SHADOW__TOKENS_PER_S": "10000",
            "MOE_WATCH_SHADOW__BASE_RATE": "0.5",
        }
        self.running: dict[str, servers.Server] = {}

    def start_servers(self) -> None:
        """Start the MoE with the tap, the dense model and the sidecar, and wait until all of them answer."""
        dense = self._track(servers.start_vllm("vllm-dense", MODELS / "dense", work=self.out, served_name=DENSE))
        self.env["MOE_WATCH_SHADOW__URL"] = f"{dense.url}/v1"
        sidecar = self._track(servers.start_sidecar(self.out, env=self.env))
        self.env["MOE_WATCH_HTTP__PORT"] = sidecar.url.rpartition(":")[2]
        self.sidecar = Sidecar(sidecar, self.env["MOE_WATCH_STORE__URL"], MODEL, _REPLICA)
        self._stack.callback(self.sidecar.close)
        self.start_moe(MODELS / "moe")
        self._until_ready(sidecar, "/readyz")
        self._until_ready(dense, "/health")
        self.until("the sidecar hears the tap", self.sidecar.unheard)
        for server in self.running.values():
            self.console.print(f"  {server.name:<11} {server.url}  (log: {server.log})", soft_wrap=True)

    def start_moe(self, checkpoint: Path) -> None:
        """Serve ``checkpoint`` with the tap; ends the MoE that was served before, at the same address."""
        if before := self.running.pop("vllm-moe", None):
            before.stop()
        moe = servers.start_vllm(
            "vllm-moe",
            checkpoint,
            work=self.out,
            served_name=MODEL,
            args=["--middleware", "moe_watch.tap.middleware.Middleware"],
            env=self.env,
            port=self._vllm_port,
        )
        self._until_ready(self._track(moe), "/health")

    def _until_ready(self, server: servers.Server, path: str) -> None:
        self.until(f"{server.name} is ready", lambda: server.unready(path))

    def _track(self, server: servers.Server) -> servers.Server:
        self._stack.callback(server.stop)
        self.running[server.name] = server
        return server

    def title(self, text: str) -> None:
        """Begin an act."""
        self.console.print()
        self.console.print(f"[bold]{escape(text)}")

    def check(self) -> None:
        """Raise ``ServerError`` when one of the servers has ended."""
        for server in self.running.values():
            server.check()

    def until(self, expected: str, missing: Callable[[], str]) -> None:
        """Return when nothing is ``missing`` any more; say now and then what is."""
        wait = Wait(self.console, expected)
        with self.console.status(f"Waiting until {escape(expected)} …") as status:
            self._until(wait, missing, lambda: status.update(wait.told()))

    def _until(self, wait: Wait, missing: Callable[[], str], tell: Callable[[], object]) -> None:
        self.check()
        while seen := missing():
            wait.still(seen)
            tell()
            wait.pause()
            self.check()

    def command(self, *args: str) -> Said:
        """Run ``moe-watch ARGS`` as a user would, show what it prints and return it."""
        words = " ".join(args)
        self.console.print(f"[dim]$ moe-watch {escape(words)}", soft_wrap=True)
        wait = Wait(self.console, f"`moe-watch {words}` ends")
        with subprocess.Popen(
            [*_COMMAND, *args], stdout=subprocess.PIPE, text=True, env=self._environment()
        ) as process:
            try:
                text = self._output(process, wait)
            except BaseException:
                process.kill()
                raise
        self.console.file.write(text)
        self.console.file.flush()
        return Said(words, process.returncode, Text.from_ansi(text).plain)

    def _output(self, process: subprocess.Popen[str], wait: Wait) -> str:
        while True:
            try:
                return process.communicate(timeout=_POLL_S)[0]
            except subprocess.TimeoutExpired:
                self.check()
                wait.still("it is still running")

    def _environment(self) -> dict[str, str]:
        """Return the environment of a command: what it prints goes through a pipe, and is for the terminal here."""
        terminal = {"COLUMNS": str(self.console.width)}
        if self.console.is_terminal:
            terminal["FORCE_COLOR"] = "1"
        return {**os.environ, **self.env, **terminal}

    def traffic(self, title: str, prompts: Sequence[Prompt]) -> list[float]:
        """Send ``prompts``, show the verdict meanwhile, wait until all are judged; return when each was answered."""
        bar = Progress(TextColumn(f"  {title}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        task = bar.add_task("", total=len(prompts))
        answered: list[float] = []
        self.alarms = []

        def note(_: object) -> None:
            answered.append(time.time())
            bar.advance(task)

        with Live(Group(bar, _table(None)), console=self.console, refresh_per_second=4) as live:

            def look() -> str:
                live.update(Group(bar, _table(self.look())))
                return f"{len(answered)} of {len(prompts)} are answered"

            asyncio.run(self._send(prompts, note, look))
            self.requests += len(answered)
            wait = Wait(self.console, f"all {self.requests} requests so far are judged and stored")
            self._until(wait, lambda: self.sidecar.unjudged(self.requests), look)
            look()
        self.console.print()
        return sorted(answered)

    def seen(self) -> Replica:
        """Return what the sidecar sees of the replica."""
        found: list[Replica] = []

        def missing() -> str:
            found.extend(replica for replica in [self.look()] if replica is not None)
            return "" if found else NO_ANSWER

        self.until("the sidecar says what it sees", missing)
        return found[0]

    def look(self) -> Replica | None:
        """Return what the sidecar sees, and remember the alarms in it."""
        replica = self.sidecar.status()
        for alarm in replica.alarms if replica else ():
            if alarm.summary not in self.alarms:
                self.alarms.append(alarm.summary)
        return replica

    async def _send(self, prompts: Sequence[Prompt], note: Callable[[object], None], look: Callable[[], str]) -> None:
        """Send ``prompts`` and ``look`` meanwhile; ``ServerError`` as soon as a server has ended or refuses one."""
        moe = self.running["vllm-moe"]
        sending = asyncio.create_task(send(moe.url, MODEL, prompts, on_answer=note, timeout_s=PATIENCE_S))
        wait = Wait(self.console, "all requests are answered")
        try:
            while not sending.done():
                self.check()
                wait.still(await asyncio.to_thread(look))
                await asyncio.wait({sending}, timeout=_POLL_S)
        finally:
            sending.cancel()
            await asyncio.wait({sending})
        if error := sending.exception():
            moe.check(DYING_S)
            raise ServerError(f"{moe.name} does not serve: {_first(error)}\n{moe.log_tail()}") from error

    def print_addresses(self) -> None:
        """Say where everything that was left running is, and how to end it."""
        self.console.print("\nLeft running:")
        for server in self.running.values():
            self.console.print(f"  {server.name:<11} {server.url}  (pid {server.process.pid})")
        self.console.print(f"Page: {self.running['sidecar'].url}/   End it with:")
        self.console.print("  kill " + " ".join(f"-- -{server.process.pid}" for server in self.running.values()))


def _clear(out: Path) -> None:
    """Remove what an earlier demo left: its store, its logs and its report."""
    for pattern in ("moe-watch.db*", "*.log", "report"):
        for old in out.glob(pattern):
            shutil.rmtree(old) if old.is_dir() else old.unlink()  # the spool is a folder


def _first(error: BaseException) -> BaseException:
    """Return the first error of a group, which has been told of no other."""
    return _first(error.exceptions[0]) if isinstance(error, BaseExceptionGroup) else error


def _table(replica: Replica | None) -> Table:
    """Return the few figures worth watching while traffic flows."""
    table = Table(box=None, padding=(0, 2))
    for column in ("verdict", "requests", "routed", "OOD share (95 %)", "drift"):
        table.add_column(column)
    if replica is not None:
        ood = replica.ood
        share = "-" if ood.value is None else f"{ood.value:.1%} ({ood.lower:.1%} to {ood.upper:.1%})"
        evidence = "alarm" if replica.alarms else f"{max(replica.evidence, 0):.0%} of an alarm"
        table.add_row(replica.verdict, str(replica.requests), str(replica.routed), share, evidence)
    return table
