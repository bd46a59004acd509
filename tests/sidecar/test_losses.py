"""Frames that never came are in the windows, once each, and the report says how many."""

from __future__ import annotations

import time
from pathlib import Path

import msgspec
import pytest
from sqlalchemy import Engine

from moe_watch.metrics import series
from moe_watch.report.build.gather import gather
from moe_watch.report.data.review import Review
from moe_watch.report.data.types import Period
from moe_watch.report.say import verdict
from moe_watch.report.say.captions import unknowns
from moe_watch.settings import Settings
from moe_watch.store import engine, losses, migrate
from moe_watch.store.write.batch import Writes, write
from tests.support.judge_bench import Bench

SIDECAR = Settings().sidecar


@pytest.fixture
def empty(tmp_path: Path) -> Engine:
    """Return an empty store."""
    store = engine.connect(f"sqlite:///{tmp_path}/store.db")
    migrate.upgrade(store)
    return store


def started(store: Engine) -> Bench:
    """Return a judge as a process of the sidecar begins, before its tap is announced again."""
    bench = Bench()
    del bench.monitors.by_replica["r0"]
    bench.monitors.remember(losses.read(store, SIDECAR))
    bench.now = time.time()
    bench.monitors.announce(bench.tap.announce(), bench.now)
    return bench


def stopped(bench: Bench, store: Engine) -> None:
    """Write what the process holds at its end."""
    bench.written.extend(bench.monitors.collect(bench.now, last=True))
    write(store, bench.written)


def reported(store: Engine) -> Review:
    """Return the review of the last hours."""
    now = time.time()
    return gather(store, Settings(), Period(now - 7200, now + 7200), now=now).reviews[0]


def test_the_report_says_how_many_frames_were_lost(empty: Engine) -> None:
    """By what the tap counts itself and by the gaps that the sidecar sees; and what to do when it is many."""
    bench = started(empty)
    bench.send(50)
    bench.beat(dropped={"queue_full": 38})
    bench.monitors.lose({"r0": 2, "never announced": 7})
    bench.beat(dropped={"queue_full": 40, "something to come": 1})
    stopped(bench, empty)
    review = reported(empty)
    assert review.coverage.dropped == {"queue_full": 40, "lost": 2, "error": 1}
    assert review.coverage.received == 150
    assert "What was in 43 lost frames: 1 error, 2 lost and 40 queue full." in unknowns(review)
    assert any(action.text.startswith("Frames were lost (22") for action in verdict.verdict(review).actions)
    assert bench.value(series.FRAMES_DROPPED, "queue_full") == 40


def test_losses_without_any_request_are_told_too(empty: Engine) -> None:
    """The window is written for them alone."""
    bench = started(empty)
    bench.beat(dropped={"not_connected": 5})
    stopped(bench, empty)
    assert reported(empty).coverage.dropped == {"not_connected": 5}


def test_a_restart_of_the_sidecar_counts_nothing_twice(empty: Engine) -> None:
    """The tap's own count goes on: what grew while the sidecar was away is new, the rest was told before."""
    first = started(empty)
    first.beat(dropped={"not_connected": 5})
    stopped(first, empty)
    second = started(empty)
    second.beat(dropped={"not_connected": 8})
    second.monitors.announce(second.tap.announce(revision="b"), second.now)  # nor does another configuration
    second.beat(dropped={"not_connected": 8})
    stopped(second, empty)
    assert reported(empty).coverage.dropped == {"not_connected": 3 + 5}


def test_a_process_of_the_tap_that_starts_anew_counts_from_nothing(empty: Engine) -> None:
    """And what is known of old ones is bounded."""
    bench = started(empty)
    for number in range(2 * losses.MOST_SOURCES):
        health = msgspec.structs.replace(bench.tap.health(dropped={"error": 1}), source=f"engine-{number}")
        bench.monitors.hear(health, bench.now)
    assert len(bench.monitors.by_replica["r0"].tap_health.dropped) == losses.MOST_SOURCES
    stopped(bench, empty)
    assert reported(empty).coverage.dropped == {"error": 2 * losses.MOST_SOURCES}


def test_reasons_of_a_taps_own_are_counted_as_one() -> None:
    """However many names it makes up, what is kept of it is bounded."""
    bench = Bench()
    for number in range(500):
        bench.beat(dropped={f"made up {number} {of}": 1 for of in range(16)})
    (kept,) = bench.monitors.by_replica["r0"].tap_health.dropped.values()
    assert kept == {"error": 16}


def test_what_another_version_kept_is_passed_over(empty: Engine) -> None:
    """It must not keep the store closed."""
    kept = losses.kept(SIDECAR, "r0", {"engine-0": {"error": 3}})
    garbled = dict.fromkeys(losses.kept(SIDECAR, "r1", {}), "[]")
    write(empty, Writes(meta=kept | garbled))
    assert losses.read(empty, SIDECAR) == {"r0": {"engine-0": {"error": 3}}}
