"""The judge: what one replica's requests and its tap say becomes a verdict, rows and windows."""

from __future__ import annotations

import itertools

import msgspec
import numpy as np
import pytest

from moe_watch import wire
from moe_watch.domain import memory
from moe_watch.domain.request import Joined
from moe_watch.metrics import series
from moe_watch.metrics.board import Board
from moe_watch.settings import Settings, StoreSettings
from moe_watch.sidecar.monitor.replicas import ReplicaMonitors
from tests.support.frames import Tap
from tests.support.judge_bench import Bench, bench

__all__ = ["bench"]


def test_without_a_baseline_nothing_is_healthy(bench: Bench) -> None:
    """The verdict is that it is learning, however many requests pass."""
    bench.send(100)
    assert bench.verdict == "learning"


def test_with_a_baseline_and_no_request_nothing_is_healthy(bench: Bench) -> None:
    """A baseline alone says nothing of now."""
    bench.learn()
    assert bench.verdict == "idle"


def test_rows_say_what_was_measured(bench: Bench) -> None:
    """Every request has a row with the score of its own fingerprint."""
    bench.learn()
    odd = bench.joined(3, unseen=True)
    even = bench.joined(3)
    writes = bench.monitors.process([odd[0], even[0], odd[1], even[1], odd[2], even[2]], bench.now)
    p = [row.values["ood_p"] for row in writes.requests]
    assert max(p[::2]) < min(p[1::2])
    assert all(row.values["baseline_id"] == 1 and row.values["prompt_routed"] == 48 for row in writes.requests)


def test_a_request_too_short_to_be_scored_has_no_p_value(bench: Bench) -> None:
    """It is stored all the same."""
    bench.learn()
    short = Joined("r0", "cmpl-s", 0, bench.tap.routing("cmpl-s", tokens=2), None, None, complete=True)
    (row,) = bench.monitors.process([short], bench.now).requests
    assert row.values["ood_p"] is None
    assert row.values["decode_routed"] == 0


def test_canaries_are_stored_and_count_for_nothing(bench: Bench) -> None:
    """Our own traffic moves neither windows nor detectors."""
    frames = bench.tap.whole("cmpl-c")
    frames[2] = bench.tap.request("cmpl-c", canary=True)
    writes = bench.monitors.process(bench.join.add(frames, 0.0), bench.now)
    writes.extend(bench.monitors.collect(bench.now, last=True))
    assert [row.values["canary"] for row in writes.requests] == [True]
    assert writes.requests[0].fingerprint is not None
    assert sum(window.values["requests"] for window in writes.windows) == 0


def test_fingerprints_are_kept_of_a_share() -> None:
    """The same share of requests each time, chosen by their id."""
    bench = Bench(store=StoreSettings(fingerprint_rate=0.3))
    writes = bench.monitors.process(bench.joined(400), bench.now)
    kept = sum(row.fingerprint is not None for row in writes.requests)
    assert 80 < kept < 160


@pytest.mark.parametrize("state", ["off", "refused", "blind"])
def test_a_tap_that_does_not_see_is_blind(bench: Bench, state: str) -> None:
    """Whatever the tap says that is not on; the alarm is written and ends when it sees again."""
    bench.learn()
    bench.send(100)
    bench.monitors.hear(bench.tap.health(state, reason="because"), bench.now)
    bench.written.extend(bench.monitors.tick(bench.now))
    (replica,) = bench.monitors.describe(bench.now)
    assert (replica.verdict, replica.reason) == ("blind", "because")
    assert bench.value(series.TAP_UP) == 0
    assert bench.written.alarms[-1].values["kind"] == "blind"
    assert bench.verdict == "healthy"
    assert bench.written.alarms[-1].values["ended_at"] is not None


def test_a_silent_tap_is_blind(bench: Bench) -> None:
    """A replica that was seen once stays, at 0."""
    bench.monitors.tick(bench.now + 31.0)
    (replica,) = bench.monitors.describe(bench.now + 31.0)
    assert replica.verdict == "blind"
    assert "silent" in replica.reason
    assert bench.value(series.TAP_UP) == 0


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
    bench.monitors.process(requests, bench.now)
    assert bench.verdict == "blind"


def test_a_dense_model_is_recognised(bench: Bench) -> None:
    """It has nothing to watch, and its requests are counted."""
    bench.monitors.announce(bench.tap.announce(layers=0, experts=0, top_k=0), bench.now)
    bench.monitors.hear(bench.tap.health("dense"), bench.now)
    bench.monitors.process(bench.joined(5, parts=slice(1, None)), bench.now)
    bench.monitors.tick(bench.now)
    (replica,) = bench.monitors.describe(bench.now)
    assert (replica.verdict, replica.requests, replica.layers) == ("idle", 5, 0)
    bench.monitors.tick(bench.now)


def test_another_model_under_the_same_name_starts_anew(bench: Bench) -> None:
    """The baseline of the old one does not judge it, its alarms end, and its series go."""
    bench.learn()
    bench.send(100)
    bench.send(200, unseen=True)
    assert bench.verdict == "traffic"
    bench.monitors.announce(bench.tap.announce(weights="other"), bench.now)
    assert bench.verdict == "learning"
    assert bench.value(series.BASELINE_INFO, "1") is None
    assert bench.value(series.DRIFT_ACTIVE, "traffic") == 0
    assert bench.written.alarms[-1].values["ended_at"] is not None


def test_the_same_model_announced_again_changes_nothing(bench: Bench) -> None:
    """Taps repeat themselves."""
    bench.send(10)
    bench.monitors.announce(bench.tap.announce(), bench.now)
    assert bench.monitors.by_replica["r0"].snapshot(bench.now).requests == 10


def test_requests_wait_for_the_announcement_of_their_replica(bench: Bench) -> None:
    """After a restart of the sidecar beside a running vLLM nothing is lost, up to a bound."""
    tap = Tap(replica="r9")

    def joined(n: int) -> list[Joined]:
        return [Joined("r9", f"a{n}-{i}", 0, tap.routing(f"a{n}-{i}"), None, None, complete=True) for i in range(n)]

    assert bench.monitors.process(joined(30), bench.now).requests == []
    bench.monitors.announce(tap.announce(), bench.now)
    assert len(bench.monitors.collect(bench.now).requests) == 30
    assert bench.monitors.by_replica["r9"].snapshot(bench.now).requests == 30


def test_requests_of_a_replica_that_is_never_announced_are_counted_as_such(bench: Bench) -> None:
    """They cost bounded memory and are refused at the end."""
    requests = [Joined("r9", f"a{n}", 0, None, bench.tap.latency(f"a{n}"), None, complete=True) for n in range(1500)]
    bench.monitors.process(requests, bench.now)
    assert bench.monitors.refused == {"unannounced": 500}
    bench.monitors.collect(bench.now, last=True)
    assert bench.monitors.refused == {"unannounced": 1500}


def test_windows_are_written_as_they_grow_and_when_they_end(bench: Bench) -> None:
    """A kill loses a few seconds, and the last state of each window has everything."""
    for _ in range(8):
        bench.send(50)
        bench.tick(9.0)
    bench.written.extend(bench.monitors.collect(bench.now, last=True))
    last = {window.values["start"]: window.values["requests"] for window in bench.written.windows}
    assert sum(last.values()) == 400
    assert len(last) >= 2
    assert len(bench.written.windows) > len(last)


def test_what_the_tap_dropped_is_counted_across_its_restarts(bench: Bench) -> None:
    """Its counts start anew with its process; ours never go back."""
    for source, count in (("a", 5), ("a", 7), ("b", 2), ("b", 3)):
        health = msgspec.structs.replace(bench.tap.health(dropped={"queue_full": count}), source=source)
        bench.monitors.hear(health, bench.now)
    assert bench.value(series.FRAMES_DROPPED, "queue_full") == 10


def test_requests_that_wait_for_an_announcement_are_bounded_in_bytes() -> None:
    """Over all replicas together, whatever names come."""
    monitors = ReplicaMonitors(Settings(memory_bytes=1 << 26), Board())
    counts = wire.Counts("u1", bytes(1 << 18))
    for number in range(64):
        routing = Tap(replica=f"r{number}").routing("cmpl", prompt=counts)
        size = memory.weigh(routing)
        monitors.process([Joined(f"r{number}", "cmpl", 0, routing, None, None, complete=False, size=size)], 1.0)
    assert sum(map(len, monitors._held.values())) == 15
    assert monitors.refused == {"unannounced": 49}


def test_a_replica_that_is_forgotten_leaves_everything_but_the_store(bench: Bench) -> None:
    """Its alarms end, its series and its place in the status go, and it may come back as new."""
    bench.learn()
    bench.send(300, unseen=True)
    assert "traffic" in bench.monitors.by_replica["r0"].alarms.open
    bench.monitors.forget("r0", bench.now)
    writes = bench.monitors.collect(bench.now)
    assert [row.values["kind"] for row in writes.alarms if row.values["ended_at"] is not None] == ["traffic"]
    assert bench.monitors.describe(bench.now) == []
    bench.monitors.tick(bench.now + 60)
    assert not [s for f in bench.board.read() for s in f.series if "r0" in s.labels]
    bench.monitors.announce(bench.tap.announce(), bench.now)
    assert [one.replica for one in bench.monitors.describe(bench.now)] == ["r0"]


def test_a_start_makes_no_replica_younger(bench: Bench) -> None:
    """What the store knows is written with the time at which it was heard, else it would never expire."""
    heard = bench.now - 80_000.0
    bench.monitors.announce(bench.tap.announce(revision="b"), bench.now, heard_at=heard)
    (written,) = bench.monitors.collect(bench.now).meta.values()
    assert msgspec.json.decode(written)["sent_at"] == heard


def test_an_announcement_is_written_again_before_it_would_expire(bench: Bench) -> None:
    """So that a start can tell a replica that is gone from one that is served on, unchanged, for months."""
    day = 86_400.0
    times = [bench.now + hour * 3600 for hour in range(25)]
    written = []
    for now in times:
        bench.monitors.announce(bench.tap.announce(), now)
        written += [msgspec.json.decode(value)["sent_at"] for value in bench.monitors.collect(now).meta.values()]
    assert len(written) == 9
    assert max(b - a for a, b in itertools.pairwise(written)) < day / 4
