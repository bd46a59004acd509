"""Queries: requests, windows, baselines, alarms and events come back as they were written."""

from __future__ import annotations

import numpy as np
import pytest
from sqlalchemy import Engine, update

from moe_watch import wire
from moe_watch.detect.common.batch import Batch
from moe_watch.detect.fit.baseline_fit import Baseline, BaselineBuilder
from moe_watch.domain.window import Window
from moe_watch.store import schema
from moe_watch.store.engine import StoreError
from moe_watch.store.read import requests
from moe_watch.store.records import alarms, baselines, events, served_models, windows
from moe_watch.store.write.batch import NewAlarm, Writes, write
from tests.store.test_store_write import alarm_values, some_writes
from tests.support.frames import Tap


@pytest.fixture(scope="module")
def fitted() -> Baseline:
    """Return a baseline of the shape of ``Tap``'s model."""
    tap, builder = Tap(), BaselineBuilder(minimum=300)
    routings = [tap.routing(str(number)) for number in range(400)]
    counts = [
        np.array([wire.unpack_counts(counts, 3, 8) for counts in part])
        for part in ([r.prompt for r in routings], [r.decode for r in routings])
    ]
    builder.add(Batch(counts[0], counts[1], 2, finished_at=np.arange(400.0)))
    return builder.build()


def _model(store: Engine, tap: Tap | None = None) -> schema.Model:
    found = served_models.by_identity(store, served_models.identity((tap or Tap()).announce()))
    assert found is not None
    return found


def test_a_request_is_found_by_its_id(store: Engine) -> None:
    """With its model, fingerprint and sample; a request of another id is not."""
    writes = some_writes(2)
    write(store, writes)
    (found,) = requests.find(store, "cmpl-1")
    assert (found.request.request_id, found.model.name) == ("cmpl-1", "tiny")
    assert found.fingerprint is not None
    assert arrays_sum(found.fingerprint.prompt) == 3 * 48 * 2
    assert found.sample is not None
    assert found.sample.output == "o"
    assert requests.find(store, "cmpl-9") == []
    assert requests.find(store, "cmpl-1", replica="other") == []


def test_ids_that_were_made_unique_lead_back(store: Engine) -> None:
    """The client's id finds its request and those that came again with it, and no id that only looks so."""
    writes = some_writes(6)
    names = [
        "a_b",
        "a_b~0123456789ab",
        "a_b~0123456789ac",
        "a_b~0123",
        "axb~0123456789ab",
        "a_b~0123456789ab~zzzzzzzzzzzz",
    ]
    for request, name in zip(writes.requests, names, strict=True):
        request.values["request_id"] = name
    write(store, writes)
    assert {found.request.request_id for found in requests.find(store, "a_b")} == set(names[:3])
    assert {found.request.request_id for found in requests.find(store, names[1])} == {names[1], names[5]}
    assert [found.request.request_id for found in requests.find(store, names[3])] == [names[3]]


def arrays_sum(raw: bytes) -> int:
    return int(requests.arrays.unpack_counts(raw, 3, 8).sum())


def test_the_same_id_at_two_replicas_is_found_twice(store: Engine) -> None:
    """Both requests are shown, the newest first."""
    write(store, some_writes(1))
    write(store, some_writes(1, Tap(replica="r1")))
    assert {found.request.replica for found in requests.find(store, "cmpl-0")} == {"r0", "r1"}


def test_fingerprints_stream_in_the_order_of_time(store: Engine) -> None:
    """In batches, within the period, canaries left out, counts and confidence exact."""
    tap = Tap()
    writes = some_writes(7, tap)
    for number, request in enumerate(writes.requests):
        request.values.update(finished_at=100.0 - number, canary=number == 3)
    writes.requests[2].fingerprint = dict(writes.requests[2].fingerprint or {}, confidence=None)
    write(store, writes)
    found = list(requests.fingerprints(store, _model(store), 95.0, 100.0, size=2))
    assert [len(stored.batch) for stored in found] == [2, 2, 1]
    assert [request_id for stored in found for request_id in stored.request_ids] == [
        "cmpl-5",
        "cmpl-4",
        "cmpl-2",
        "cmpl-1",
        "cmpl-0",
    ]
    assert all((stored.batch.tokens == 64).all() for stored in found)
    entropy = found[1].batch.entropy
    assert entropy is not None
    assert np.isnan(entropy[0]).all()
    assert (entropy[1] == 1.5).all()
    assert requests.count(store, _model(store).id) == 6


def test_windows_come_back_and_add_up(store: Engine) -> None:
    """Pooled over replicas they are the sum."""
    tap = Tap()
    write(store, some_writes(0, tap))
    identity = served_models.identity(tap.announce())
    for replica in ("a", "b"):
        window = Window(3, 8, 2, 1)
        window.counts[0, 1, 2] = 5
        window.moments[1, 0, 0] = 0.25
        window.sums.ood = 1.0
        write(store, Writes(windows=[windows.row(identity, replica, 120.0, 60.0, window)]))
    pooled = windows.pooled(store, _model(store), 100.0, 200.0)
    assert (pooled.requests, int(pooled.counts[0, 1, 2]), pooled.moments[1, 0, 0]) == (4, 10, 0.5)
    assert pooled.sums.ood == 2
    assert windows.pooled(store, _model(store), 100.0, 200.0, replica="a").requests == 2


def test_baselines_are_versioned_and_one_is_active(store: Engine, fitted: Baseline) -> None:
    """Versions count up per model; promoting one retires the other and leaves an event."""
    write(store, some_writes(0))
    model = _model(store)
    assert [baselines.save(store, model, fitted, now=float(n)).version for n in (1, 2)] == [1, 2]
    assert baselines.active(store) == {}
    baselines.promote(store, model, 1, now=10.0)
    baselines.promote(store, model, 2, now=20.0)
    active = baselines.active(store)[model.identity]
    assert (active.version, active.promoted_at, active.requests) == (2, 20.0, 400)
    assert [(row.version, row.active) for row, _ in baselines.listed(store)] == [(2, True), (1, False)]
    assert [event.kind for event in events.between(store, 9.0, 30.0)] == ["baseline_promoted"] * 2


def test_a_baseline_comes_back_as_it_was(store: Engine, fitted: Baseline) -> None:
    """The store keeps it byte for byte."""
    write(store, some_writes(0))
    row = baselines.save(store, _model(store), fitted, now=1.0)
    again = baselines.load(store, row.id)
    assert (again.counts == fitted.counts).all()
    assert again.requests == 400


def test_a_baseline_of_another_model_is_refused(store: Engine, fitted: Baseline) -> None:
    """By shape when it is saved, by model when it is promoted, each with what to do."""
    write(store, some_writes(0))
    other = Tap(replica="r1", model="other", experts=16)
    write(store, some_writes(0, other))
    with pytest.raises(StoreError, match=r"\(3, 8, 2\).*other has \(3, 16, 2\)"):
        baselines.save(store, _model(store, other), fitted, now=1.0)
    baselines.save(store, _model(store), fitted, now=1.0)
    with pytest.raises(StoreError, match="fit one with"):
        baselines.promote(store, _model(store, other), 1, now=2.0)
    with pytest.raises(StoreError, match="baseline list"):
        baselines.promote(store, _model(store), 7, now=2.0)


def test_a_damaged_baseline_is_refused(store: Engine, fitted: Baseline) -> None:
    """A blob that cannot be read is explained, not raised from numpy."""
    write(store, some_writes(0))
    row = baselines.save(store, _model(store), fitted, now=1.0)
    with store.begin() as connection:
        connection.execute(update(schema.Baseline).values(blob=b"PK\x03\x04 no archive"))
    with pytest.raises(StoreError, match="fit a new one"):
        baselines.load(store, row.id)
    with pytest.raises(StoreError, match="is gone"):
        baselines.load(store, 999)


def test_what_a_replica_announced_last_is_remembered(store: Engine) -> None:
    """So that a restarted sidecar knows at once what is served to it, and nothing of another one's replicas."""
    first, then = Tap().announce(), Tap(experts=16).announce(revision="v2")
    for model in (first, then, Tap(replica="r1").announce()):
        write(store, served_models.announcement(model, 1.0, "a"))
    write(store, served_models.announcement(Tap(replica="r2").announce(), 1.0, "b"))
    assert {model.replica: model.experts for model in served_models.announced(store, "a")} == {"r0": 16, "r1": 8}
    assert [model.replica for model in served_models.announced(store, "b")] == ["r2"]


@pytest.mark.parametrize("changed", [{"revision": "b"}, {"weights": "w"}, {"top_k": 3}, {"experts": 16}], ids=str)
def test_a_change_that_can_move_routing_is_another_model(changed: dict[str, object]) -> None:
    """Replica and source do not matter; revision, weights and shape do."""
    assert served_models.identity(Tap(replica="b", source="c").announce()) == served_models.identity(Tap().announce())
    assert served_models.identity(Tap().announce(**changed)) != served_models.identity(Tap().announce())


def test_alarms_are_found_by_the_time_they_were_open(store: Engine) -> None:
    """Open ones belong to every later period; what a stopped sidecar left open can be closed."""
    writes = some_writes(0)
    identity = writes.models[0].identity
    writes.alarms = [
        NewAlarm(identity, alarm_values("r0", flagged_at=10.0, ended_at=20.0)),
        NewAlarm(identity, alarm_values("r0", flagged_at=30.0)),
    ]
    write(store, writes)
    assert [e.flagged_at for e in alarms.between(store, 15.0, 25.0)] == [10.0]
    assert [e.flagged_at for e in alarms.between(store, 25.0, 99.0)] == [30.0]
    assert alarms.close_open(store, ["r0"], 40.0) == 1
    assert alarms.between(store, 50.0, 99.0) == []
    first = alarms.between(store, 15.0, 25.0)[0]
    found = alarms.find(store, first.id)
    assert found is not None
    assert found.summary == "it moved"
