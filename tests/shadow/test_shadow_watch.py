"""The watch over the shadow's rows: it learns, alarms, says why, and goes on after a restart."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from sqlalchemy import Engine
from sqlalchemy.orm import Session

from moe_watch.metrics import series as metrics
from moe_watch.metrics.board import Board
from moe_watch.settings import DetectSettings, Settings, ShadowSettings
from moe_watch.shadow.watch import QualityWatch
from moe_watch.store.records import quality_references
from moe_watch.store.schema import ServerBench
from tests.support import shadow_store

START, HOUR = 1_000_000.0, 3600.0
LABELS = ("moe", "r0")


def settings() -> Settings:
    return Settings(shadow=ShadowSettings(reference_requests=200), detect=DetectSettings(average_run_length=1000))


def traffic(store: Engine, *, healthy: int = 400, worse: int = 200, harder: float = 0.0, fault: float = 0.4) -> float:
    """Add a request every 5 s: ``healthy`` ones, then ``worse`` ones; return the time after the last."""
    rng = np.random.default_rng(31)
    with Session(store) as session, session.begin():
        for pk in range(1, healthy + worse + 1):
            late = pk > healthy
            gap = rng.gamma(2, 0.1) - 0.1 + fault * late
            base = 2.0 + rng.normal(scale=0.2) + harder * late
            at = START + 5.0 * pk
            garbled = ["repetition"] if late and fault and pk % 3 == 0 else ["refusal"] if late and fault else []
            defects = {"moe": garbled, "dense": []}
            both = {"nll_dense_output": base, "nll_moe_output": base + gap}
            shadow_store.add_shadow(session, pk, at=at, gap=gap, defects=defects, ood_score=rng.normal(), **both)
    return START + 5.0 * (healthy + worse) + 10


def more_traffic(store: Engine, end: float, **values: str) -> None:
    """Add a request every 5 s for 25 minutes after ``end``, with a gap of about 1.2 nats per token."""
    rng = np.random.default_rng(5)
    with Session(store) as session, session.begin():
        for n in range(1, 301):
            own = {**values, "ood_score": rng.normal()}
            shadow_store.add_shadow(session, 1000 + n, at=end + 5.0 * n, gap=1.0 + rng.gamma(2, 0.1), **own)


def value(board: Board, metric: metrics.Metric, *labels: str) -> float:
    series = next(family for family in board.read() if family.metric is metric).series
    found = next(one.value for one in series if one.labels == labels)
    assert isinstance(found, float)
    return found


def test_a_worse_moe_is_flagged_dated_and_explained(tmp_path: Path) -> None:
    """Both alarms open within the faulty half hour, dated to its start, and say that the dense model did not move."""
    store, board = shadow_store.make(tmp_path), Board()
    end = traffic(store)
    watch = QualityWatch(store, settings(), board)
    assert watch.update(*LABELS, START + 5.0 * 400) == []
    assert value(board, metrics.QUALITY_DEGRADED, *LABELS) == 0
    changes = {change.kind: change for change in watch.update(*LABELS, end)}
    assert set(changes) == {"quality", "garbled"}
    assert all(change.started for change in changes.values())
    assert {type(change.began_at) for change in changes.values()} == {float}
    assert changes["quality"].began_at == pytest.approx(START + 5 * 400, abs=100)
    assert changes["quality"].evidence["cause"] == "moe"
    assert "did not change" in changes["quality"].summary
    assert "(mostly repetition)" in changes["garbled"].summary
    assert value(board, metrics.QUALITY_DEGRADED, *LABELS) == 1


def test_harder_traffic_is_not_the_moes_fault(tmp_path: Path) -> None:
    """Both models lose half a nat on a harder mix: the gap stays, and nothing alarms."""
    store = shadow_store.make(tmp_path)
    end = traffic(store, harder=0.5, fault=0.0)
    assert QualityWatch(store, settings(), Board()).update(*LABELS, end) == []


def test_gauges_and_counters_say_how_it_is(tmp_path: Path) -> None:
    """The gap with its bounds, its deciles, the garbled share, coverage, outcomes and the advantage are exported."""
    store, board = shadow_store.make(tmp_path), Board()
    end = traffic(store, fault=0.0)
    watch = QualityWatch(store, settings(), board)
    watch.update(*LABELS, START + 10)
    watch.update(*LABELS, end)
    gap = value(board, metrics.QUALITY_GAP, *LABELS)
    assert gap == pytest.approx(0.1, abs=0.02)
    assert value(board, metrics.QUALITY_GAP_LOWER, *LABELS) < gap < value(board, metrics.QUALITY_GAP_UPPER, *LABELS)
    assert value(board, metrics.QUALITY_GAP_BY_OOD, *LABELS, "10") == pytest.approx(0.1, abs=0.1)
    assert value(board, metrics.GARBLED_RATIO, *LABELS) == 0
    assert value(board, metrics.SHADOW_COVERAGE, *LABELS) == 1
    assert value(board, metrics.SHADOW_REQUESTS, *LABELS, "scored") == 599
    assert value(board, metrics.SHADOW_REQUESTS, *LABELS, "failed") == 0
    assert value(board, metrics.MOE_ADVANTAGE, *LABELS) == pytest.approx(1.5, abs=0.01)


def test_a_restart_keeps_the_reference_and_the_open_alarm(tmp_path: Path) -> None:
    """A new process does not take the fault for normal: the alarm opens again at once."""
    store = shadow_store.make(tmp_path)
    end = traffic(store)
    QualityWatch(store, settings(), Board()).update(*LABELS, START + 5.0 * 300)
    again = QualityWatch(store, settings(), Board()).update(*LABELS, end)
    assert {change.kind for change in again} == {"quality", "garbled"}


def test_another_dense_model_ends_the_alarm_and_is_learned_from_its_own_replays(tmp_path: Path) -> None:
    """Gaps to the model before neither keep its alarm open nor become what is normal for the next."""
    store = shadow_store.make(tmp_path)
    end = traffic(store)
    watch = QualityWatch(store, settings(), Board())
    assert {change.kind for change in watch.update(*LABELS, end)} == {"quality", "garbled"}
    more_traffic(store, end, dense_model="another")
    later = end + 5.0 * 300 + 10
    changes = watch.update(*LABELS, later)
    assert {(change.kind, change.started) for change in changes} == {("quality", False), ("garbled", False)}
    assert {change.ending for change in changes} == {"reference_replaced"}
    with Session(store) as session:
        known = quality_references.load(session, (*LABELS, "another"), "quality")
    assert known is not None
    assert known.mean_upper > 1.0


def test_a_restart_after_a_change_of_the_dense_model_reads_one_of_them(tmp_path: Path) -> None:
    """The replays of the last day to the model before are neither fed to the tests nor part of the gauges."""
    store, board = shadow_store.make(tmp_path), Board()
    end = traffic(store)
    more_traffic(store, end, dense_model="another")
    assert QualityWatch(store, settings(), board).update(*LABELS, end + 5.0 * 300 + 10) == []
    with Session(store) as session:
        known = quality_references.load(session, (*LABELS, "another"), "quality")
    assert known is not None
    assert known.mean_upper > 1.0
    assert value(board, metrics.QUALITY_GAP, *LABELS) > 1.0


@pytest.mark.parametrize("restarted", [False, True])
def test_after_an_accepted_change_normal_is_learned_anew(tmp_path: Path, *, restarted: bool) -> None:
    """Alarms end, and what came before is neither part of the next reference nor tested, after a restart either."""
    store = shadow_store.make(tmp_path)
    end = traffic(store)
    watch = QualityWatch(store, settings(), Board())
    watch.update(*LABELS, end)
    with Session(store) as session, session.begin():
        assert quality_references.relearn(session, "other", end) == 0
        assert quality_references.relearn(session, "moe", end) == 2
    if restarted:
        assert QualityWatch(store, settings(), Board()).update(*LABELS, end + 1) == []
    else:
        changes = watch.update(*LABELS, end + 1)
        assert {(change.kind, change.started) for change in changes} == {("quality", False), ("garbled", False)}
    more_traffic(store, end)
    later = QualityWatch(store, settings(), Board()) if restarted else watch
    assert later.update(*LABELS, end + 5.0 * 300 + 10) == []
    with Session(store) as session:
        known = quality_references.load(session, (*LABELS, "dense"), "quality")
    assert known is not None
    assert known.mean_upper > 1.0


def test_nothing_yet_is_no_news(tmp_path: Path) -> None:
    """Before the first row there is no alarm, zeros exist for the alerts, and no gap is invented."""
    board = Board()
    watch = QualityWatch(shadow_store.make(tmp_path), settings(), board)
    assert watch.update(*LABELS, START) == []
    assert value(board, metrics.QUALITY_DEGRADED, *LABELS) == 0
    assert metrics.QUALITY_GAP not in {family.metric for family in board.read()}


def test_what_can_no_longer_be_estimated_is_not_shown(tmp_path: Path) -> None:
    """Hours after the last replay gap and advantage are gone: a gauge that stands still would look measured."""
    store, board = shadow_store.make(tmp_path), Board()
    end = traffic(store, fault=0.0)
    watch = QualityWatch(store, settings(), board)
    watch.update(*LABELS, end)
    assert shown(board, metrics.QUALITY_GAP, metrics.GARBLED_RATIO_LOWER, metrics.MOE_ADVANTAGE_UPPER) == 3
    watch.update(*LABELS, end + 7 * HOUR)
    assert shown(board, metrics.QUALITY_GAP, metrics.GARBLED_RATIO_LOWER, metrics.MOE_ADVANTAGE_UPPER) == 0


def test_a_load_of_both_servers_tells_the_advantage_where_replays_cannot(tmp_path: Path) -> None:
    """At 16 requests under way no replay compares: the bench's figure nearest to that is shown, also below 1."""
    store, board = shadow_store.make(tmp_path), Board()
    with Session(store) as session, session.begin():
        for pk in range(1, 30):
            shadow_store.add_shadow(session, pk, at=START + pk, gap=0.1, batch_mean=13.0, dense_concurrency=2.0)
        for at, concurrency, ratio in ((50, 16, 2.0), (90, 1, 1.3), (90, 16, 0.8), (90, 64, 0.7)):
            bounds = {"ratio_lower": ratio - 0.1, "ratio_upper": ratio + 0.1, "moe_ttft_s": 0.1, "dense_ttft_s": 0.1}
            speed = {"moe_tokens_per_s": 100 * ratio, "dense_tokens_per_s": 100.0, "rounds": 4, "requests": 100}
            names = {"moe_model": "moe", "dense_model": "dense"}
            session.add(ServerBench(at=START + at, concurrency=concurrency, ratio=ratio, **bounds, **speed, **names))
    QualityWatch(store, settings(), board).update(*LABELS, START + 100)
    assert value(board, metrics.MOE_ADVANTAGE, *LABELS) == 0.8
    assert value(board, metrics.MOE_ADVANTAGE_UPPER, *LABELS) == pytest.approx(0.9)


def shown(board: Board, *wanted: metrics.Metric) -> int:
    """Return how many of these metrics have a series."""
    return sum(family.metric in wanted for family in board.read())


def _later(store: Engine, first: int, start: float, *, n: int, gap: float, key_step: int = 1) -> float:
    """Add ``n`` results, one every 5 s after ``start``, of requests from key ``first`` on; return the end."""
    rng = np.random.default_rng(first)
    with Session(store) as session, session.begin():
        for number in range(n):
            key = first + key_step * number
            at = start + 5.0 * (number + 1)
            shadow_store.add_shadow(session, key, at=at, gap=gap + rng.gamma(2, 0.1) - 0.1, ood_score=rng.normal())
    return start + 5.0 * n + 10


@pytest.mark.parametrize("out_of_order", [False, True])
def test_a_fault_after_the_clock_was_set_back_is_flagged_at_once(tmp_path: Path, *, out_of_order: bool) -> None:
    """The hour that passes twice is read twice, each result once: those of replays that took long are among them."""
    store, board = shadow_store.make(tmp_path), Board()
    end = traffic(store, healthy=700, worse=0)
    watch = QualityWatch(store, settings(), board)
    assert watch.update(*LABELS, START) == []
    assert watch.update(*LABELS, end) == []
    back = end - HOUR
    if out_of_order:
        assert watch.update(*LABELS, _later(store, 3000, back, n=1, gap=0.0)) == []
        later = _later(store, 2000, back + 5.0, n=300, gap=0.4, key_step=-1)
    else:
        later = _later(store, 1001, back, n=300, gap=0.4)
    changes = watch.update(*LABELS, later)
    assert [(change.kind, change.started) for change in changes] == [("quality", True)]
    assert back < changes[0].began_at < later < end
    assert value(board, metrics.SHADOW_REQUESTS, *LABELS, "scored") == 700 + 300 + out_of_order
    watch.update(*LABELS, end + HOUR)
    assert value(board, metrics.SHADOW_REQUESTS, *LABELS, "scored") == 700 + 300 + out_of_order


def test_results_of_a_clock_that_was_ahead_are_read_once(tmp_path: Path) -> None:
    """They were taken while it was; nothing is counted twice when the day that it was ahead has passed."""
    store, board = shadow_store.make(tmp_path), Board()
    end = traffic(store, healthy=300, worse=0)
    watch = QualityWatch(store, settings(), board)
    watch.update(*LABELS, START)
    watch.update(*LABELS, end)
    ahead = _later(store, 1001, end + 24 * HOUR, n=50, gap=0.0)
    watch.update(*LABELS, ahead)
    for step in range(10):
        normal = _later(store, 2001 + 100 * step, end + 500.0 * step, n=20, gap=0.0)
        watch.update(*LABELS, normal)
        assert value(board, metrics.SHADOW_REQUESTS, *LABELS, "scored") == 350 + 20 * (step + 1)
    watch.update(*LABELS, ahead + HOUR)
    assert value(board, metrics.SHADOW_REQUESTS, *LABELS, "scored") == 550
