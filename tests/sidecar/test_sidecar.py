"""The sidecar as a process: real ZMQ socket, real SQLite, real signals."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
import zmq
from sqlalchemy import text

from demo.servers import Server, start_sidecar
from moe_watch import wire
from moe_watch.store import engine, migrate
from tests.support.frames import Tap
from tests.support.patience import PATIENCE_S
from tests.support.postgres import Postgres


class Process:
    """A running ``moe-watch serve`` and a socket to it."""

    def __init__(self, work: Path, store_url: str | None = None) -> None:
        self.work = work
        self.store_url = store_url or f"sqlite:///{work}/store.db"
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
            "MOE_WATCH_STORE__URL": self.store_url,
            "MOE_WATCH_SPOOL_DIR": f"{self.work}/spool",
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
        answer: dict[str, Any] = httpx.get(f"{self.server.url}/api/v1/status", timeout=30).json()
        return answer

    def until(self, true: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        """Return the first status for which ``true`` holds."""
        deadline = time.monotonic() + PATIENCE_S
        while not true(status := self.status()):
            assert time.monotonic() < deadline, (status, self.server.log_tail())
            time.sleep(0.1)
        return status

    def rows(self, query: str) -> list[Any]:
        with sqlite3.connect(self.database) as connection:
            return connection.execute(query).fetchall()

    def until_rows(self, query: str, wanted: list[Any]) -> None:
        """Return when ``query`` finds ``wanted`` in the store."""
        deadline = time.monotonic() + PATIENCE_S
        while (found := self.rows(query)) != wanted:
            assert time.monotonic() < deadline, (query, found, self.server.log_tail())
            time.sleep(0.1)

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
    process.until(lambda s: s["frames_received"].get("routing", 0) == 401)  # most of them wait to be judged
    os.kill(process.server.process.pid, signal.SIGTERM)
    assert process.server.process.wait(PATIENCE_S) == 0
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


def _wait_for_metric(process: Process, line: str) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while line not in (body := httpx.get(f"{process.server.url}/metrics", timeout=30).text):
        assert time.monotonic() < deadline, [found for found in body.splitlines() if line.partition("{")[0] in found]
        time.sleep(0.1)


def _fit(process: Process) -> str:
    environment = {**os.environ, **process.environment}
    command = [sys.executable, "-m", "moe_watch.cli.main", "baseline", "fit", "--promote"]
    return subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout


def test_from_learning_to_an_alarm_and_back_to_silence(process: Process) -> None:
    """The whole life of a baseline: fitted from the store, taken up by the running sidecar, silent, then alarmed."""
    tap = Tap()
    process.send(tap.announce(), tap.health())
    for _ in range(600):
        process.send(*tap.whole())
    process.until(lambda s: s["replicas"] and s["replicas"][0]["requests"] == 600)
    process.until_rows("select count(*) from fingerprints", [(600,)])
    assert "fitted on 600 requests; active now" in _fit(process)
    process.until(lambda s: s["replicas"][0]["baseline"] is not None)
    for _ in range(300):
        process.send(*tap.whole())
    process.send(tap.health())
    status = process.until(lambda s: s["replicas"][0]["verdict"] == "healthy" and s["replicas"][0]["requests"] == 900)
    assert status["replicas"][0]["alarms"] == []
    for _ in range(200):
        process.send(*tap.whole(unseen=True))
    status = process.until(lambda s: s["replicas"][0]["verdict"] == "traffic")
    (alarm,) = status["replicas"][0]["alarms"]
    assert "left baseline 1" in alarm["summary"]
    assert status["replicas"][0]["suspects"]
    _wait_for_metric(process, 'moe_watch_drift_active{kind="traffic",model="tiny",replica="r0"} 1.0')
    matrix = httpx.get(f"{process.server.url}/api/v1/matrix").json()
    assert (len(matrix["share"]), len(matrix["baseline"][0])) == (3, 8)
    shown = subprocess.run(
        [sys.executable, "-m", "moe_watch.cli.main", "status", "--url", process.server.url],
        env={**os.environ, **process.environment, "COLUMNS": "200"},
        check=False,
        capture_output=True,
        text=True,
    )
    assert shown.returncode == 2
    assert "traffic" in shown.stdout
    process.server.stop()
    assert process.rows("select kind, summary <> '' from alarms") == [("traffic", 1)]


def test_a_kill_loses_at_most_seconds_and_the_next_start_goes_on(process: Process) -> None:
    """After SIGKILL the store is whole, the model is known without a new announcement, and windows still add up."""
    tap = Tap()
    process.send(tap.announce(), tap.health())
    for _ in range(100):
        process.send(*tap.whole())
    process.until(lambda s: s["replicas"] and s["replicas"][0]["requests"] == 100)
    process.until_rows("select count(*) from requests", [(100,)])
    process.until_rows("select sum(requests) from windows", [(100,)])
    os.kill(process.server.process.pid, signal.SIGKILL)
    process.server.process.wait(PATIENCE_S)
    process.server = process.start()
    for _ in range(50):
        process.send(*tap.whole())
    process.until(lambda s: s["replicas"] and s["replicas"][0]["requests"] == 50)
    process.server.stop()
    assert process.rows("select count(*) from requests") == [(150,)]
    assert process.rows("select sum(requests) from windows") == [(150,)]


def test_a_second_sidecar_on_the_same_file_is_refused(process: Process, tmp_path: Path) -> None:
    """It ends at once, and says why; the first goes on."""
    second = subprocess.run(
        [
            sys.executable,
            "-m",
            "moe_watch.cli.main",
            "serve",
            "--port",
            "0",
            "--endpoint",
            f"ipc://{tmp_path}/other.sock",
        ],
        env={**os.environ, **process.environment},
        check=False,
        capture_output=True,
        text=True,
    )
    assert second.returncode == 1
    assert "another moe-watch" in second.stderr
    assert httpx.get(f"{process.server.url}/readyz").status_code == 200


def test_doctor_finds_a_running_sidecar_in_order(process: Process) -> None:
    """With a tap on, what is left are warnings: no vLLM address, no baseline."""
    tap = Tap()
    process.send(tap.announce(vllm_version="0.32.0"), tap.health(), *tap.whole())
    process.until(lambda s: s["replicas"] and s["replicas"][0]["requests"] == 1)
    port = process.server.url.rsplit(":", 1)[1]
    found = subprocess.run(
        [sys.executable, "-m", "moe_watch.cli.main", "doctor"],
        env={**os.environ, **process.environment, "MOE_WATCH_HTTP__PORT": port},
        check=False,
        capture_output=True,
        text=True,
    )
    assert found.returncode == 0, found.stdout
    for said in ("ok    socket", "ok    sidecar", "ok    tap of r0: on, tiny", "warn  baseline: none", "ok    store"):
        assert said in found.stdout


def test_a_store_that_is_away_is_waited_for_until_told_to_stop(tmp_path: Path) -> None:
    """The process lives, takes frames, says that its store is away, and ends in order."""
    env = {"MOE_WATCH_ENDPOINT": f"ipc://{tmp_path}/tap.sock", "MOE_WATCH_SPOOL_DIR": f"{tmp_path}/spool"}
    env["MOE_WATCH_STORE__URL"] = "postgresql+psycopg://nobody@127.0.0.1:1/nothing"
    waiting = start_sidecar(tmp_path, env=env)
    try:
        waiting.wait_ready("/healthz", PATIENCE_S)
        waiting.wait_ready("/readyz", PATIENCE_S)
        assert "moe_watch_store_up 0.0" in httpx.get(f"{waiting.url}/metrics", timeout=30).text
        waiting.process.terminate()
        assert waiting.process.wait(PATIENCE_S) == 0
    finally:
        waiting.stop()


@pytest.mark.real
def test_two_sidecars_share_one_postgres(tmp_path: Path, postgres_server: Postgres) -> None:
    """Each writes its own replicas; the first makes the schema; an older schema is waited for, with what to run."""
    url = postgres_server.url("shared")
    made = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        one = Process(tmp_path / name, store_url=url)
        made.append(one)
        tap = Tap(replica=name)
        one.send(tap.announce(), tap.health())
        for _ in range(30):
            one.send(*tap.whole())
    for one in made:
        one.until(lambda s: s["replicas"] and s["replicas"][0]["requests"] == 30)
        one.close()
    store = engine.connect(url)
    with store.connect() as connection:
        found = connection.execute(text("select replica, count(*) from requests group by 1 order by 1")).all()
    assert [tuple(row) for row in found] == [("a", 30), ("b", 30)]
    migrate.downgrade(store, "0001")
    late, tap = Process(tmp_path / "a", store_url=url), Tap(replica="a", seed=1)
    try:
        late.until(lambda s: not s["store"]["up"])
        late.send(tap.announce(), *tap.whole("cmpl-late"))
        late.until(lambda s: s["store"]["spool_bytes"] > 0 and s["replicas"] and s["replicas"][0]["requests"] == 1)
        assert "run `moe-watch db upgrade`" in late.server.log_tail()
        command = [sys.executable, "-m", "moe_watch.cli.main", "db", "upgrade"]
        subprocess.run(command, env={**os.environ, **late.environment}, check=True, capture_output=True)
        late.until(lambda s: s["store"]["up"] and not s["store"]["spool_bytes"])
    finally:
        late.close()
    with store.connect() as connection:
        assert connection.scalar(text("select count(*) from requests where request_id = 'cmpl-late'")) == 1
    store.dispose()


def _rss_mb(process: Process) -> float:
    status = Path(f"/proc/{process.server.process.pid}/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0]) / 1024


def test_a_flood_of_large_frames_is_bounded_and_hides_nobody(process: Process) -> None:
    """Unannounced routing of 500 kB and texts of 1 MB, under ever new names: memory stays, and a tap counts."""
    tap = Tap(replica="good", source="engine-good")
    process.send(tap.announce(), tap.health())
    process.until(lambda s: bool(s["replicas"]))
    before, text_of = _rss_mb(process), wire.Sample(prompt="x" * 1_000_000, outputs=[])
    counts = wire.Counts("u4", bytes(4 * 60 * 1000))
    for number in range(800):
        sender = Tap(replica=f"flood-{number % 40}", source=f"s-{number}")
        shape = {"layers": 60, "experts": 1000, "top_k": 1, "entropy": None, "margin": None}
        process.send(sender.routing(f"c-{number}", prompt=counts, decode=counts, **shape))
        process.send(sender.request(f"c-{number}", sample=text_of))
    process.send(*tap.whole())
    status = process.until(lambda s: any(r["replica"] == "good" and r["requests"] == 1 for r in s["replicas"]))
    assert status["frames_refused"]["unannounced"] > 0
    assert _rss_mb(process) - before < 700  # of about a gigabyte that came; the bound is 512 MiB


def test_a_replica_that_is_gone_for_good_is_forgotten_also_by_the_next_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It leaves status and metrics once it has been silent for long, and a start does not bring it back."""
    monkeypatch.setenv("MOE_WATCH_REPLICA_EXPIRES_S", "86400")
    process = Process(tmp_path)
    try:
        gone, here = Tap(replica="gone"), Tap(replica="here")
        process.send(gone.announce(), here.announce(), gone.health(), *here.whole())
        process.until(lambda s: len(s["replicas"]) == 2)
        process.server.stop()
        _age_announcement(process, "gone", 90_000)
        process.server = process.start()
        assert [one["replica"] for one in process.status()["replicas"]] == ["here"]
        assert 'replica="gone"' not in httpx.get(f"{process.server.url}/metrics").text
    finally:
        process.close()


def _age_announcement(process: Process, replica: str, seconds: float) -> None:
    with sqlite3.connect(process.database) as connection:
        for key, value in connection.execute("select key, value from meta where key like 'announced:%'").fetchall():
            model = msgspec.json.decode(value, type=wire.Model)
            if model.replica == replica:
                older = msgspec.structs.replace(model, sent_at=model.sent_at - seconds)
                connection.execute(
                    "update meta set value = ? where key = ?", (msgspec.json.encode(older).decode(), key)
                )
