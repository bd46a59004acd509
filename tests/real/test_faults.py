"""Faults with the real parts: a `moe-watch serve` process, the tap's own sender, SQLite and Postgres, real signals.

What serving notes of a sidecar that is away, slow, stopped or killed is in ``test_tap_serving_first.py``: nothing.
"""

from __future__ import annotations

import itertools
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import httpx
import pytest
from sqlalchemy import create_engine, text

from moe_watch import wire
from moe_watch.servers.prometheus_text import samples
from moe_watch.settings import TapSettings
from moe_watch.tap.send.sender import Build, Header, Sender
from moe_watch.tap.send.status import Status
from tests.sidecar.test_sidecar import Process
from tests.support import postgres
from tests.support.frames import Tap
from tests.support.patience import PATIENCE_S

pytestmark = pytest.mark.real


@pytest.fixture
def process(tmp_path: Path) -> Iterator[Process]:
    """Run a sidecar on SQLite."""
    made = Process(tmp_path)
    yield made
    made.close()


@pytest.fixture(autouse=True)
def no_sender_outlives_its_test() -> Iterator[None]:
    """End the threads: they would go on into tests that count what senders do."""
    yield
    for replica in Replica.made:
        replica.sender.close(5)
    Replica.made.clear()


class Replica:
    """The tap's real sender, fed with finished requests."""

    made: ClassVar[list[Replica]] = []

    def __init__(self, process: Process, name: str = "r0") -> None:
        self.tap = Tap(replica=name)
        self.sender = Sender(TapSettings(endpoint=process.endpoint, replica=name), "engine", "engine-0", Status())
        self.sender.announce(_again(self.tap.announce()))
        self.made.append(self)

    def serve(self, n: int, **more: Any) -> None:
        """Finish ``n`` requests."""
        for _ in range(n):
            for frame in self.tap.whole(**more):
                self.sender.put(_again(frame))

    def dropped(self) -> int:
        """Return the frames that the tap gave up, by its own count."""
        return sum(self.sender.dropped.values())


def _again(frame: wire.AnyFrame) -> Build:
    """Return the making of ``frame`` under the sender's own name and number."""
    fields = {name: getattr(frame, name) for name in frame.__struct_fields__}

    def build(header: Header) -> wire.AnyFrame:
        return type(frame)(**(fields | header))

    return build


def _rows(url: str) -> tuple[int, int]:
    """Return requests stored, and how many different ones."""
    engine = create_engine(url)
    with engine.connect() as connection:
        found = connection.execute(text("select count(*), count(distinct request_id) from requests")).one()
    engine.dispose()
    return int(found[0]), int(found[1])


def _written(process: Process) -> float:
    """Return the requests that /metrics acknowledges as written."""
    body = httpx.get(f"{process.server.url}/metrics", timeout=30).text
    return sum(one.value for one in samples(body, "moe_watch_store_rows_total"))


def _requests(status: dict[str, Any]) -> int:
    return sum(replica["requests"] for replica in status["replicas"])


def test_a_sidecar_that_stands_still_loses_nothing_that_the_tap_can_hold(process: Process) -> None:
    """SIGSTOP for seconds under load: the frames wait in the tap's queue, and each counts once when it goes on."""
    replica = Replica(process)
    replica.serve(50)
    process.until(lambda s: _requests(s) == 50)
    os.kill(process.server.process.pid, signal.SIGSTOP)
    for _ in range(10):
        replica.serve(40)
        time.sleep(0.4)
    os.kill(process.server.process.pid, signal.SIGCONT)
    status = process.until(lambda s: _requests(s) == 450)
    assert replica.dropped() == 0
    assert status["frames_refused"] == {}
    assert status["frames_lost"] == {}
    process.server.stop()
    assert _rows(process.store_url) == (450, 450)


def test_a_sidecar_killed_while_it_writes_keeps_what_it_acknowledged(process: Process) -> None:
    """SIGKILL five times under load: every request that /metrics counted as written is there, none twice."""
    replica, acknowledged = Replica(process), 0.0
    for _ in range(5):
        before = acknowledged
        while acknowledged == before:
            replica.serve(30)
            acknowledged = before + _written(process)
        replica.serve(60)  # so that it is at work when it dies
        time.sleep(0.15)
        os.kill(process.server.process.pid, signal.SIGKILL)
        process.server.process.wait(PATIENCE_S)
        count, different = _rows(process.store_url)
        assert count == different
        assert count >= acknowledged
        acknowledged = float(count)
        process.server = process.start()
        replica.sender.start()


def test_a_tap_that_is_killed_and_comes_again_is_two_sources_and_one_replica(process: Process) -> None:
    """As vLLM killed by SIGKILL and started again: what was sent counts, nothing is taken for lost or for twice."""
    process.until(lambda s: s["replicas"] == [])
    for boot in range(2):
        code = (
            "import sys, time; from types import SimpleNamespace as S; from tests.real.test_faults import Replica\n"
            f"r = Replica(S(endpoint={process.endpoint!r})); r.tap.seed = {boot}; r.serve(100); time.sleep(600)"
        )
        root = Path(__file__).parents[2]
        one = subprocess.Popen([sys.executable, "-c", code], cwd=root, env={**os.environ, "PYTHONPATH": str(root)})
        try:
            process.until(lambda s, boot=boot: _requests(s) == 100 * (boot + 1))  # type: ignore[misc]
        finally:
            one.kill()
            one.wait(PATIENCE_S)
    status = process.status()
    assert (status["frames_refused"], status["frames_lost"]) == ({}, {})


def test_another_model_at_the_same_address_starts_anew(process: Process) -> None:
    """Its requests are its own, the old model's series go, and frames of the old one that come late are refused."""
    old, new = Tap(model="old"), Tap(model="new", experts=16, source="engine-0-new", seed=1)
    new._api_seq = itertools.count(1000)  # its API server is another process
    process.send(old.announce(), old.health(), *[frame for _ in range(40) for frame in old.whole()])
    process.until(lambda s: _requests(s) == 40)
    late = old.routing("late")
    process.send(new.announce(), new.health(), *[frame for _ in range(30) for frame in new.whole()], late)
    seen = process.until(lambda s: [(r["model"], r["requests"]) for r in s["replicas"]] == [("new", 30)])
    assert seen["frames_refused"] == {"wrong_shape": 1}
    body = httpx.get(f"{process.server.url}/metrics", timeout=30).text
    assert 'model="new"' in body
    assert 'model="old"' not in body
    process.server.stop()
    found = process.rows(
        "select name, count(*) from requests join models on models.id = model_id group by 1 order by 1"
    )
    assert found == [("new", 30), ("old", 40)]


def test_an_endpoint_that_another_sidecar_has_is_refused(process: Process, tmp_path: Path) -> None:
    """The second says so and ends; the first keeps its taps."""
    environment = {**os.environ, **process.environment, "MOE_WATCH_STORE__URL": f"sqlite:///{tmp_path}/other.db"}
    command = [sys.executable, "-m", "moe_watch.cli.main", "serve", "--port", "0"]
    second = subprocess.run(command, env=environment, check=False, capture_output=True, text=True, timeout=60)
    assert second.returncode == 1
    assert "is taken: another moe-watch listens there" in second.stderr
    tap = Tap()
    process.send(tap.announce(), *tap.whole())
    process.until(lambda s: _requests(s) == 1)


def _limit(process: Process, most: int) -> None:
    """Let no file of the sidecar grow beyond ``most`` bytes: what a full disk does, at a place of our choosing."""
    resource.prlimit(process.server.process.pid, resource.RLIMIT_FSIZE, (most, resource.RLIM_INFINITY))


def test_a_full_disk_under_sqlite_and_spool_is_survived(process: Process) -> None:
    """Batches go to the spool while the store cannot grow; with room again they are written, and all goes on."""
    replica = Replica(process)
    replica.serve(100)
    process.until(lambda s: _requests(s) == 100)
    sizes = [path.stat().st_size for path in process.work.glob("store.db*")]
    _limit(process, max(sizes))
    replica.serve(100)
    process.until(lambda s: not s["store"]["up"] and s["store"]["spool_bytes"] > 0)
    kept = process.status()["store"]["spool_bytes"]
    _limit(process, resource.RLIM_INFINITY)
    replica.serve(100)
    status = process.until(lambda s: s["store"]["up"] and s["store"]["spool_bytes"] == 0 and _requests(s) == 300)
    assert kept > 0
    assert status["frames_refused"] == {}
    _wait_for_rows(process.store_url, 300)


def test_a_disk_too_full_for_the_spool_costs_batches_that_are_counted(process: Process) -> None:
    """The process lives, says what it dropped, and writes again when it can."""
    replica = Replica(process)
    replica.serve(50)
    process.until(lambda s: _requests(s) == 50)
    _limit(process, 1)
    replica.serve(100)
    _until_metric(process, "moe_watch_spool_dropped_total", 100)
    _limit(process, resource.RLIM_INFINITY)
    replica.serve(50)
    process.until(lambda s: s["store"]["up"] and _requests(s) == 200)
    _wait_for_rows(process.store_url, 100)


def _until_metric(process: Process, name: str, least: float) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while True:
        body = httpx.get(f"{process.server.url}/metrics", timeout=30).text
        found = sum(one.value for one in samples(body, name))
        if found >= least:
            return
        assert time.monotonic() < deadline, (name, found, process.server.log_tail())
        time.sleep(0.2)


def _wait_for_rows(url: str, wanted: int) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while (found := _rows(url)) != (wanted, wanted):
        assert time.monotonic() < deadline, found
        time.sleep(0.2)


def test_postgres_killed_under_load_and_the_sidecar_after_it_lose_nothing(tmp_path: Path) -> None:
    """The spool outlives the sidecar: what came before, during and after is there once, in the order of finishing."""
    with postgres.running() as server:
        process = Process(tmp_path, store_url=server.url("faults"))
        replica = Replica(process)
        replica.serve(100)
        process.until(lambda s: _requests(s) == 100)
        server.stop(signal.SIGKILL)
        for _ in range(5):
            replica.serve(40)
            time.sleep(0.3)
        status = process.until(lambda s: _requests(s) == 300 and not s["store"]["up"])
        assert httpx.get(f"{process.server.url}/readyz", timeout=30).status_code == 200
        assert status["store"]["spool_bytes"] > 0
        time.sleep(2)  # all of it is in the spool
        os.kill(process.server.process.pid, signal.SIGKILL)
        process.server.process.wait(PATIENCE_S)
        server.start()
        process.server = process.start()
        replica.serve(100)
        process.until(lambda s: _requests(s) == 100 and s["store"]["spool_bytes"] == 0)
        _wait_for_rows(process.store_url, 400)
        process.close()
        engine = create_engine(process.store_url)
        with engine.connect() as connection:
            times = list(connection.scalars(text("select finished_at from requests order by id")))
        engine.dispose()
    assert times == sorted(times)
