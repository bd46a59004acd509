"""The tree says what the store holds, from the store's sums, and says what it lacks."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from sqlalchemy import Engine, delete, event, func, select, text, update
from sqlalchemy.orm import Session

from moe_watch.report.build import from_routing, from_windows
from moe_watch.report.build.gather import gather
from moe_watch.report.data.review import Report, Review
from moe_watch.report.data.sections import Change, Load, Ood, Quality, Suspects
from moe_watch.report.data.types import Missing, Period
from moe_watch.settings import Settings
from moe_watch.store import schema
from moe_watch.store.read import report_queries as store_review
from tests.support import store_factory
from tests.support.store_factory import DAY, MODEL, NEW_DOMAIN, UNTIL, Story

WEEK = Period(UNTIL - 7 * DAY, UNTIL)
SHORT = Story(days=2.0, per_day=900, baseline_day=1.0, drift=(1.4, 2.0), drift_share=0.3, silent=None, sample_rate=0.4)


def report_of(engine: Engine, period: Period = WEEK, **settings: object) -> Report:
    """Return the report of a period, made at its end."""
    return gather(engine, Settings(**settings), period, now=period.until)  # type: ignore[arg-type]


@cache
def week() -> Review:
    """Return the review of the shared store's last week."""
    return report_of(store_factory.shared(), http={"page_samples": True}).reviews[0]


def count(engine: Engine, *where: object) -> int:
    """Return how many rows of requests match."""
    with Session(engine) as session:
        return session.scalar(select(func.count()).select_from(schema.Request).where(*where)) or 0  # type: ignore[arg-type]


def test_totals_are_those_of_the_rows() -> None:
    """Requests, coverage and the out-of-distribution share add up to what the rows of requests say."""
    in_week = schema.Request.finished_at.between(WEEK.since, WEEK.until)
    engine = store_factory.shared()
    requests = count(engine, in_week)
    assert week().totals.requests == requests
    assert week().coverage.routed == count(engine, in_week, schema.Request.prompt_routed.is_not(None))
    ood = week().totals.ood
    assert ood is not None
    assert round(ood.value * ood.requests) == count(engine, in_week, schema.Request.ood_p <= 0.01)
    assert sum(bucket.requests for bucket in week().timeline.buckets) == requests


def test_rows_are_not_read_for_totals() -> None:
    """Totals come from windows: with every request's row gone they are the same."""
    engine = store_factory.shared()
    statements: list[str] = []
    event.listen(engine, "before_cursor_execute", lambda *a: statements.append(a[2]))
    report_of(engine)
    scans = [s for s in statements if "FROM requests" in s and "LIMIT" not in s and "WHERE requests.model_id" in s]
    assert all("min(requests.finished_at)" in s for s in scans), scans


def test_the_most_unusual_requests_are_found_by_an_index() -> None:
    """The database answers from the partial index instead of reading every request of the period."""
    engine = store_factory.shared()
    plans: list[str] = []

    def explain(_: object, cursor: object, statement: str, parameters: object, *__: object) -> None:
        if "ood_p <= 0.05" in statement:
            with engine.connect() as connection:
                raw = connection.connection.cursor()
                raw.execute(f"EXPLAIN QUERY PLAN {statement}", parameters)
                plans.extend(str(row[3]) for row in raw.fetchall())

    event.listen(engine, "before_cursor_execute", explain)
    with engine.connect() as connection:
        found = store_review.suspicious(connection, 1, WEEK.since, WEEK.until, 5)
    event.remove(engine, "before_cursor_execute", explain)
    assert len(found) == 5
    assert any("ix_requests_suspicious" in plan for plan in plans), plans


def test_the_drift_is_seen_where_it_is() -> None:
    """The layers that the new topic moved hold the largest effects, against the baseline, during the alarm alone."""
    change = week().change
    assert isinstance(change, Change)
    assert change.reference == "baseline 1"
    assert change.alarm == 1
    assert change.period.since == pytest.approx(UNTIL - 2.4 * DAY)
    assert {mover.layer for mover in change.movers[:4]} <= {2, 3}
    assert np.abs(np.array(change.effect)).max() > 0.8


def test_the_worst_requests_are_those_of_the_new_topic_and_say_why() -> None:
    """Nearly all of the most unusual requests are of the new domain, each with layers and experts."""
    suspects = week().suspects
    assert isinstance(suspects, Suspects)
    assert sum(suspect.domain == NEW_DOMAIN for suspect in suspects.requests) >= 8
    assert all(suspect.reasons for suspect in suspects.requests)
    assert [s.p for s in suspects.requests] == sorted(s.p for s in suspects.requests)


def test_texts_stay_hidden_unless_asked_for() -> None:
    """Without http.page_samples no text is in the tree, and the tree says how to see it."""
    suspects = report_of(store_factory.shared()).reviews[0].suspects
    assert isinstance(suspects, Suspects)
    assert all(suspect.text is None for suspect in suspects.requests)
    assert "MOE_WATCH_HTTP__PAGE_SAMPLES" in suspects.texts
    shown = week().suspects
    assert isinstance(shown, Suspects)
    assert any(suspect.text is not None for suspect in shown.requests)


def test_the_gap_rises_with_the_ood_score() -> None:
    """Quality falls from the most ordinary to the most unusual tenth, with an interval that excludes chance."""
    quality = week().quality
    assert isinstance(quality, Quality)
    assert len(quality.deciles) == 10
    assert quality.rise is not None
    assert (quality.rise.low or 0) > 0
    assert quality.deciles[-1].value > quality.deciles[0].value


def test_unusual_requests_are_split_by_domain_and_modality() -> None:
    """The new domain has the highest share, images and text are told apart, and both add up to the whole."""
    found = week().ood
    assert isinstance(found, Ood)
    assert found.domains[0].name == NEW_DOMAIN
    assert {part.name for part in found.modalities} == {"image", "text"}
    assert sum(part.requests for part in found.modalities) <= found.rate.requests
    hits = [round(sum(p.rate.value * p.requests for p in parts)) for parts in (found.modalities, found.domains)]
    assert hits[0] == hits[1] <= round(found.rate.value * found.rate.requests)


def test_latencies_of_both_models_are_compared_with_the_period_before(tmp_path: Path) -> None:
    """Where the MoE alone got slower that is its own; where both did it is not."""
    engine = store_factory.make(tmp_path / "slow.db", SHORT)
    period = Period(UNTIL - 0.5 * DAY, UNTIL)
    slower = schema.Request.finished_at > period.since
    with Session(engine) as session, session.begin():
        session.execute(update(schema.Request).values(batch_mean=4.0))
        session.execute(update(schema.Request).where(slower).values(tpot_s=schema.Request.tpot_s * 1.6))
    tpot, ttft = report_of(engine, period).reviews[0].slowdowns
    assert (tpot.cause, ttft.cause) == ("moe", "none")
    assert tpot.effect.value == pytest.approx(0.6, abs=0.2)
    with Session(engine) as session, session.begin():
        both = schema.Shadow.at > period.since
        session.execute(update(schema.Shadow).where(both).values(dense_tpot_s=schema.Shadow.dense_tpot_s * 1.6))
    assert report_of(engine, period).reviews[0].slowdowns[0].cause == "traffic"


def test_versions_are_compared(tmp_path: Path) -> None:
    """Two configurations under one name each have their own gap, and the report on one says which it is."""
    engine = store_factory.make(tmp_path / "versions.db", SHORT)
    with Session(engine) as session, session.begin():
        first = session.scalar(select(schema.Model))
        assert first is not None
        shape = {"layers": first.layers, "experts": first.experts, "top_k": first.top_k, "detail": first.detail}
        session.add(schema.Model(identity="other", name=first.name, first_seen=UNTIL - 3600, **shape))
        session.flush()
        second = session.scalar(select(schema.Model.id).where(schema.Model.identity == "other"))
        late = UNTIL - 0.25 * DAY
        session.execute(update(schema.Request).where(schema.Request.finished_at > late).values(model_id=second))
    quality = report_of(engine, Period(UNTIL - DAY, UNTIL)).reviews[0].quality
    assert isinstance(quality, Quality)
    versions = quality.groups["version"]
    assert len(versions) == 2
    assert sum(version.name.endswith(", this one") for version in versions) == 1
    assert all(version.gap is not None for version in versions)


def test_a_silent_stretch_is_named() -> None:
    """The hours in which nothing was recorded are not passed over."""
    gap = max(week().coverage.silent, key=lambda stretch: stretch.seconds)
    begun = UNTIL - 14 * DAY + 9.2 * DAY
    assert gap.since == pytest.approx(begun, abs=3 * 3600)
    assert gap.seconds > 4 * 3600


def test_an_empty_store_gives_no_review(tmp_path: Path) -> None:
    """Without data there is nothing that could be called healthy."""
    engine = store_factory.make(tmp_path / "empty.db", replace(SHORT, days=0.0))
    assert report_of(engine).reviews == ()


def test_what_is_missing_says_what_to_switch_on(tmp_path: Path) -> None:
    """Without baseline, shadow, canaries and bench each section says why and how to get it."""
    bare = replace(SHORT, baseline_day=None, drift=None, shadow=False, bench=False, canaries=False, confidence=False)
    review = report_of(store_factory.make(tmp_path / "bare.db", bare), Period(UNTIL - DAY, UNTIL)).reviews[0]
    for section in (review.ood, review.quality, review.advantage, review.suspects, review.canaries, review.baseline):
        assert isinstance(section, Missing)
        assert section.why
        assert section.remedy
    assert isinstance(review.change, Change)
    assert review.change.reference == "the period before"
    assert review.totals.entropy is None


def test_a_dead_expert_is_seen_against_the_baseline(tmp_path: Path) -> None:
    """An expert that the baseline chose and nobody chooses any more is unused, and gone when chance is ruled out."""
    engine = store_factory.make(tmp_path / "dead.db", replace(SHORT, dead=(1, 3), drift_share=0.0, shadow=False))
    load = report_of(engine, Period(UNTIL - 0.5 * DAY, UNTIL)).reviews[0].load
    assert isinstance(load, Load)
    assert load.layers[1].unused == (3,)
    assert load.layers[1].unused_before == ()
    assert load.layers[1].gone == (3,)
    few = report_of(engine, Period(UNTIL - 0.08 * DAY, UNTIL)).reviews[0].load
    assert isinstance(few, Load)
    assert few.layers[1].unused == (3,)
    assert few.layers[1].gone == ()


def test_the_same_report_from_every_store(store: Engine) -> None:
    """SQLite and Postgres give the same tree."""
    store_factory.fill(store, SHORT)
    found = report_of(store, Period(UNTIL - DAY, UNTIL)).reviews[0]
    assert found.served.name == MODEL
    assert found.totals.requests > 200
    assert not isinstance(found.quality, Missing)
    assert not isinstance(found.suspects, Missing)
    assert not isinstance(found.change, Missing)


def test_another_configuration_of_the_model_is_told(tmp_path: Path) -> None:
    """A model of the same name but other weights is a review of its own, and an event of both."""
    engine = store_factory.make(tmp_path / "two.db", SHORT)
    with Session(engine) as session, session.begin():
        first = session.scalar(select(schema.Model))
        assert first is not None
        detail = {**first.detail, "revision": "ffff", "vllm_version": "0.33.0"}
        session.add(
            schema.Model(
                identity="other", name=first.name, layers=first.layers, experts=first.experts, top_k=first.top_k,
                first_seen=UNTIL - 3600, detail=detail,
            )
        )  # fmt: skip
        session.flush()
        second = session.scalar(select(schema.Model.id).where(schema.Model.identity == "other"))
        session.execute(update(schema.Window).where(schema.Window.start >= UNTIL - 3600).values(model_id=second))
    reviews = report_of(engine, Period(UNTIL - DAY, UNTIL)).reviews
    assert len(reviews) == 2
    for review in reviews:
        told = [mark.text for mark in review.timeline.marks if mark.kind == "model_changed"]
        assert told == [
            "another configuration was served: vLLM 0.33.0 instead of 0.32.0 and revision ffff instead of a1b2c3"
        ]


def test_pruned_rows_leave_the_totals(tmp_path: Path) -> None:
    """When single requests were pruned the sums are still there, and the report knows since when it has rows."""
    engine = store_factory.make(tmp_path / "pruned.db", replace(SHORT, shadow=False))
    before = report_of(engine, Period(UNTIL - 2 * DAY, UNTIL)).reviews[0]
    with Session(engine) as session, session.begin():
        session.execute(text("PRAGMA foreign_keys=ON"))
        session.execute(delete(schema.Request).where(schema.Request.finished_at < UNTIL - 0.4 * DAY))
    after = report_of(engine, Period(UNTIL - 2 * DAY, UNTIL)).reviews[0]
    assert after.totals == before.totals
    assert (after.coverage.rows_since or 0) >= UNTIL - 0.4 * DAY


def test_a_part_of_the_windows_stands_for_all_of_them() -> None:
    """Evenly spread windows give the shares of all within the error of their requests."""
    engine = store_factory.shared()
    served = week().served
    with engine.connect() as connection:
        whole = from_routing.routed(connection, 1, served, WEEK)
        part = from_routing.routed(connection, 1, served, WEEK, most=60)
    assert whole.requests == week().coverage.routed
    assert 0 < part.requests < whole.requests
    error = np.sqrt(whole.variance / part.requests)
    assert (np.abs(part.mean - whole.mean) <= 5 * error + 1e-6).all()


def test_quantiles_come_from_the_histogram() -> None:
    """A quantile lies in the bucket that holds it, and the open bucket answers with its lower bound."""
    counts = np.array([10.0, 80.0, 10.0])
    assert from_windows.quantile(counts, (1.0, 2.0), 0.5) == pytest.approx(1.5)
    assert from_windows.quantile(counts, (1.0, 2.0), 0.99) == 2.0
    assert from_windows.quantile(None, (1.0, 2.0), 0.5) is None
    assert from_windows.above(counts, (1.0, 2.0), 2.0) == 10.0
