"""Serving is sacred: whatever becomes of the sidecar or of the tap, the real server answers, and answers the same."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
import zmq

from demo import servers
from tests.real.support.families import Mixtral
from tests.real.support.vllm_server import Tapped, VllmServer
from tests.support.patience import PATIENCE_S

pytestmark = pytest.mark.real

PROMPTS = [[2, *range(first, first + 12)] for first in range(300, 3500, 400)]
# Of the worker's process: the scheduler runs in another one, and its function is made to fail on the fake engine.
ENGINE_FAULTS = [
    *("routing.RoutingTap.begin", "routing.RoutingTap.end", "routing.RoutingTap.settle", "capture.Capturer.capture"),
    *("capture.StepList.write", "ledger.Ledger.visit", "counts.Counts.add", "counts.Counts.take"),
    *("finish_notes.of", "frames.fault", "ids.from_engine", "sender.Sender.put", "sender.Sender._drain"),
]
API_FAULTS = [
    *("middleware.Middleware._begin", "exchange.Exchange.receiving", "exchange.Exchange._note_request"),
    *("exchange.Exchange._note_answer", "exchange.Exchange.tell", "exchange.Exchange._frame", "asked.said"),
    *("latency.latency", "ids.from_frontend", "sender.Sender.put", "sender.Sender._drain"),
]

LOADED_WHEN_OFF = {"api", "api.asgi", "api.latency", "plugin", "middleware", "enabled"}


def texts(server: VllmServer) -> list[str]:
    """Return the greedy answers to ``PROMPTS``, asked one after the other."""
    return [server.complete(prompt, max_tokens=6, ignore_eos=True)["choices"][0]["text"] for prompt in PROMPTS]


def flood(server: VllmServer, requests: int) -> None:
    """Serve so many requests of one token, a hundred prompts at a time."""
    prompts = [[2, 300 + number] for number in range(100)]

    def hundred(_: int) -> None:
        assert len(server.complete(prompts, max_tokens=1)["choices"]) == 100

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(hundred, range(requests // 100)))


def inside(server: VllmServer, *what: str) -> Any:
    """Ask the API server's process."""
    return httpx.get("/".join([f"{server.url}/inside", *what]), timeout=30).raise_for_status().json()


def state(server: VllmServer, role: str) -> dict[str, Any]:
    """Return what a process's tap knows of itself."""
    return dict(server.rpc("tap_state") if role == "engine" else inside(server, "state"))


@pytest.fixture(scope="module")
def tap(mixtral: Mixtral) -> Tapped:
    """Return the server whose processes can be looked into."""
    return mixtral.tapped


@pytest.fixture(scope="module")
def untapped(mixtral: Mixtral) -> list[str]:
    """Return what a server without the tap answers."""
    return texts(mixtral.off)


@contextlib.contextmanager
def sidecar(endpoint: str, work: Path) -> Iterator[servers.Server]:
    """Run the real sidecar at ``endpoint``."""
    env = {"MOE_WATCH_ENDPOINT": endpoint, "MOE_WATCH_STORE__URL": f"sqlite:///{work}/s.db"}
    server = servers.start_sidecar(work, env=env)
    try:
        server.wait_ready("/healthz", 60)
        yield server
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(server.process.pid, signal.SIGCONT)
        server.stop()


@contextlib.contextmanager
def slow(endpoint: str) -> Iterator[None]:
    """Bind ``endpoint`` and be so slow as to take one frame."""
    with zmq.Context() as context, context.socket(zmq.PULL) as socket:
        socket.setsockopt(zmq.RCVHWM, 1)
        socket.setsockopt(zmq.RCVBUF, 4096)
        socket.bind(endpoint)
        socket.recv()
        yield


@contextlib.contextmanager
def become(what: str, endpoint: str, work: Path) -> Iterator[None]:
    """Have no sidecar, a slow one, or a real one that has just been stopped or killed."""
    if what == "absent":
        yield
    elif what == "slow":
        with slow(endpoint):
            yield
    else:
        with sidecar(endpoint, work) as running:
            time.sleep(1)  # it is connected, and reads
            os.kill(running.process.pid, signal.SIGKILL if what == "killed" else signal.SIGSTOP)
            yield


@pytest.mark.parametrize("what", ["absent", "slow", "stopped", "killed"])
def test_the_server_answers_the_same_whatever_becomes_of_the_sidecar(
    what: str, tap: Tapped, untapped: list[str], tmp_path: Path
) -> None:
    """Every request is answered, with the text of a server without tap; frames are dropped, counted, and bounded."""
    server = tap.server
    before = {role: sum(state(server, role)["dropped"].values()) for role in ("engine", "api")}
    with tap.collector.away(), become(what, tap.collector.endpoint, tmp_path):
        flood(server, 2000)
        assert texts(server) == untapped
        for role in ("engine", "api"):
            now = state(server, role)
            assert sum(now["dropped"].values()) > before[role], (role, now)
            assert now["frames"] <= now["most"][0]
            assert now["bytes"] <= now["most"][1]
            assert now["state"] == "on"
    tap.collector.routing(server.complete(PROMPTS[0], max_tokens=2)["id"])  # and it is heard of again


@pytest.fixture
def mended(tap: Tapped) -> Iterator[Tapped]:
    """Give the server back whole."""
    yield tap
    tap.server.rpc("tap_mend")
    inside(tap.server, "mend")


@pytest.mark.parametrize(
    ("role", "function"),
    [*(("engine", name) for name in ENGINE_FAULTS), *(("api", name) for name in API_FAULTS)],
)
def test_an_exception_in_the_tap_switches_it_off_and_nothing_else(
    role: str, function: str, mended: Tapped, untapped: list[str]
) -> None:
    """All requests are answered as ever; the tap of that process says that it is off, and logs it once."""
    server = mended.server
    logged = server.log.read_text().count("serving goes on")
    if role == "engine":
        server.rpc("tap_make_fail", function)
    else:
        inside(server, "fail", function)
    assert texts(server) == untapped
    deadline = time.monotonic() + PATIENCE_S
    while state(server, role)["state"] == "on" and time.monotonic() < deadline:
        server.complete(PROMPTS[0], max_tokens=2)
    assert state(server, role)["state"] == "off"
    assert texts(server) == untapped
    assert server.log.read_text().count("serving goes on") == logged + 1
    if not function.startswith("sender."):  # that one cannot send word of it
        mended.collector.wait(lambda: mended.collector.health(role).state == "off", "a health that says off")


def test_nothing_is_kept_of_ten_thousand_requests(tap: Tapped, record_property: Any) -> None:
    """After 10,000 real requests, a tenth of them aborted, the tap's books are as before the first."""
    server = tap.server
    flood(server, 1000)
    before, process = server.rpc("tap_state"), psutil.Process(server.pid)
    size = sum(child.memory_info().rss for child in [process, *process.children(recursive=True)])
    for _ in range(10):
        flood(server, 900)
        with contextlib.suppress(httpx.ReadTimeout):
            body = {"model": server.served_name, "prompt": [[2, 300 + n] for n in range(100)], "max_tokens": 400}
            httpx.post(f"{server.url}/v1/completions", json=body | {"ignore_eos": True}, timeout=0.3)
    deadline = time.monotonic() + PATIENCE_S
    while any(server.rpc("tap_state")["held"]) and time.monotonic() < deadline:
        server.complete(PROMPTS[0], max_tokens=2)
        time.sleep(0.2)
    after = server.rpc("tap_state")
    grown = sum(child.memory_info().rss for child in [process, *process.children(recursive=True)]) - size
    record_property("grown_bytes", grown)
    assert after["held"] == before["held"] == [0, 0, 0, 0]
    assert after["free"] == before["free"]
    assert after["state"] == "on"
    assert grown < 64 * 1024 * 1024


def test_without_the_setting_nothing_of_the_tap_runs(mixtral: Mixtral) -> None:
    """With package, entry points and middleware, and no endpoint, there is no sender, no hook and no thread."""
    mixtral.off.complete(PROMPTS[0], max_tokens=2)
    for process in (mixtral.off.rpc("tap_loaded"), inside(mixtral.off, "loaded")):
        assert set(process["modules"]) <= LOADED_WHEN_OFF
        assert process["threads"] == []
    imported = re.findall(r"import time:.*\| +moe_watch\.tap\.([\w.]+)", mixtral.off.log.read_text())
    assert set(imported) <= LOADED_WHEN_OFF
    assert imported.count("enabled") == 3  # what the plug-in asks in API server, engine core and worker
