"""The sidecar as a process: real ZMQ socket, real SQLite, real signals."""

from __future__ import annotations

import os
import signal
import sqlite3
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import zmq

from moe_watch import wire
from moe_watch.demo.servers import Server, start_sidecar
from tests.frames import Tap


class Process:
    """A running ``moe-watch serve`` and a socket to it."""

    def __init__(self, work: Path) -> None:
        self.work = work
        self.endpoint = f"ipc://{work}/tap/tap.sock"
        self.database = work / "store.db"
        self.server = self.start()
        self.socket = zmq.Context.instance().socket(zmq.PUSH)
        self.socket.setsockopt(zmq.LINGER, 0)
        self.socket.connect(self.endpoint)

    @property
    def environment(self) -> dict[str, str]:
        return {
            "MOE_WATCH_ENDPOINT": self.endpoint,
            "MOE_WATCH_STORE__URL": f"sqlite:///{self.database}",
            "MOE_WATCH_JOIN_TIMEOUT_S": "1",
            "MOE_WATCH_DETECT__BASELINE_MIN_REQUESTS": "300",
            "OMP_NUM_THREADS": "1",
        }

    def start(self) -> Server:
        server = start_sidecar(self.work, env=self.environment)
        server.wait_ready("/readyz", 60)
        return server

    def send(self, *frames: wire.AnyFrame | bytes) -> None:
        for frame in frames:
            self.socket.send(frame if isinstance(frame, bytes) else wire.encode(frame))

    def status(self) -> dict[str, Any]:
        answer: dict[str, Any] = httpx.get(f"{self.server.url}/api/v1/status", timeout=5).json()
        return answer

    def until(self, true: Callable[[dict[str, Any]], bool], timeout_s: float = 20) -> dict[str, Any]:
        """Return the first status for which ``true`` holds."""
        deadline = time.monotonic() + timeout_s
        while not true(status := self.status()):
            assert time.monotonic() < deadline, (status, self.server.log_tail())
            time.sleep(0.1)
        return status

    def rows(self, query: str) -> list[Any]:
        with sqlite3.connect(self.database) as connection:
            return connection.execute(query).fetchall()

    def close(self) -> None:
        self.socket.close()
        self.server.stop()


@pytest.fixture
def process(tmp_path: Path) -> Iterator[Process]:
    made = Process(tmp_path)
    yield made
    made.close()


def test_frames_in_rows_out(process: Process) -> None:
    """Joined requests are in the store with fingerprint and window, and counted in /metrics."""
    tap = Tap()
    process.send(tap.announce(), tap.health())
    for _ in range(50):
        process.send(*tap.whole())
    process.until(lambda s: bool(s["replicas"]) and s["replicas"][0]["requests"] == 50)
    metrics = httpx.get(f"{process.server.url}/metrics").text
    assert 'moe_watch_requests_total{model="tiny",outcome="length",replica="r0"} 50.0' in metrics
    assert 'moe_watch_tap_up{model="tiny",replica="r0"} 1.0' in metrics
    process.server.stop()
    assert process.rows("select count(*), min(prompt_routed), max(ttft_s) from requests") == [(50, 48, 0.11)]
    assert process.rows("select count(*) from fingerprints") == [(50,)]
    assert process.rows("select sum(requests), sum(routed_requests) from windows") == [(50, 50)]


def test_without_a_baseline_the_verdict_is_learning(process: Process) -> None:
    """Nothing is called healthy before there is a baseline."""
    tap = Tap()
    process.send(tap.announce(), tap.health(), *tap.whole())
    status = process.until(lambda s: bool(s["replicas"]) and s["replicas"][0]["requests"] == 1)
    assert status["replicas"][0]["verdict"] == "learning"
    assert "no baseline: learning" in status["replicas"][0]["reason"]


def test_sigterm_loses_nothing_that_was_received(process: Process) -> None:
    """A stop right after a burst still writes every request, the incomplete ones too."""
    tap = Tap()
    process.send(tap.announce())
    for _ in range(400):
        process.send(*tap.whole())
    process.send(tap.routing("cmpl-alone"))
    process.until(lambda s: s["frames_received"].get("routing", 0) >= 1)
    time.sleep(0.3)  # the kernel has the rest by now
    os.kill(process.server.process.pid, signal.SIGTERM)
    assert process.server.process.wait(20) == 0
    assert process.rows("select count(*) from requests") == [(401,)]
    assert process.rows("select sum(requests) from windows") == [(401,)]


def test_garbage_harms_nothing(process: Process) -> None:
    """Every kind of bad frame is refused and counted by its reason, and good ones around it are taken."""
    tap, other = Tap(), Tap(replica="r0", experts=16, source="engine-1")
    good = tap.whole("cmpl-good")
    process.send(tap.announce(), b"", b"\x00" * 99, b"\xff" * 9999, wire.encode(good[0])[:-3])
    process.send(b"\x81\xa7version\x63", other.routing("cmpl-other"), b"x" * (wire.MAX_FRAME_BYTES + 1))
    process.send(*good, good[0])
    status = process.until(
        lambda s: bool(s["replicas"]) and s["replicas"][0]["requests"] == 1 and "duplicate" in s["frames_refused"]
    )
    refused = status["frames_refused"]
    assert refused == {"malformed": 4, "unknown_version": 1, "wrong_shape": 1, "too_large": 1, "duplicate": 1}
    assert httpx.get(f"{process.server.url}/healthz").status_code == 200
