"""The wall clock jumps while tap and sidecar run: nothing is lost, no window is written over, nothing is alarmed."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import msgspec
import numpy as np
import pytest

from moe_watch.fleet import siblings
from moe_watch.sidecar.monitor.tap_health import TAP_SILENT_S, TapHealth
from moe_watch.store import engine, migrate
from moe_watch.store.read import fleet as stored
from moe_watch.store.records import served_models, windows
from moe_watch.store.write.batch import write
from tests.fleet.test_fleet import IDENTITY, MODEL, SETTINGS, START, minutes
from tests.sidecar.test_sidecar import Process, _fit
from tests.support.frames import Tap

HOUR_S, DAY_S = 3600.0, 86_400.0
# Python runs this in the sidecar's process before anything else.
_CUSTOM = """
import os, time
_real, _file = time.time, os.environ["CLOCK_AHEAD"]

def _jumping():
    with open(_file) as ahead:
        return _real() + float(ahead.read() or 0)

time.time = _jumping
"""


class Jumping(Process):
    """A sidecar whose wall clock is ahead of the machine's by what a file says."""

    @property
    def environment(self) -> dict[str, str]:
        return super().environment | {"PYTHONPATH": f"{self.work}/site", "CLOCK_AHEAD": f"{self.work}/ahead"}

    def set_ahead(self, seconds: float) -> None:
        """Set the clock."""
        part = self.work / "ahead.part"
        part.write_text(str(seconds), encoding="utf-8")
        part.replace(self.work / "ahead")


@pytest.fixture
def process(tmp_path: Path) -> Iterator[Jumping]:
    """Run a sidecar with a baseline that has called 800 requests healthy."""
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(_CUSTOM, encoding="utf-8")
    (tmp_path / "ahead").write_text("0", encoding="utf-8")
    made = Jumping(tmp_path)
    yield made
    made.close()


def _send(process: Jumping, tap: Tap, n: int, expected: int) -> None:
    """Send ``n`` requests and wait until ``expected`` were seen in all, without any alarm."""
    for _ in range(n):
        process.send(*tap.whole())
    process.send(tap.health())
    seen = process.until(lambda s: bool(s["replicas"]) and s["replicas"][0]["requests"] == expected)
    assert seen["replicas"][0]["alarms"] == []


def test_a_clock_that_jumps_costs_nothing(process: Jumping, monkeypatch: pytest.MonkeyPatch) -> None:
    """The sidecar's goes back an hour, ahead a day and back again, then the tap's goes back, then both apart."""
    tap, n, real = Tap(), 600, time.time
    process.send(tap.announce(), tap.health())
    _send(process, tap, n, n)
    process.until_rows("select count(*) from fingerprints", [(n,)])
    assert "active now" in _fit(process)
    process.until(lambda s: s["replicas"][0]["baseline"] is not None)
    for sidecar, tap_ahead in ((-HOUR_S, 0), (DAY_S, 0), (0, -HOUR_S), (-HOUR_S, DAY_S)):
        process.set_ahead(sidecar)
        monkeypatch.setattr(time, "time", lambda ahead=tap_ahead: real() + ahead)
        time.sleep(1.1)  # a tick of the sidecar between two jumps
        n += 100
        _send(process, tap, 100, n)
        seen = process.until(lambda s: s["replicas"][0]["verdict"] == "healthy")
        assert abs(seen["now"] - real() - sidecar) < 60  # it did jump
    metrics = httpx.get(f"{process.server.url}/metrics").text
    assert f'moe_watch_requests_total{{model="tiny",outcome="length",replica="r0"}} {n}.0' in metrics
    assert 'moe_watch_detector_errors_total{model="tiny",replica="r0"} 0.0' in metrics
    assert all(count == 0 for count in process.status()["frames_refused"].values())
    process.server.stop()
    assert process.rows("select count(*), count(distinct request_id) from requests") == [(n, n)]
    assert process.rows("select kind from alarms") == []
    _windows_add_up(process, n)


def _windows_add_up(process: Jumping, n: int) -> None:
    """Each request is in exactly one window, with all of its counts."""
    assert process.rows("select sum(requests), count(*) - count(distinct start) from windows") == [(n, 0)]
    store = engine.connect(process.store_url)
    identity = served_models.identity(Tap().announce())
    model = served_models.by_identity(store, identity)
    assert model is not None
    total = windows.pooled(store, model, 0, 4e9)
    assert total.counts.sum() == n * 64 * 2 * 3  # tokens x top-k x layers
    assert total.sums.prompt_tokens == n * 48.0
    assert np.isfinite(total.moments).all()
    store.dispose()


def test_a_tap_that_ended_is_silent_though_the_clock_was_set_back() -> None:
    """What it said last lies ahead of now, and does not keep it alive for an hour."""
    health, tap = TapHealth(), Tap()
    health.record(tap.health(), 10_000.0)
    assert health.state(10_000.0 - 0.5).up  # a clock that is slewed
    assert health.state(10_000.0 - HOUR_S).state == "silent"
    assert health.state(10_000.0 + TAP_SILENT_S + 1).state == "silent"


def test_siblings_are_compared_on_though_the_clock_was_set_back(tmp_path: Path) -> None:
    """A comparison that a clock a day ahead wrote does not stop all that follow for a day."""
    store = engine.connect(f"sqlite:///{tmp_path}/a.db")
    migrate.upgrade(store)
    write(store, served_models.announcement(MODEL, START))
    minutes(store, 0, 2)
    ahead = msgspec.json.encode(siblings.State(through=START + DAY_S, claimed=START + DAY_S)).decode()
    stored.swap(store, IDENTITY, "", ahead)
    assert siblings.compare(store, SETTINGS, IDENTITY, START + 130)
    assert siblings.read(store, IDENTITY).through == START + 120
    assert not siblings.compare(store, SETTINGS, IDENTITY, START + 130)
    store.dispose()
