"""The judge: what opens an alarm, what it says, and what ends it."""

from __future__ import annotations

import re
import time
from dataclasses import replace

import msgspec
import numpy as np
import pytest

from moe_watch import wire
from moe_watch.domain.request import Joined
from moe_watch.metrics import series
from moe_watch.settings import DetectSettings
from moe_watch.shadow.watch import Change
from moe_watch.sidecar.background import News
from moe_watch.store.schema import CanaryRun
from tests.support.judge_bench import NOW, Bench, bench

__all__ = ["bench"]


def test_normal_traffic_is_healthy_and_unseen_traffic_is_not(bench: Bench) -> None:
    """An alarm begins, with the requests and the summary a pager needs, is counted, and ends when traffic is normal."""
    bench.learn()
    bench.send(300)
    assert bench.verdict == "healthy"
    assert bench.value(series.DRIFT_ACTIVE, "traffic") == 0
    bench.send(200, unseen=True)
    assert bench.verdict == "traffic"
    assert bench.value(series.DRIFT_ACTIVE, "traffic") == bench.value(series.VERDICT, "traffic") == 1
    assert bench.value(series.ALARMS, "traffic") == 1
    assert bench.value(series.OOD_RATIO) > 0.2
    alarm = bench.written.alarms[0]
    assert {one.values["flagged_at"] for one in bench.written.alarms} == {alarm.values["flagged_at"]}
    assert alarm.values["summary"].startswith("tiny at r0: expert routing left baseline 1")
    assert NOW <= alarm.values["began_at"] <= alarm.values["flagged_at"]
    assert alarm.values["evidence"]["requests"]
    msgspec.json.encode(alarm.values["evidence"])
    bench.send(2000)
    assert bench.verdict == "healthy"
    assert bench.written.alarms[-1].values["ended_at"] is not None
    assert bench.written.alarms[-1].values["ending"] == "recovered"


def test_another_configuration_of_the_same_model_is_an_event_once(bench: Bench) -> None:
    """An upgrade, other kernels and another layout are told in words, and kept so that it is told once."""
    upgraded = {"vllm_version": "0.33.0", "moe_backend": "TritonExperts", "parallel": {"ep": 2}}
    for _ in range(3):
        bench.monitors.announce(bench.tap.announce(**upgraded), bench.now)
    bench.tick(1.0)
    (event,) = [event for event in bench.written.events if event.values["kind"] == "model_changed"]
    assert event.values["detail"] == (
        "vLLM 0.33.0 instead of none, MoE kernels TritonExperts instead of none, expert-parallel ranks 2 instead of 1"
    )
    kept = [msgspec.json.decode(value, type=wire.Model) for value in bench.written.meta.values()]
    assert kept[-1].vllm_version == "0.33.0"
    assert bench.value(series.EVENTS, "model_changed") == 1


@pytest.mark.parametrize("between", [0, 3])
def test_a_drift_is_dated_to_what_happened_before_it(bench: Bench, between: int) -> None:
    """A rebalance shortly before the change is named with the number of requests between the two."""
    bench.learn()
    bench.send(100)
    kind, at = "eplb_rebalance", time.time()
    bench.monitors.hear(wire.Event(**bench.tap.engine(), kind=kind, at=at), bench.now)
    bench.send(between)
    bench.send(100, unseen=True)
    (alarm,) = [alarm for alarm in bench.written.alarms if alarm.values["kind"] == "traffic"][:1]
    dated = alarm.values["evidence"]["dated"]
    assert (dated["event"], abs(dated["requests"] - between) <= 5) == ("eplb_rebalance", True)
    assert re.search(r"; began (with|\d+ requests? (after|before)) the rebalance$", alarm.values["summary"])


def test_a_promotion_is_taken_up(bench: Bench) -> None:
    """Alarms against the old baseline end, and the event is counted."""
    bench.learn()
    bench.send(100)
    bench.send(200, unseen=True)
    bench.learn(version=2)
    assert bench.verdict == "idle"
    assert bench.value(series.BASELINE_INFO, "2") == 1
    assert bench.value(series.BASELINE_INFO, "1") is None
    assert bench.value(series.EVENTS, "baseline_promoted") == 2


def test_what_ended_an_alarm_is_written_wherever_it_ends(bench: Bench) -> None:
    """Another baseline, another configuration and the sidecar's stop are no recovery, and the status tells."""
    bench.learn()
    bench.send(100)
    bench.send(200, unseen=True)
    bench.learn(version=2)
    monitor = bench.monitors.by_replica["r0"]
    monitor.begin("garbled", bench.now, bench.now, "broken", {})
    bench.monitors.announce(bench.tap.announce(revision="b"), bench.now)
    bench.monitors.by_replica["r0"].begin("quality", bench.now, bench.now, "worse", {})
    bench.written.extend(bench.monitors.collect(bench.now, last=True))
    ended = {one.values["kind"]: one.values["ending"] for one in bench.written.alarms if one.values["ended_at"]}
    wanted = {"traffic": "baseline_replaced", "garbled": "configuration_changed", "quality": "sidecar_stopped"}
    assert ended == wanted
    (replica,) = bench.monitors.describe(bench.now)
    assert {one.kind: one.ending for one in replica.ended} == wanted


def test_dead_experts_that_a_new_baseline_does_not_miss_did_not_recover(bench: Bench) -> None:
    """The alarm ends because it is held against something else."""
    bench.learn()
    bench.send(100)
    monitor = bench.monitors.by_replica["r0"]
    monitor.begin("dead_experts", bench.now, bench.now, "expert 5", {})
    bench.learn(version=2)
    bench.send(50)
    bench.tick(6.0)
    (ended,) = monitor.alarms.ended
    assert (ended["kind"], ended["ending"]) == ("dead_experts", "baseline_replaced")


def test_looking_judges_nothing(bench: Bench) -> None:
    """A status asked for while the tap is blind opens no alarm, and one asked for later ends none: the tick does."""
    bench.learn()
    bench.beat("off")
    for _ in range(2):
        (replica,) = bench.monitors.describe(bench.now)
        assert (replica.verdict, replica.alarms) == ("learning", [])
    bench.written.extend(bench.monitors.tick(bench.now))
    (replica,) = bench.monitors.describe(bench.now)
    assert (replica.verdict, [one.kind for one in replica.alarms]) == ("blind", ["blind"])
    bench.beat()
    (replica,) = bench.monitors.describe(bench.now + 3600)
    assert [one.kind for one in replica.alarms] == ["blind"]
    assert bench.monitors.collect(bench.now).alarms == []


def test_a_detector_that_fails_costs_its_result_alone(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Requests are counted and stored without a score, and the failure is a metric."""
    bench.learn()

    def broken(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("moe_watch.sidecar.monitor.detectors.online.observe", broken)
    bench.send(50)
    assert bench.value(series.DETECTOR_ERRORS) == 1
    assert len(bench.written.requests) == 50
    assert bench.verdict == "idle"


def test_a_canary_that_moved_is_routing_drift_and_names_the_deployment(bench: Bench) -> None:
    """The alarm is dated to the check and ends with the next healthy one."""
    bench.learn()
    bench.send(100)

    def check(verdict: str, at: float) -> CanaryRun:
        return CanaryRun(id=int(at), at=at, verdict=verdict, summary="layer 2 moved", evidence={})

    bench.monitors.learn([News("r0", [], check("routing", bench.now))], bench.now + 1)
    assert bench.verdict == "routing"
    assert bench.value(series.DRIFT_ACTIVE, "routing") == 1
    bench.monitors.learn([News("r0", [], check("healthy", bench.now))], bench.now)
    assert bench.verdict == "healthy"
    bench.monitors.learn([News("r0", [], check("weights", bench.now))], bench.now)
    assert bench.verdict == "deployment"


def test_nobody_sees_an_open_alarm_beside_the_verdict_of_before(bench: Bench) -> None:
    """Between two renewals too: canaries, the shadow and traffic change the verdict with the alarm."""
    bench.learn()
    bench.send(100)

    def seen() -> str:
        (replica,) = bench.monitors.describe(bench.now)
        return replica.verdict

    run = CanaryRun(id=1, at=bench.now, verdict="routing", summary="layer 2 moved", evidence={})
    bench.monitors.learn([News("r0", [], run)], bench.now)
    assert seen() == "routing"
    garbled = Change("garbled", started=True, began_at=bench.now, summary="broken", evidence={})
    bench.monitors.learn([News("r0", [garbled], None)], bench.now)
    assert seen() == "quality"
    bench.monitors.learn([News("r0", [Change("garbled", started=False, began_at=0.0)], None)], bench.now)
    assert seen() == "routing"


def test_lost_quality_is_an_alarm_of_its_own(bench: Bench) -> None:
    """From the shadow's change to its end."""
    bench.learn()
    bench.send(100)
    change = Change("quality", started=True, began_at=bench.now - 60, summary="worse", evidence={})
    bench.monitors.learn([News("r0", [change], None)], bench.now)
    assert bench.verdict == "quality"
    bench.monitors.learn([News("r0", [Change("quality", started=False, began_at=0.0)], None)], bench.now)
    assert bench.verdict == "healthy"


def test_layers_go_by_their_index_in_the_whole_model() -> None:
    """A model whose first layers are dense is not shifted."""
    bench = Bench(detect=DetectSettings(average_run_length=100))
    bench.monitors.announce(bench.tap.announce(revision="b", layer_ids=[1, 3, 5]), bench.now)
    bench.send(60)
    bench.tick(6.0)
    assert bench.value(series.EXPERT_LOAD_ENTROPY, "5") is not None
    assert bench.value(series.EXPERT_LOAD_ENTROPY, "2") is None
    matrix = bench.monitors.matrix("r0", bench.now)
    assert matrix is not None
    assert matrix.layer_ids == [1, 3, 5]
    assert sum(matrix.share[0]) == pytest.approx(1.0, abs=1e-4)


def test_ranks_are_judged_where_their_experts_are_known(bench: Bench) -> None:
    """A rank that is twice as loaded shows in its layer; under a balancer nothing is claimed."""
    counts = np.ones((3, 8), np.uint32)
    counts[1, :4] = 3
    for eplb, expected in ((False, 1.5), (True, None)):
        bench.monitors.announce(bench.tap.announce(revision=str(eplb), ranks=2, eplb=eplb), bench.now)
        routing = bench.tap.routing(f"e{eplb}", prompt=wire.pack_counts(counts), decode=wire.pack_counts(counts))
        bench.monitors.process([Joined("r0", f"e{eplb}", 0, routing, None, None, complete=True)], bench.now)
        bench.tick(6.0)
        assert bench.value(series.RANK_LOAD_MAX, "1") == (None if expected is None else pytest.approx(expected))


def test_an_open_drift_says_where_once_enough_fresh_requests_came(bench: Bench) -> None:
    """First the layers, from 500 fresh requests on the experts, in status, alarm and metric; gone at its end."""
    bench.learn()
    bench.send(100)
    bench.send(200, unseen=True)
    (replica,) = bench.monitors.describe(bench.now)
    where = replica.alarms[0].where
    assert where is not None
    assert where.layers
    assert where.experts is None
    bench.send(500, unseen=True)
    bench.tick(6.0)
    (replica,) = bench.monitors.describe(bench.now)
    where = replica.alarms[0].where
    assert where is not None
    assert where.requests >= 500
    assert where.experts
    first = where.experts[0]
    assert abs(first.now - first.before) > 0.02
    assert bench.value(series.MOVED_EXPERTS, str(first.layer)) >= 1
    kept = bench.written.alarms[-1].values["evidence"]["where"]
    assert kept["experts"][0]["expert"] == first.expert
    msgspec.json.encode(kept)
    bench.send(2000)
    bench.tick(6.0)
    assert bench.value(series.MOVED_EXPERTS, str(first.layer)) is None


def test_an_expert_that_falls_silent_is_an_alarm_of_the_deployment(bench: Bench) -> None:
    """It has users in the baseline and none for hundreds of requests; the alarm names it and ends with a choice."""
    bench.learn()
    bench.send(300)
    assert bench.value(series.DEAD_EXPERTS, "1") == 0

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
        bench.written.extend(bench.monitors.process([silent(one) for one in bench.joined(50)], bench.now))
        bench.tick(6.0)
    assert bench.value(series.DEAD_EXPERTS, "1") == 1
    assert "dead_experts" in {alarm.kind for alarm in bench.monitors.describe(bench.now)[0].alarms}
    alarm = next(one for one in bench.written.alarms if one.values["kind"] == "dead_experts")
    assert "expert 5 of layer 1 got no token in" in alarm.values["summary"]
    assert alarm.values["evidence"]["probability"] < 1e-4
    bench.send(100)
    bench.tick(6.0)
    assert bench.value(series.DEAD_EXPERTS, "1") == 0
    ended = [one for one in bench.written.alarms if one.values["kind"] == "dead_experts"][-1]
    assert ended.values["ended_at"] is not None


def test_the_routers_entropy_stands_beside_its_baseline(bench: Bench) -> None:
    """Layer by layer, from the baseline in force."""
    bench.learn()
    bench.send(60)
    bench.tick(6.0)
    assert bench.value(series.ROUTER_ENTROPY, "2") == pytest.approx(1.5)
    assert bench.value(series.ROUTER_ENTROPY_BASELINE, "2") == pytest.approx(1.5)
