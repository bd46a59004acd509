"""A month in the store stays within its retention, and its sums stay what they were."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from sqlalchemy import Engine, func, select
from sqlalchemy.orm import Session

from moe_watch.domain.window import Window
from moe_watch.settings import StoreSettings
from moe_watch.store import engine, migrate, schema
from moe_watch.store.codecs import arrays
from moe_watch.store.lifecycle.prune import DAY_S, HOUR_S, prune
from moe_watch.store.records import windows
from moe_watch.store.write.batch import Writes, write

NOW = 1_790_000_000.0
KEEP = StoreSettings(keep_requests_days=14, keep_samples_days=3, keep_windows_days=20)
SHAPE = (2, 4)
STEP_S = 1800.0


def window(seed: int) -> Window:
    made = Window(*SHAPE, requests=seed % 7, routed_requests=seed % 5)
    made.counts += np.uint64(seed)
    made.moments += seed / 3
    made.sums.preemptions = float(seed)
    return made


@pytest.fixture
def store(tmp_path: Path) -> Engine:
    """Make a store with a request every four hours and a window every half hour for thirty days."""
    opened = engine.connect(f"sqlite:///{tmp_path}/month.db")
    migrate.upgrade(opened)
    with Session(opened) as session, session.begin():
        model = schema.Model(
            identity="a", name="m", layers=SHAPE[0], experts=SHAPE[1], top_k=1, first_seen=NOW, detail={}
        )
        session.add(model)
        session.flush()
        for index in range(30 * 24 * 2):
            at = NOW - 30 * DAY_S + STEP_S * index
            at -= at % STEP_S
            values = windows.row("a", "r", at, STEP_S, window(index)).values
            session.add(schema.Window(model_id=model.id, **values))
        add_requests(session, model)
    return opened


def add_requests(session: Session, model: schema.Model) -> None:
    counts = arrays.pack(np.ones(SHAPE, np.uint8))
    times = [(index + 1, NOW - 30 * DAY_S + 4 * HOUR_S * index) for index in range(30 * 6)]
    plain = {
        "choice": 0, "replica": "r", "outcome": "stop", "prompt_tokens": 1, "output_tokens": 1, "cached_tokens": 0,
        "preemptions": 0, "finish_reason": "stop", "corrupted": False, "images": 0, "domain": "", "user_hash": "",
        "canary": False,
    }  # fmt: skip
    session.add_all(
        schema.Request(id=key, request_id=f"r-{key}", model_id=model.id, finished_at=at, **plain) for key, at in times
    )
    session.flush()  # the others point at requests
    session.add_all(schema.Fingerprint(request_pk=key, prompt=counts, decode=counts) for key, _ in times)
    session.add_all(
        schema.Sample(request_pk=key, prompt="p", output="o", params={}, sample_rate=1.0, expires_at=at + 3 * DAY_S)
        for key, at in times
    )


def size(store: Engine, table: type[schema.Base]) -> int:
    with Session(store) as session:
        return int(session.scalar(select(func.count()).select_from(table)) or 0)


def test_single_requests_and_text_go_after_their_time(store: Engine) -> None:
    """Fourteen days of requests with their fingerprints are left, and three of text."""
    pruned = prune(store, KEEP, NOW)
    assert size(store, schema.Request) == size(store, schema.Fingerprint) == 14 * 6
    assert size(store, schema.Sample) == 3 * 6
    assert (pruned.requests, pruned.samples) == (16 * 6, 27 * 6)


def test_old_windows_become_hours_and_their_sum_stays(store: Engine) -> None:
    """Rolling up changes the number of rows and nothing that they add up to."""
    with Session(store) as session:
        model = session.scalars(select(schema.Model)).one()
    oldest = NOW - 19 * DAY_S
    before = windows.pooled(store, model, oldest - oldest % HOUR_S, NOW)
    prune(store, KEEP, NOW)
    after = windows.pooled(store, model, oldest - oldest % HOUR_S, NOW)
    assert np.array_equal(before.counts, after.counts)
    assert np.allclose(before.moments, after.moments)
    assert (before.requests, before.sums) == (after.requests, after.sums)
    rows = size(store, schema.Window)
    assert rows <= 20 * 24 + 26 * 2


def test_pruning_again_changes_nothing(store: Engine) -> None:
    """A second pass at the same moment finds nothing to do."""
    prune(store, KEEP, NOW)
    rows = size(store, schema.Window)
    again = prune(store, KEEP, NOW)
    assert (again.requests, again.samples, again.windows, again.rolled_up) == (0, 0, 0, 0)
    assert size(store, schema.Window) == rows


def test_a_late_window_joins_its_hour(store: Engine) -> None:
    """A window that comes after its hour was rolled up is added to it, once the replica has gone on to the next."""
    prune(store, KEEP, NOW)
    late = NOW - 5 * DAY_S
    late -= late % HOUR_S
    with Session(store, expire_on_commit=False) as session, session.begin():
        model = session.scalars(select(schema.Model)).one()
        before = windows.pooled(store, model, late, late + HOUR_S)
        session.add(schema.Window(model_id=model.id, **windows.row("a", "r", late + 60, 60.0, window(3)).values))
    assert prune(store, KEEP, NOW).rolled_up == 0
    with Session(store) as session, session.begin():
        session.add(schema.Window(model_id=model.id, **windows.row("a", "r", NOW, 60.0, window(3)).values))
    assert prune(store, KEEP, NOW).rolled_up == 1
    after = windows.pooled(store, model, late, late + HOUR_S)
    assert after.requests == before.requests + 3
    assert size(store, schema.Window) > 0


def test_a_window_whose_last_state_waits_in_a_spool_counts_once(store: Engine) -> None:
    """Another sidecar prunes for two days of an outage; then the window is completed, and only then rolled up."""
    began = NOW + 7 * DAY_S
    early, late = (windows.row("a", "cut off", began, 60.0, window(seed)) for seed in (3, 5))
    write(store, Writes(windows=[early]))
    prune(store, KEEP, began + 2 * DAY_S)
    write(store, Writes(windows=[late, windows.row("a", "cut off", began + 60, 60.0, window(4))]))
    assert prune(store, KEEP, began + 2 * DAY_S).rolled_up == 1
    with Session(store) as session:
        model = session.scalars(select(schema.Model)).one()
    assert windows.pooled(store, model, began - HOUR_S, began + HOUR_S, "cut off").requests == 5 + 4
