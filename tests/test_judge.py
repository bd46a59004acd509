"""The judge: what one replica's requests and its tap say becomes a verdict, alarms and rows."""

from __future__ import annotations

import re
import time
from dataclasses import replace
from typing import Any

import msgspec
import numpy as np
import pytest

from moe_watch import wire
from moe_watch.companions import News
from moe_watch.detect.baseline import BaselineBuilder
from moe_watch.export import metrics
from moe_watch.export.snapshot import Board
from moe_watch.join import Join, Joined
from moe_watch.judge import Judge
from moe_watch.settings import DetectSettings, Settings, StoreSettings
from moe_watch.shadow.watch import Change
from moe_watch.store.baselines import Active
from moe_watch.store.models import CanaryRun
from moe_watch.store.write import Writes
from moe_watch.watch import Normal
from tests.frames import Tap

_NOW = 1_000_000.0


class Bench:
    """A judge with one replica, fed by hand."""

    def __init__(self, **settings: Any) -> None:
        self.board = Board()
        self.judge = Judge(Settings(**settings), self.board)
        self.tap = Tap()
        self.join = Join(5.0)
        self.now = _NOW
        self.written = Writes()
        self.judge.announce(self.tap.announce(), self.now)
        self.beat()

    def beat(self, state: str = "on", **more: Any) -> None:
        self.judge.hear(self.tap.health(state, **more), self.now)

    def joined(self, n: int, *, unseen: bool = False, parts: slice = slice(None)) -> list[Joined]:
        frames = [frame for _ in range(n) for frame in self.tap.whole(unseen=unseen)[parts]]
        return [*self.join.add(frames, 0.0), *self.join.flush()]

    def send(self, n: int, **more: Any) -> None:
        for at in range(0, n, 50):
            self.written.extend(self.judge.process(self.joined(min(50, n - at), **more), self.now))
            self.tick(1.0)

    def tick(self, seconds: float) -> None:
        self.now += seconds
        self.beat()
        self.written.extend(self.judge.tick(self.now))

    def learn(self, n: int = 600, version: int = 1) -> None:
        watch = self.judge.watches["r0"]
        builder = BaselineBuilder(minimum=300)
        builder.add(watch._batch(self.joined(n))[0])
        active = Active(version, watch.identity, version, self.now, n)
        self.judge.use({watch.identity: Normal(active, builder.build())}, self.now)

    @property
    def verdict(self) -> str:
        self.tick(6.0)
        (replica,) = self.judge.describe(self.now)
        return replica.verdict

    def value(self, metric: metrics.Metric, *rest: str) -> Any:
        for family in self.board.read():
            for series in family.series:
                if family.metric is metric and series.labels[2:] == rest:
                    return series.value
        return None


@pytest.fixture
def bench() -> Bench:
    return Bench()


def test_without_a_baseline_nothing_is_healthy(bench: Bench) -> None:
    """The verdict is that it is learning, however many requests pass."""
    bench.send(100)
    assert bench.verdict == "learning"


def test_with_a_baseline_and_no_request_nothing_is_healthy(bench: Bench) -> None:
    """A baseline alone says nothing of now."""
    bench.learn()
    assert bench.verdict == "idle"


def test_normal_traffic_is_healthy_and_unseen_traffic_is_not(bench: Bench) -> None:
    """An alarm begins, with the requests and the summary a pager needs, is counted, and ends when traffic is normal."""
    bench.learn()
    bench.send(300)
    assert bench.verdict == "healthy"
    assert bench.value(metrics.DRIFT_ACTIVE, "traffic") == 0
    bench.send(200, unseen=True)
    assert bench.verdict == "traffic"
    assert bench.value(metrics.DRIFT_ACTIVE, "traffic") == bench.value(metrics.VERDICT, "traffic") == 1
    assert bench.value(metrics.EPISODES, "traffic") == 1
    assert bench.value(metrics.OOD_RATIO) > 0.2
    episode = bench.written.episodes[0]
    assert {one.values["flagged_at"] for one in bench.written.episodes} == {episode.values["flagged_at"]}
    assert episode.values["summary"].startswith("tiny at r0: expert routing left baseline 1")
    assert _NOW <= episode.values["began_at"] <= episode.values["flagged_at"]
    assert episode.values["evidence"]["requests"]
    msgspec.json.encode(episode.values["evidence"])
    bench.send(2000)
    assert bench.verdict == "healthy"
    assert bench.written.episodes[-1].values["ended_at"] is not None


def test_rows_say_what_was_measured(bench: Bench) -> None:
    """Every request has a row with the score of its own fingerprint."""
    bench.learn()
    odd = bench.joined(3, unseen=True)
    even = bench.joined(3)
    writes = bench.judge.process([odd[0], even[0], odd[1], even[1], odd[2], even[2]], bench.now)
    p = [row.values["ood_p"] for row in writes.requests]
    assert max(p[::2]) < min(p[1::2])
    assert all(row.values["baseline_id"] == 1 and row.values["prompt_routed"] == 48 for row in writes.requests)


def test_a_request_too_short_to_be_scored_has_no_p_value(bench: Bench) -> None:
    """It is stored all the same."""
    bench.learn()
    short = Joined("r0", "cmpl-s", 0, bench.tap.routing("cmpl-s", tokens=2), None, None, complete=True)
    (row,) = bench.judge.process([short], bench.now).requests
    assert row.values["ood_p"] is None
    assert row.values["decode_routed"] == 0


def test_canaries_are_stored_and_count_for_nothing(bench: Bench) -> None:
    """Our own traffic moves neither windows nor detectors."""
    frames = bench.tap.whole("cmpl-c")
    frames[2] = bench.tap.request("cmpl-c", canary=True)
    writes = bench.judge.process(bench.join.add(frames, 0.0), bench.now)
    writes.extend(bench.judge.collect(bench.now, last=True))
    assert [row.values["canary"] for row in writes.requests] == [True]
    assert writes.requests[0].fingerprint is not None
    assert sum(window.values["requests"] for window in writes.windows) == 0


def test_fingerprints_are_kept_of_a_share() -> None:
    """The same share of requests each time, chosen by their id."""
    bench = Bench(store=StoreSettings(fingerprint_rate=0.3))
    writes = bench.judge.process(bench.joined(400), bench.now)
    kept = sum(row.fingerprint is not None for row in writes.requests)
    assert 80 < kept < 160


@pytest.mark.parametrize("state", ["off", "refused", "blind"])
def test_a_tap_that_does_not_see_is_blind(bench: Bench, state: str) -> None:
    """Whatever the tap says that is not on; the alarm is written and ends when it sees again."""
    bench.learn()
    bench.send(100)
    bench.judge.hear(bench.tap.health(state, reason="because"), bench.now)
    bench.written.extend(bench.judge.tick(bench.now))
    (replica,) = bench.judge.describe(bench.now)
    assert (replica.verdict, replica.reason) == ("blind", "because")
    assert bench.value(metrics.TAP_UP) == 0
    assert bench.written.episodes[-1].values["kind"] == "blind"
    assert bench.verdict == "healthy"
    assert bench.written.episodes[-1].values["ended_at"] is not None


def test_a_silent_tap_is_blind(bench: Bench) -> None:
    """A replica that was seen once stays, at 0."""
    bench.judge.tick(bench.now + 31.0)
    (replica,) = bench.judge.describe(bench.now + 31.0)
    assert replica.verdict == "blind"
    assert "silent" in replica.reason
    assert bench.value(metrics.TAP_UP) == 0


def test_requests_without_routing_are_blindness(bench: Bench) -> None:
    """A tap that says it is on while no routing comes is not believed."""
    bench.learn()
    bench.send(60, parts=slice(1, None))
    assert bench.verdict == "blind"


def test_all_zero_routing_is_blindness(bench: Bench) -> None:
    """An unfilled record says that every token went to expert 0."""
    bench.learn()
    zero = np.zeros((3, 8), np.uint32)
    zero[:, 0] = 128
    counts = wire.pack_counts(zero)
    requests = [
        Joined("r0", f"z{n}", 0, bench.tap.routing(f"z{n}", prompt=counts, decode=counts), None, None, complete=True)
        for n in range(40)
    ]
    bench.judge.process(requests, bench.now)
    assert bench.verdict == "blind"


def test_a_dense_model_is_recognised(bench: Bench) -> None:
    """It has nothing to watch, and its requests are counted."""
    bench.judge.announce(bench.tap.announce(layers=0, experts=0, top_k=0), bench.now)
    bench.judge.hear(bench.tap.health("dense"), bench.now)
    bench.judge.process(bench.joined(5, parts=slice(1, None)), bench.now)
    (replica,) = bench.judge.describe(bench.now)
    assert (replica.verdict, replica.requests, replica.layers) == ("idle", 5, 0)
    bench.judge.tick(bench.now)


def test_another_model_under_the_same_name_starts_anew(bench: Bench) -> None:
    """The baseline of the old one does not judge it, its alarms end, and its series go."""
    bench.learn()
    bench.send(100)
    bench.send(200, unseen=True)
    assert bench.verdict == "traffic"
    bench.judge.announce(bench.tap.announce(weights="other"), bench.now)
    assert bench.verdict == "learning"
    assert bench.value(metrics.BASELINE_INFO, "1") is None
    assert bench.value(metrics.DRIFT_ACTIVE, "traffic") == 0
    assert bench.written.episodes[-1].values["ended_at"] is not None


def test_the_same_model_announced_again_changes_nothing(bench: Bench) -> None:
    """Taps repeat themselves."""
    bench.send(10)
    bench.judge.announce(bench.tap.announce(), bench.now)
    assert bench.judge.watches["r0"].requests == 10


def test_another_configuration_of_the_same_model_is_an_event_once(bench: Bench) -> None:
    """An upgrade, other kernels and another layout are told in words, and kept so that it is told once."""
    upgraded = {"vllm_version": "0.33.0", "moe_backend": "TritonExperts", "parallel": {"ep": 2}}
    for _ in range(3):
        bench.judge.announce(bench.tap.announce(**upgraded), bench.now)
    bench.tick(1.0)
    (event,) = [event for event in bench.written.events if event.values["kind"] == "model_changed"]
    assert event.values["detail"] == (
        "vLLM 0.33.0 instead of none, MoE kernels TritonExperts instead of none, expert-parallel ranks 2 instead of 1"
    )
    kept = [msgspec.json.decode(value, type=wire.Model) for value in bench.written.meta.values()]
    assert kept[-1].vllm_version == "0.33.0"
    assert bench.value(metrics.EVENTS, "model_changed") == 1


@pytest.mark.parametrize("between", [0, 3])
def test_a_drift_is_dated_to_what_happened_before_it(bench: Bench, between: int) -> None:
    """A rebalance shortly before the change is named with the number of requests between the two."""
    bench.learn()
    bench.send(100)
    kind, at = "eplb_rebalance", time.time()
    bench.judge.hear(wire.Event(**bench.tap.engine(), kind=kind, at=at), bench.now)
    bench.send(between)
    bench.send(100, unseen=True)
    (episode,) = [episode for episode in bench.written.episodes if episode.values["kind"] == "traffic"][:1]
    dated = episode.values["evidence"]["dated"]
    assert (dated["event"], abs(dated["requests"] - between) <= 5) == ("eplb_rebalance", True)
    assert re.search(r"; began (with|\d+ requests? (after|before)) the rebalance$", episode.values["summary"])


def test_a_promotion_is_taken_up(bench: Bench) -> None:
    """Alarms against the old baseline end, and the event is counted."""
    bench.learn()
    bench.send(100)
    bench.send(200, unseen=True)
    bench.learn(version=2)
    assert bench.verdict == "idle"
    assert bench.value(metrics.BASELINE_INFO, "2") == 1
    assert bench.value(metrics.BASELINE_INFO, "1") is None
    assert bench.value(metrics.EVENTS, "baseline_promoted") == 2


def test_requests_wait_for_the_announcement_of_their_replica(bench: Bench) -> None:
    """After a restart of the sidecar beside a running vLLM nothing is lost, up to a bound."""
    tap = Tap(replica="r9")

    def joined(n: int) -> list[Joined]:
        return [Joined("r9", f"a{n}-{i}", 0, tap.routing(f"a{n}-{i}"), None, None, complete=True) for i in range(n)]

    assert bench.judge.process(joined(30), bench.now).requests == []
    bench.judge.announce(tap.announce(), bench.now)
    assert len(bench.judge.collect(bench.now).requests) == 30
    assert bench.judge.watches["r9"].requests == 30


def test_requests_of_a_replica_that_is_never_announced_are_counted_as_such(bench: Bench) -> None:
    """They cost bounded memory and are refused at the end."""
    requests = [Joined("r9", f"a{n}", 0, None, bench.tap.latency(f"a{n}"), None, complete=True) for n in range(1500)]
    bench.judge.process(requests, bench.now)
    assert bench.judge.refused == {"unannounced": 500}
    bench.judge.collect(bench.now, last=True)
    assert bench.judge.refused == {"unannounced": 1500}


def test_a_detector_that_fails_costs_its_result_alone(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Requests are counted and stored without a score, and the failure is a metric."""
    bench.learn()

    def broken(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("moe_watch.watch.live.observe", broken)
    bench.send(50)
    assert bench.value(metrics.DETECTOR_ERRORS) == 1
    assert len(bench.written.requests) == 50
    assert bench.verdict == "idle"


def test_windows_are_written_as_they_grow_and_when_they_end(bench: Bench) -> None:
    """A kill loses a few seconds, and the last state of each window has everything."""
    for _ in range(8):
        bench.send(50)
        bench.tick(9.0)
    bench.written.extend(bench.judge.collect(bench.now, last=True))
    last = {window.values["start"]: window.values["requests"] for window in bench.written.windows}
    assert sum(last.values()) == 400
    assert len(last) >= 2
    assert len(bench.written.windows) > len(last)


def test_what_the_tap_dropped_is_counted_across_its_restarts(bench: Bench) -> None:
    """Its counts start anew with its process; ours never go back."""
    for source, count in (("a", 5), ("a", 7), ("b", 2), ("b", 3)):
        health = msgspec.structs.replace(bench.tap.health(dropped={"queue_full": count}), source=source)
        bench.judge.hear(health, bench.now)
    assert bench.value(metrics.FRAMES_DROPPED, "queue_full") == 10


def test_a_canary_that_moved_is_routing_drift_and_names_the_deployment(bench: Bench) -> None:
    """The alarm is dated to the check and ends with the next healthy one."""
    bench.learn()
    bench.send(100)

    def check(verdict: str, at: float) -> CanaryRun:
        return CanaryRun(id=int(at), at=at, verdict=verdict, summary="layer 2 moved", evidence={})

    bench.judge.learn([News("r0", [], check("routing", bench.now))], bench.now + 1)
    assert bench.verdict == "routing"
    assert bench.value(metrics.DRIFT_ACTIVE, "routing") == 1
    bench.judge.learn([News("r0", [], check("healthy", bench.now))], bench.now)
    assert bench.verdict == "healthy"
    bench.judge.learn([News("r0", [], check("weights", bench.now))], bench.now)
    assert bench.verdict == "deployment"


def test_lost_quality_is_an_alarm_of_its_own(bench: Bench) -> None:
    """From the shadow's change to its end."""
    bench.learn()
    bench.send(100)
    change = Change("quality", started=True, began_at=bench.now - 60, summary="worse", evidence={})
    bench.judge.learn([News("r0", [change], None)], bench.now)
    assert bench.verdict == "quality"
    bench.judge.learn([News("r0", [Change("quality", started=False, began_at=0.0)], None)], bench.now)
    assert bench.verdict == "healthy"


def test_layers_go_by_their_index_in_the_whole_model() -> None:
    """A model whose first layers are dense is not shifted."""
    bench = Bench(detect=DetectSettings(average_run_length=100))
    bench.judge.announce(bench.tap.announce(revision="b", layer_ids=[1, 3, 5]), bench.now)
    bench.send(60)
    bench.tick(6.0)
    assert bench.value(metrics.EXPERT_LOAD_ENTROPY, "5") is not None
    assert bench.value(metrics.EXPERT_LOAD_ENTROPY, "2") is None
    matrix = bench.judge.matrix("r0")
    assert matrix is not None
    assert matrix.layer_ids == [1, 3, 5]
    assert sum(matrix.share[0]) == pytest.approx(1.0, abs=1e-4)


def test_ranks_are_judged_where_their_experts_are_known(bench: Bench) -> None:
    """A rank that is twice as loaded shows in its layer; under a balancer nothing is claimed."""
    counts = np.ones((3, 8), np.uint32)
    counts[1, :4] = 3
    for eplb, expected in ((False, 1.5), (True, None)):
        bench.judge.announce(bench.tap.announce(revision=str(eplb), ranks=2, eplb=eplb), bench.now)
        routing = bench.tap.routing(f"e{eplb}", prompt=wire.pack_counts(counts), decode=wire.pack_counts(counts))
        bench.judge.process([Joined("r0", f"e{eplb}", 0, routing, None, None, complete=True)], bench.now)
        bench.tick(6.0)
        assert bench.value(metrics.RANK_LOAD_MAX, "1") == (None if expected is None else pytest.approx(expected))


def test_an_open_drift_says_where_once_enough_fresh_requests_came(bench: Bench) -> None:
    """First the layers, from 500 fresh requests on the experts, in status, alarm and metric; gone at its end."""
    bench.learn()
    bench.send(100)
    bench.send(200, unseen=True)
    (replica,) = bench.judge.describe(bench.now)
    where = replica.episodes[0].where
    assert where is not None
    assert where.layers
    assert where.experts is None
    bench.send(500, unseen=True)
    bench.tick(6.0)
    (replica,) = bench.judge.describe(bench.now)
    where = replica.episodes[0].where
    assert where is not None
    assert where.requests >= 500
    assert where.experts
    first = where.experts[0]
    assert abs(first.now - first.before) > 0.02
    assert bench.value(metrics.MOVED_EXPERTS, str(first.layer)) >= 1
    kept = bench.written.episodes[-1].values["evidence"]["where"]
    assert kept["experts"][0]["expert"] == first.expert
    msgspec.json.encode(kept)
    bench.send(2000)
    bench.tick(6.0)
    assert bench.value(metrics.MOVED_EXPERTS, str(first.layer)) is None


def test_an_expert_that_falls_silent_is_an_alarm_of_the_deployment(bench: Bench) -> None:
    """It has users in the baseline and none for hundreds of requests; the alarm names it and ends with a choice."""
    bench.learn()
    bench.send(300)
    assert bench.value(metrics.DEAD_EXPERTS, "1") == 0

    def silent(request: Joined) -> Joined:
        routing = request.routing
        assert routing is not None
        parts = []
        for part in (routing.prompt, routing.decode):
            counts = wire.unpack_counts(part, 3, 8)
            counts[1, 2] += counts[1, 5]
            counts[1, 5] = 0
            parts.append(wire.pack_counts(counts))
        return replace(request, routing=msgspec.structs.replace(routing, prompt=parts[0], decode=parts[1]))

    for _ in range(8):
        bench.written.extend(bench.judge.process([silent(one) for one in bench.joined(50)], bench.now))
        bench.tick(6.0)
    assert bench.value(metrics.DEAD_EXPERTS, "1") == 1
    assert "dead_experts" in {episode.kind for episode in bench.judge.describe(bench.now)[0].episodes}
    episode = next(one for one in bench.written.episodes if one.values["kind"] == "dead_experts")
    assert "expert 5 of layer 1 got no token in" in episode.values["summary"]
    assert episode.values["evidence"]["probability"] < 1e-4
    bench.send(100)
    bench.tick(6.0)
    assert bench.value(metrics.DEAD_EXPERTS, "1") == 0
    ended = [one for one in bench.written.episodes if one.values["kind"] == "dead_experts"][-1]
    assert ended.values["ended_at"] is not None


def test_the_routers_entropy_stands_beside_its_baseline(bench: Bench) -> None:
    """Layer by layer, from the baseline in force."""
    bench.learn()
    bench.send(60)
    bench.tick(6.0)
    assert bench.value(metrics.ROUTER_ENTROPY, "2") == pytest.approx(1.5)
    assert bench.value(metrics.ROUTER_ENTROPY_BASELINE, "2") == pytest.approx(1.5)
