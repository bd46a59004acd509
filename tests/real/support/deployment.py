"""What production has, on this machine: vLLM with the tap, the sidecar, Prometheus, Alertmanager and a pager."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from demo import servers
from demo.traffic import Prompt, send
from moe_watch.provision import prometheus
from moe_watch.provision.alert import Links
from tests.real.support import monitoring
from tests.real.support.monitoring import Webhook
from tests.support.otlp_receiver import Received, receiver

MODELS = Path(servers.__file__).parent / "models"
MOE, REPLICA = "tiny-moe", "vllm-0"
_START_S = 400  # a busy machine takes that long
# A few seconds instead of minutes; serving keeps its quarter of an hour, a CPU's speed is not what is tested, and
# the monitor gets longer than a busy machine needs for a scrape.
_SHORT: dict[str, str] = {"moe-watch-model": "3s", "moe-watch-traffic": "3s", "moe-watch-monitor": "30s"}


def quick_rules() -> dict[str, Any]:
    """Return the shipped rules, evaluated each second and with short waits."""
    rules = prometheus.rules(Links("http://grafana.example"))
    for group in rules["groups"]:
        group["interval"] = "1s"
        for rule in group["rules"]:
            rule["for"] = _SHORT.get(group["name"], rule["for"])
    return rules


@dataclass
class Deployment:
    """The running parts and how to use them."""

    work: Path
    moe: servers.Server
    sidecar: servers.Server
    env: dict[str, str]
    collector: Received
    hook: Webhook = field(default_factory=Webhook)
    prometheus: str = ""
    sent: list[str] = field(default_factory=list)

    def command(self, *arguments: str) -> str:
        """Run ``moe-watch`` as a user would; return what it printed."""
        done = subprocess.run(
            [sys.executable, "-m", "moe_watch.cli.main", *arguments],
            env={**servers.SURROUNDINGS, **self.env},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode in {0, 2}, done.stdout + done.stderr
        return done.stdout

    def traffic(self, prompts: Sequence[Prompt], until: Callable[[], bool] = lambda: False) -> None:
        """Send prompts to the MoE until they or ``until`` end, and wait until the sidecar has seen them."""
        stop = _Slowly(until)
        answers = asyncio.run(send(self.moe.url, MOE, prompts, concurrency=24, max_tokens=16, stop=stop))
        self.sent += [answer.request_id for answer in answers]
        monitoring.wait_until(self.has_seen_all, "the sidecar has counted what was sent")

    def has_seen_all(self) -> bool:
        """Return whether the sidecar has judged every request that was sent."""
        return self.replica()["routed"] >= len(self.sent)

    def replica(self) -> dict[str, Any]:
        """Return what the sidecar says of the replica."""
        found = [r for r in self.status()["replicas"] if r["replica"] == REPLICA]
        return found[0] if found else {"routed": 0, "tap": {"up": False}, "alarms": []}

    def status(self) -> dict[str, Any]:
        """Return the sidecar's status."""
        body: dict[str, Any] = httpx.get(f"{self.sidecar.url}/api/v1/status", timeout=30).json()
        return body


class _Slowly:
    """Ask ``until`` at most four times a second: it costs a request."""

    def __init__(self, until: Callable[[], bool]) -> None:
        self._until, self._asked, self._last = until, 0.0, False

    def __call__(self) -> bool:
        now = time.monotonic()
        if not self._last and now - self._asked > 0.25:
            self._asked, self._last = now, self._until()
        return self._last


@contextmanager
def deployment(work: Path) -> Iterator[Deployment]:
    """Run vLLM with the tap, and the sidecar."""
    with ExitStack() as stack:
        port = servers.free_port()
        collector = stack.enter_context(receiver())
        env = {
            "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "http/protobuf",
            "MOE_WATCH_OTLP__ENDPOINT": collector.url,
            "MOE_WATCH_OTLP__INTERVAL_S": "1",
            "OMP_NUM_THREADS": "1",
            "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # else every vLLM of the machine sits on its first core
            "MOE_WATCH_ENDPOINT": f"ipc://{work}/tap.sock",
            "MOE_WATCH_STORE__URL": f"sqlite:///{work}/moe-watch.db",
            "MOE_WATCH_REPLICA": REPLICA,
            "MOE_WATCH_VLLM_URL": f"http://127.0.0.1:{port}",
            "MOE_WATCH_WINDOW_S": "10",
            "MOE_WATCH_SERVING__TTFT_BUDGET_S": '{"4k": 30}',
        }
        sidecar = servers.start_sidecar(work, env=env)
        stack.callback(sidecar.stop)
        env["MOE_WATCH_HTTP__PORT"] = sidecar.url.rpartition(":")[2]
        args = ["--middleware", "moe_watch.tap.middleware.Middleware"]
        args += ["--otlp-traces-endpoint", f"{collector.url}/v1/traces"]
        moe = servers.start_vllm("moe", MODELS / "moe", work=work, served_name=MOE, args=args, env=env, port=port)
        stack.callback(moe.stop)
        for server, path in ((sidecar, "/healthz"), (moe, "/health")):
            server.wait_ready(path, _START_S)
        running = Deployment(work, moe, sidecar, env, collector)
        monitoring.wait_until(lambda: bool(running.replica()["tap"]["up"]), "the tap is up")
        yield running


@contextmanager
def watched(running: Deployment) -> Iterator[Deployment]:
    """Run Prometheus, Alertmanager and a pager over the deployment."""
    with ExitStack() as stack:
        running.hook = stack.enter_context(monitoring.webhook())
        running.prometheus = _prometheus(stack, running)
        yield running


def _prometheus(stack: ExitStack, running: Deployment) -> str:
    config = prometheus.alertmanager(f"{running.hook.url}/page", f"{running.hook.url}/ticket")
    config["route"] |= {"group_wait": "1s", "group_interval": "2s"}
    pager = stack.enter_context(monitoring.alertmanager(running.work / "alertmanager", config))
    targets = {
        "moe-watch": [(running.sidecar.url.removeprefix("http://"), {})],
        "vllm": [(running.moe.url.removeprefix("http://"), {"replica": REPLICA})],
    }
    work = running.work / "prometheus"
    return stack.enter_context(monitoring.prometheus(work, targets, quick_rules(), pager))
