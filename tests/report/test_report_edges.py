"""The report where there is hardly any data, or too much, or data that another part of it must not count."""

from __future__ import annotations

import re
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from sqlalchemy.orm import Session

from moe_watch.cli.time_ranges import period
from moe_watch.metrics import series
from moe_watch.report.build import from_history, from_windows
from moe_watch.report.data.sections import Advantage, Canaries, Change, Context, Latency, Mark, Replay, Speed
from moe_watch.report.data.types import Interval, Missing, Period
from moe_watch.report.explain import alarms
from moe_watch.report.render import tables
from moe_watch.report.render.plots import estimates, heatmap
from moe_watch.report.say import captions
from moe_watch.report.say import verdict as words
from moe_watch.settings import Settings
from moe_watch.store import engine, migrate
from moe_watch.store.records import alarms as stored_alarms
from moe_watch.store.records import canaries
from moe_watch.store.schema import Alarm, CanaryRun, Event, Model
from tests.support import store_factory
from tests.support.reviews import drifted, quiet
from tests.support.store_factory import DAY, UNTIL, Story


def test_a_handful_of_scored_requests_is_called_neither_steady_nor_without_baseline() -> None:
    """With an active baseline and three scored requests there is too little to go by, and that is said."""
    review = replace(quiet(), coverage=replace(quiet().coverage, requests=500, routed=500, scored=3))
    verdict = words.verdict(review)
    assert (verdict.state, verdict.tone) == ("learning", "unknown")
    assert verdict.headline == "Too little to go by: 3 requests could be held against the baseline"
    assert verdict.answers[1].short == "Not known"


def test_the_newest_alarm_is_among_what_happened_however_much_did() -> None:
    """Sixty alarms and events before it do not push the last alarm off the list."""
    drift = drifted().timeline.alarms[0]
    old = tuple(replace(drift, id=n, began_at=UNTIL - 7 * DAY + n, ended_at=UNTIL - 6 * DAY) for n in range(40))
    newest = replace(drift, id=99, began_at=UNTIL - 600, ended_at=None)
    marks = tuple(Mark(UNTIL - 6 * DAY + n, f"kind {n}", f"mark {n}", "") for n in range(20))
    review = replace(quiet(), timeline=replace(quiet().timeline, alarms=(*old, newest), marks=marks))
    rows = tables.happened(review)
    assert rows[-1].text.startswith("Alarm 99")
    assert [row.at for row in rows] == sorted(row.at for row in rows)


def test_a_mark_beyond_the_letters_is_told_once() -> None:
    """A single event of a kind is no "1 times"."""
    marks = tuple(Mark(UNTIL - DAY + n, f"kind {n}", f"mark {n}", "") for n in range(13))
    rows = tables.happened(replace(quiet(), timeline=replace(quiet().timeline, marks=marks)))
    assert rows[-1].text == "kind 12, once"


@pytest.mark.parametrize(
    ("lows", "said"),
    [
        ((0.7, 1.2, 1.5), "The MoE pays from a concurrency of 4 on"),
        ((1.2, 0.7, 1.5), "The MoE pays from a concurrency of 16 on"),
        ((1.2, 1.1, 0.7), "The MoE pays at a concurrency of 1 and 4, not of 16"),
        ((0.7, 0.7, 0.95), "is not certain: at 16 at once it makes 1.1 times"),
        ((0.7, 0.7, 0.7), "The MoE is not faster than the dense model: at 16"),
    ],
)
def test_where_the_moe_pays_is_told_from_where_it_pays_throughout(lows: tuple[float, ...], said: str) -> None:
    """As for `moe-watch bench-servers`, it begins where every higher concurrency pays as well."""
    steps = tuple(
        Speed(name, Interval(low + 0.1, low, low + 0.2, 20), None, None)
        for name, low in zip(("1", "4", "16"), lows, strict=True)
    )
    found = captions.leads(replace(quiet(), advantage=Advantage("live", UNTIL, "dense", steps)))
    assert said in found["advantage"]


@pytest.mark.parametrize("ratio", [Interval(1.0, 0.02, 4.0, 9), Interval(0.9, 1e-9, 1e12, 2)])
def test_an_advantage_of_which_little_is_known_is_drawn(ratio: Interval) -> None:
    """An interval from next to nothing to very much stays inside the plot."""
    drawn = estimates.advantage(Advantage("bench", UNTIL, "dense", (Speed("1", ratio, 1.0, 1.0),)))
    places = [float(y) for y in re.findall(r'c?y[12]?="(-?[\d.]+)"', drawn)]
    assert min(places) >= 0
    assert max(places) <= 245


def test_a_layer_of_very_many_experts_is_drawn() -> None:
    """Whatever a tap announces, the page is made."""
    change = Change("baseline 1", Period(0, 1), None, 50, 50, ((0.5,) * 20_000,), 0.1, (0,), False, (), 0)  # noqa: FBT003
    assert "<svg" in heatmap.draw(change, (0,), 358)


def test_a_period_before_all_time_is_that_since_the_beginning() -> None:
    """A start ever so long ago is no error of the calendar."""
    assert period("99999999d", None, UNTIL) == (0.0, UNTIL)


def test_a_budget_beyond_the_histogram_is_not_called_kept() -> None:
    """Times above the last bound of the histogram may be within a budget that is larger still, or not: not known."""
    counts = np.zeros(len(series.TTFT_BUCKETS) + 1)
    counts[-1] = 40.0
    measured = from_windows.Measured(Period(0, 3600), 60)
    measured.whole.vectors.ttft_s["4k"] = counts
    latency = from_windows.latency(measured, {"4k": 90.0}, 32_768)
    assert isinstance(latency, Latency)
    assert latency.contexts[0].over is None
    assert captions.leads(replace(quiet(), latency=latency))["latency"].startswith("Too few requests")
    counts[-1], counts[3] = 0.0, 40.0
    known = from_windows.latency(measured, {"4k": 90.0}, 32_768)
    assert isinstance(known, Latency)
    assert isinstance(known.contexts[0], Context)
    assert known.contexts[0].over is not None


@pytest.mark.parametrize(
    ("by_verdict", "said"),
    [
        ({"healthy": 2, "blind": 1}, "replayed 2 times and routed as before each time; 1 more replay could not be"),
        ({"blind": 3}, "No replay of the canaries could be judged."),
        ({"routing": 1, "blind": 2}, "1 replay of 1 found"),
    ],
)
def test_a_blind_replay_is_no_changed_model(by_verdict: dict[str, int], said: str) -> None:
    """What saw no routing is counted apart."""
    replays = tuple(Replay(UNTIL, "idle", verdict, None, "") for verdict, n in by_verdict.items() for _ in range(n))
    assert said in captions.leads(replace(quiet(), canaries=Canaries(replays, by_verdict)))["canaries"]


def a_run(verdict: str, at: float, engine_: str = "vllm", *, reference: bool = False) -> CanaryRun:
    """Return one stored round of canaries."""
    return CanaryRun(
        model_id=1, at=at, set_version="v", engine=engine_, load="idle", replica="gpu-a", reference=reference,
        verdict=verdict, first_layer=None, effect=0.0, summary="", evidence={}, blob=b"",
    )  # fmt: skip


def test_only_checks_against_vllms_reference_are_told(tmp_path: Path) -> None:
    """A reference that was replaced and a comparison with transformers are no checks of the period."""
    store = store_factory.make(tmp_path / "checks.db", Story(days=0.1, per_day=900, baseline_day=None, canaries=False))
    canaries.save(store, a_run("", UNTIL - 900, reference=True))
    canaries.retire(store, store_factory.MODEL, "v")
    canaries.save(store, a_run("routing", UNTIL - 800, "transformers"))
    with Session(store) as session:
        row = session.get(Model, 1)
    hour = Period(UNTIL - 3600, UNTIL)
    assert isinstance(from_history.canaries(store, row, hour), Missing)  # type: ignore[arg-type]
    canaries.save(store, a_run("healthy", UNTIL - 700))
    found = from_history.canaries(store, row, hour)  # type: ignore[arg-type]
    assert isinstance(found, Canaries)
    assert found.by_verdict == {"healthy": 1}


def test_an_alarm_is_explained_by_its_own_kind_and_its_own_models_events(tmp_path: Path) -> None:
    """GarbledOutput names an open alarm of garbled output; another model's promotion is no event of this one."""
    store = engine.connect(f"sqlite:///{tmp_path / 'alarms.db'}")
    migrate.upgrade(store)
    now = time.time()
    store_factory.fill(store, Story(days=0.1, per_day=900, baseline_day=None, canaries=False, until=now))
    with Session(store) as session, session.begin():
        first = session.get(Model, 1)
        assert first is not None
        other = Model(identity="b", name="b", layers=1, experts=2, top_k=1, first_seen=now - 9000, detail=first.detail)
        session.add(other)
        session.flush()
        near, far = now - 601, now - 5000
        session.add(Event(at=near, replica="", model_id=other.id, kind="baseline_promoted", detail="of the other"))
        session.add(Event(at=far, replica="gpu-a", model_id=1, kind="engine_start", detail="of this one"))
        row = Alarm(
            model_id=1, replica="gpu-a", kind="garbled", began_at=now - 600, flagged_at=now - 500, ended_at=None,
            baseline_id=None, summary="broken", evidence={},
        )  # fmt: skip
        session.add(row)
        session.flush()
        number = row.id
    found = alarms.alert(store, Settings(), "GarbledOutput", now)[0]
    assert found.tone == "bad"
    assert found.data["alarms"][0]["id"] == number
    kept = stored_alarms.find(store, number)
    assert kept is not None
    one = alarms.alarm(store, Settings(), kept, now)
    assert one.todo
    assert any("of this one" in sentence for sentence in one.sentences)
    assert not any("of the other" in sentence for sentence in one.sentences)


def test_uneven_load_is_explained_by_the_verdict_of_the_day() -> None:
    """No alarm is opened for it in the store, so nothing is said of whether one was open."""
    found = alarms.alert(store_factory.shared(), Settings(), "ExpertImbalance", UNTIL)[0]
    assert not any("No alarm of this kind" in sentence for sentence in found.sentences)
