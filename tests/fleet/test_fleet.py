"""Replicas of one model meet in the store: each block is compared once, and sums of parts are those of the whole."""

from __future__ import annotations

from io import StringIO

import msgspec
import numpy as np
import pytest
from rich.console import Console
from sqlalchemy import Engine

from bench.simulate import World
from moe_watch import wire
from moe_watch.cli.commands.status import _replica
from moe_watch.detect.common.batch import Batch
from moe_watch.detect.drift.moments import of_batch
from moe_watch.domain.window import Window
from moe_watch.fleet import siblings
from moe_watch.metrics import series
from moe_watch.metrics.board import Board
from moe_watch.settings import DetectSettings, Settings
from moe_watch.sidecar.background import BackgroundReader, Served
from moe_watch.store.read import fleet as stored
from moe_watch.store.records import served_models, windows
from moe_watch.store.write.batch import Writes, write
from tests.support.judge_bench import Bench

WORLD = World(layers=4, experts=16, top_k=4, topics=6, unseen=2, length=4.0, longest=600)
START = 1_000_020.0
MODEL = wire.Model(
    replica="r0", source="e", seq=0, sent_at=START, model="tiny", layers=4, layer_ids=[1, 3, 5, 7], experts=16, top_k=4
)
IDENTITY = served_models.identity(MODEL)
SETTINGS = Settings(detect=DetectSettings(average_run_length=1000))


@pytest.fixture
def database(store: Engine) -> Engine:
    write(store, served_models.announcement(MODEL, START))
    return store


def window(batch: Batch, flagged: int = 0) -> Window:
    made = Window(WORLD.layers, WORLD.experts)
    made.requests = len(batch)
    made.add_routing(batch)
    p = np.full(len(batch), 0.5)
    p[:flagged] = 0.001
    made.add_scores(p, p <= 0.01)
    return made


def minutes(database: Engine, first: int, n: int, k: int = 6, bad: int | None = None) -> None:
    """Write ``n`` minutes of ``k`` replicas, of which one may have a moved layer."""
    random = np.random.default_rng(first)
    for minute in range(first, first + n):
        rows = []
        for index in range(k):
            batch = WORLD.draw(40, random, moved=(2, 0.2) if index == bad else None)
            rows.append(windows.row(IDENTITY, f"r{index}", START + 60 * minute, 60.0, window(batch, flagged=index)))
        write(database, Writes(windows=rows))


def watch(database: Engine, first: int, n: int) -> int:
    """Look every ten seconds, as two sidecars do; return how many blocks were compared."""
    looks = [START + 60 * first + 10 * step for step in range(1, 6 * n + 3)]
    return sum(siblings.compare(database, SETTINGS, IDENTITY, now) for now in looks for _ in range(2))


def test_a_deviant_is_flagged_with_its_layer_and_each_block_is_compared_once(database: Engine) -> None:
    """Two sidecars look at six replicas; the state names replica, time, layer and experts."""
    minutes(database, 0, 15, bad=4)
    assert watch(database, 0, 15) == 15
    state = siblings.read(database, IDENTITY)
    assert [name for name, one in state.standings.items() if one.deviates] == ["r4"]
    assert all(one.blocks == 15 for one in state.standings.values())
    where = state.where["r4"]
    assert where["layers"][0] == 5
    assert {one["expert"] for one in where["experts"] if one["layer"] == 5} >= {0, 1, 2, 3}
    assert START < state.since["r4"] <= START + 15 * 60


def test_only_one_of_two_writes_a_block(database: Engine) -> None:
    """Who comes second finds another text than it read, and writes nothing."""
    assert stored.swap(database, IDENTITY, "", "one")
    assert not stored.swap(database, IDENTITY, "", "two")
    assert not stored.swap(database, IDENTITY, "none", "two")
    assert stored.swap(database, IDENTITY, "one", "two")
    assert stored.read(database, IDENTITY) == "two"


def test_a_claim_that_led_to_nothing_is_void_after_a_minute(database: Engine) -> None:
    """A sidecar that died while it compared does not end the comparison."""
    minutes(database, 0, 2)
    claimed = msgspec.json.encode(siblings.State(claimed=START + 130)).decode()
    stored.swap(database, IDENTITY, "", claimed)
    assert not siblings.compare(database, SETTINGS, IDENTITY, START + 140)
    assert siblings.compare(database, SETTINGS, IDENTITY, START + 200)


def test_quiet_replicas_make_longer_blocks(database: Engine) -> None:
    """A block waits for requests, a quarter of an hour at most."""
    random = np.random.default_rng(1)
    for minute in range(20):
        rows = [
            windows.row(IDENTITY, f"r{i}", START + 60 * minute, 60.0, window(WORLD.draw(10, random))) for i in range(3)
        ]
        write(database, Writes(windows=rows))
    assert watch(database, 0, 12) == 4


def test_merged_is_pooled(database: Engine) -> None:
    """Sums of all replicas' windows give what one look at all of their requests gives, to the last count."""
    random = np.random.default_rng(2)
    batches = [WORLD.draw(n, random) for n in (30, 50, 80)]
    rows = [windows.row(IDENTITY, f"r{i}", START, 60.0, window(batch, i)) for i, batch in enumerate(batches)]
    write(database, Writes(windows=rows))
    model = served_models.by_identity(database, IDENTITY)
    assert model is not None
    parts = [siblings.moments(one) for one in stored.by_replica(database, model, 0.0, START + 1).values()]
    pooled = Batch(*(np.concatenate([getattr(one, side) for one in batches]) for side in ("prompt", "decode")), 4)
    whole = of_batch(pooled)
    merged = parts[0] + parts[1] + parts[2]
    assert merged.requests == whole.requests == 160
    assert (merged.counts == whole.counts).all()
    np.testing.assert_allclose(merged.mean, whole.mean, rtol=1e-5)
    np.testing.assert_allclose(merged.variance, whole.variance, rtol=1e-3, atol=1e-7)
    total = windows.pooled(database, model, 0.0, START + 1)
    assert (total.sums.scored, total.sums.ood) == (160, 3)
    assert total.vectors.ood_p is not None
    assert total.vectors.ood_p.sum() == 160


def test_each_sidecar_hears_of_its_own_replica_once_a_block(database: Engine) -> None:
    """Standing, number of siblings and the share of unusual requests of all of them come as news."""
    minutes(database, 0, 12, bad=1)
    watch(database, 0, 12)
    background = BackgroundReader(database, SETTINGS, Board())
    mine = [Served("tiny", "r1", IDENTITY), Served("tiny", "r2", IDENTITY)]
    news = {one.replica: one.siblings for one in background.news(mine, START)}
    assert news["r1"] is not None
    assert news["r1"].standing.deviates
    assert (news["r1"].replicas, news["r1"].scored, news["r1"].unusual) == (6, 6 * 12 * 40, 15 * 12)
    assert news["r2"] is not None
    assert not news["r2"].standing.deviates
    assert background.news(mine, START) == []


def test_a_deviant_is_an_alarm_at_its_own_sidecar(database: Engine) -> None:
    """Verdict, alarm and gauges say so, and all is over when it is mended."""
    minutes(database, 0, 12, bad=0)
    watch(database, 0, 12)
    bench = Bench()
    bench.learn()
    bench.send(100)
    background = BackgroundReader(database, SETTINGS, Board())
    bench.monitors.learn(background.news([Served("tiny", "r0", IDENTITY)], bench.now), bench.now)
    assert bench.verdict == "deployment"
    assert bench.value(series.REPLICA_DEVIATES) == 1
    assert bench.value(series.REPLICA_EVIDENCE) >= 1
    (replica,) = bench.monitors.describe(bench.now)
    assert "routes differently than its 5 siblings, most in layer 5" in replica.alarms[0].summary
    assert replica.alarms[0].where is not None
    assert replica.siblings is not None
    assert (replica.siblings.replicas, replica.siblings.deviates) == (6, True)
    assert replica.siblings.fleet_ood.n == 6 * 12 * 40
    screen = StringIO()
    Console(width=400, file=screen).print(_replica(replica, bench.now))
    assert "differs from the 5 others" in screen.getvalue()
    assert "Most moved: layers 5" in screen.getvalue()
    minutes(database, 12, 20)
    watch(database, 12, 20)
    bench.monitors.learn(background.news([Served("tiny", "r0", IDENTITY)], bench.now), bench.now)
    assert bench.verdict == "healthy"
    assert bench.value(series.REPLICA_DEVIATES) == 0
