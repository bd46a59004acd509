"""Writes: in one transaction, exactly once, on SQLite and on Postgres."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as nps
from sqlalchemy import Engine, func, select
from sqlalchemy.exc import DBAPIError, OperationalError

from moe_watch import wire
from moe_watch.domain.window import Window
from moe_watch.sidecar.join import Join
from moe_watch.store import engine, schema
from moe_watch.store.codecs import arrays
from moe_watch.store.read import requests
from moe_watch.store.records import served_models, windows
from moe_watch.store.write import request_rows
from moe_watch.store.write.batch import NewAlarm, NewEvent, Writes, is_away, write
from tests.support.frames import Tap


def some_writes(n: int = 3, tap: Tap | None = None, *, sample: bool = True) -> Writes:
    """Return a model, ``n`` requests with fingerprints and samples, a window, an alarm and an event."""
    tap = tap or Tap()
    join, model = Join(5.0), tap.announce()
    identity = served_models.identity(model)
    text = wire.Sample(prompt="p\0", outputs=["o"], params={"temperature": 0.0}) if sample else None
    frames = [
        frame
        for number in range(n)
        for frame in (
            tap.routing(f"cmpl-{number}"),
            tap.latency(f"cmpl-{number}"),
            tap.request(f"cmpl-{number}", sample=text, sample_rate=0.5),
        )
    ]
    writes = served_models.announcement(model, 1.0)
    writes.requests = request_rows.new_requests(
        identity,
        join.add(frames, 0.0),
        [],
        None,
        baseline_id=None,
        fingerprint_rate=1.0,
        keep_samples_days=1.0,
    )
    window = Window(tap.layers, tap.experts, n, n)
    writes.windows = [windows.row(identity, tap.replica, 60.0, 60.0, window)]
    writes.alarms = [NewAlarm(identity, alarm_values(tap.replica))]
    event = {"at": 5.0, "replica": tap.replica, "kind": "engine_start", "detail": ""}
    writes.events = [NewEvent(identity, event), NewEvent("", event | {"at": 6.0})]
    return writes


def alarm_values(replica: str, **more: Any) -> dict[str, Any]:
    values = {
        "replica": replica,
        "kind": "traffic",
        "began_at": 1.0,
        "flagged_at": 2.0,
        "ended_at": None,
        "baseline_id": None,
        "summary": "it moved",
        "evidence": {"channel": "ood"},
    }
    return values | more


def _count(store: Engine, table: type[schema.Base]) -> int:
    with store.connect() as connection:
        return int(connection.scalar(select(func.count()).select_from(table)) or 0)


_TABLES = (schema.Request, schema.Fingerprint, schema.Sample, schema.Window, schema.Alarm, schema.Event)


def test_what_is_written_twice_is_there_once(store: Engine) -> None:
    """The same batch again changes nothing, as a replay of the spool does."""
    writes = some_writes()
    assert write(store, writes) == 3
    once = [_count(store, table) for table in _TABLES]
    assert write(store, writes) == 0
    assert [_count(store, table) for table in _TABLES] == once == [3, 3, 3, 1, 1, 2]


def test_a_batch_may_mix_old_and_new_requests(store: Engine) -> None:
    """Only the new ones get rows, and every fingerprint belongs to its own request."""
    old, more = some_writes(2), some_writes(5)
    more.requests[:2] = old.requests
    write(store, old)
    assert write(store, more) == 3
    with store.connect() as connection:
        found = connection.execute(
            select(schema.Request.request_id, schema.Fingerprint.prompt).join(schema.Fingerprint)
        ).all()
    assert len(found) == 5
    sent = {request.values["request_id"]: request.fingerprint for request in more.requests}
    for request_id, prompt in found[2:]:
        fingerprint = sent[request_id]
        assert fingerprint is not None
        assert fingerprint["prompt"] == prompt


def test_the_same_request_twice_in_one_batch_is_one_row(store: Engine) -> None:
    """A duplicate within a batch is as harmless as one across batches."""
    writes = some_writes(2)
    writes.requests += writes.requests
    assert write(store, writes) == 2
    assert _count(store, schema.Fingerprint) == 2


def test_an_id_that_comes_again_long_after_is_another_row(store: Engine) -> None:
    """With its own fingerprint and text, found by the client's id; writing all of it once more changes nothing."""
    first, later = some_writes(3), some_writes(3)
    for request in later.requests:
        request.values["finished_at"] += 1e6
    assert [write(store, some) for some in (first, later, later, first)] == [3, 3, 0, 0]
    found = requests.find(store, "cmpl-1")
    assert [one.request.finished_at for one in found] == [
        writes.requests[1].values["finished_at"] for writes in (later, first)
    ]
    assert all(one.fingerprint is not None and one.sample is not None for one in found)
    assert [one.request.request_id for one in requests.find(store, found[0].request.request_id)] != ["cmpl-1"]


def test_a_window_grows_in_place(store: Engine) -> None:
    """A later state of the same window replaces the earlier one."""
    writes = some_writes(1)
    write(store, writes)
    identity = writes.windows[0].identity
    write(store, Writes(windows=[windows.row(identity, "r0", 60.0, 60.0, Window(3, 8, 7, 6))]))
    with store.connect() as connection:
        assert connection.execute(select(schema.Window.requests, schema.Window.routed_requests)).all() == [(7, 6)]


def test_an_alarm_ends_in_place(store: Engine) -> None:
    """The end of an alarm is written to the row of its start."""
    writes = some_writes(0)
    write(store, writes)
    identity = writes.alarms[0].identity
    write(store, Writes(alarms=[NewAlarm(identity, alarm_values("r0", ended_at=9.0))]))
    with store.connect() as connection:
        assert connection.execute(select(schema.Alarm.ended_at)).all() == [(9.0,)]


def test_text_that_postgres_cannot_keep_is_written_all_the_same(store: Engine) -> None:
    """A NUL in a prompt does not cost the batch."""
    write(store, some_writes(1))
    with store.connect() as connection:
        assert connection.scalar(select(schema.Sample.prompt)) == "p\N{REPLACEMENT CHARACTER}"


def test_a_failing_batch_leaves_nothing_behind(store: Engine) -> None:
    """A batch is written whole or not at all."""
    writes = some_writes(2)
    writes.requests[1].values["outcome"] = None
    with pytest.raises(DBAPIError) as error:
        write(store, writes)
    assert not is_away(error.value)
    assert _count(store, schema.Model) == 0


def test_a_store_that_is_away_is_told_from_a_wrong_row() -> None:
    """Only the first is worth a retry."""
    with pytest.raises(OperationalError) as error:
        write(engine.connect("postgresql+psycopg://nobody@127.0.0.1:1/none"), some_writes(1))
    assert is_away(error.value)


def test_halves_write_the_same(store: Engine) -> None:
    """A batch cut down to single rows gives what the whole would have given."""
    pieces, rest = 0, [some_writes(4)]
    while rest:
        halves = rest[0].halves()
        if halves is None:
            write(store, rest.pop(0))
            pieces += 1
        else:
            rest[:1] = halves
    assert pieces == 4 + 1 + 1 + 1 + 2 + 1
    assert [_count(store, table) for table in _TABLES] == [4, 4, 4, 1, 1, 2]


def test_writes_survive_the_spool() -> None:
    """Everything that is written can be kept as msgpack meanwhile."""
    writes = some_writes(2)
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(writes), type=Writes) == writes


@given(
    st.sampled_from([np.uint8, np.uint16, np.uint32, np.uint64]).flatmap(
        lambda dtype: nps.arrays(dtype, nps.array_shapes(max_dims=3, max_side=6))
    )
)
def test_arrays_come_back_as_they_were(array: np.ndarray) -> None:
    """Type and values survive packing."""
    back = arrays.unpack(arrays.pack(array), array.shape)
    assert back.dtype == array.dtype
    assert (back == array).all()


@given(st.binary(max_size=60))
def test_bytes_that_are_no_array_are_refused(raw: bytes) -> None:
    """A damaged column is a ValueError, whatever is in it."""
    try:
        found = arrays.unpack(raw, (2, 3))
    except ValueError:
        return
    assert found.shape == (2, 3)
