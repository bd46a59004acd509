"""Reads the store into the frozen tree of ``review``, one model after the other."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from sqlalchemy import Connection, Engine
from sqlalchemy.orm import Session

import moe_watch
from moe_watch.detect.fit.baseline_fit import Baseline
from moe_watch.domain.sanitise import conversation
from moe_watch.report.build import fingerprint, from_history, from_routing, from_shadow, from_windows
from moe_watch.report.data.review import BaselineFacts, Promises, Report, Review, Served
from moe_watch.report.data.sections import (
    Alarm,
    Change,
    Coverage,
    Load,
    Ood,
    Quality,
    Suspect,
    Suspects,
    Text,
    Timeline,
)
from moe_watch.report.data.types import Missing, Period
from moe_watch.settings import Settings
from moe_watch.store.codecs import arrays
from moe_watch.store.engine import StoreError
from moe_watch.store.read import report_queries as store
from moe_watch.store.records import baselines

WORST: Final = 10  # requests shown
_ROUTING_KINDS: Final = ("routing", "traffic", "replica")
_MOST_BEFORE: Final = 300  # windows of the period before: they tell only how far requests are apart
_CANARY_S: Final = 7 * 86_400.0  # canaries are replayed rarely: the page of an hour looks back as far as this
_FEWEST_IN_DRIFT: Final = 100  # requests with routing, for the heatmap to be of the alarm alone


@dataclass(frozen=True)
class _Job:
    """What the sections of one model are made from."""

    engine: Engine
    session: Session
    settings: Settings
    now: float
    row: store.AnyRow
    period: Period

    @property
    def connection(self) -> Connection:
        return self.session.connection()


def gather(engine: Engine, settings: Settings, period: Period, *, now: float, model: str | None = None) -> Report:
    """Return the report of every model with data in ``period``, or of ``model`` alone, made at the time ``now``."""
    with Session(engine) as session:
        rows = store.models_between(session.connection(), period.since, period.until, model)
        reviews = tuple(_review(_Job(engine, session, settings, now, row, period)) for row in rows)
    return Report(now, moe_watch.__version__, period, reviews)


def previous(period: Period) -> Period:
    """Return the stretch of the same length before ``period``."""
    return Period(period.since - period.seconds, period.since)


def _review(job: _Job) -> Review:
    served, before = from_history.served(job.row), previous(job.period)
    found, earlier = (from_windows.measure(job.connection, job.row.id, period) for period in (job.period, before))
    alarms, earlier_alarms = (from_history.alarms(job.engine, job.row.id, period) for period in (job.period, before))
    key, facts = from_history.baseline(job.engine, job.row)
    fitted = _load_baseline(job, key)
    change, load = _routing(job, served, alarms, facts, fitted)
    detect, shadow, serving = job.settings.detect, job.settings.shadow, job.settings.serving
    ood = from_windows.ood(found, detect.ood_alpha)
    quality = from_shadow.section(job.session, job.row, job.period, before, shadow.gap_tolerance)
    return Review(
        served=served,
        replicas=tuple(sorted(found.replicas)),
        period=job.period,
        previous_period=before,
        totals=from_windows.totals(found, len(alarms)),
        previous=from_windows.totals(earlier, len(earlier_alarms)) if earlier.whole.requests else None,
        baseline=facts,
        timeline=_timeline(job, found, alarms),
        ood=ood,
        change=change,
        quality=quality,
        advantage=from_shadow.advantage(job.session, served.name, job.period),
        latency=from_windows.latency(found, serving.ttft_budget_s, serving.interactive_tokens),
        slowdowns=from_shadow.slowdowns(job.session, served.name, job.period, before),
        suspects=_suspects(job, served, fitted, ood),
        load=load,
        canaries=from_history.canaries(job.engine, job.row, _of_canaries(job.period, alarms)),
        coverage=_coverage(job, found, quality),
        promises=Promises(detect.average_run_length, detect.coverage_floor, shadow.gap_tolerance),
    )


def _timeline(job: _Job, found: from_windows.Measured, alarms: tuple[Alarm, ...]) -> Timeline:
    marks = from_history.marks(job.engine, job.row, found.replicas, job.period)
    return Timeline(found.step, from_windows.buckets(found), alarms, marks)


def _of_canaries(period: Period, alarms: tuple[Alarm, ...]) -> Period:
    """Return the stretch whose replays say something about the period: back to the start of its oldest alarm."""
    began = [alarm.began_at for alarm in alarms]
    return Period(min(period.since, period.until - _CANARY_S, *began), period.until)


def _load_baseline(job: _Job, key: int | None) -> Baseline | None:
    """Return the active baseline, None when there is none or this version cannot read it."""
    if key is None:
        return None
    try:
        return baselines.load(job.engine, key)
    except StoreError:
        return None


def _routing(
    job: _Job, served: Served, alarms: tuple[Alarm, ...], facts: BaselineFacts | Missing, fitted: Baseline | None
) -> tuple[Change | Missing, Load | Missing]:
    """Return what moved and who carries the load; a week's mean hides an hour's drift, so that is looked at alone."""
    whole = from_routing.routed(job.connection, job.row.id, served, job.period)
    now, period, about = whole, job.period, None
    for alarm in sorted(alarms, key=lambda d: -d.flagged_at):
        if alarm.kind in _ROUTING_KINDS:
            part = Period(
                max(alarm.began_at, job.period.since), min(alarm.ended_at or job.period.until, job.period.until)
            )
            routed = from_routing.routed(job.connection, job.row.id, served, part)
            if routed.requests >= _FEWEST_IN_DRIFT:
                now, period, about = routed, part, alarm.id
                break
    before = from_routing.routed(job.connection, job.row.id, served, previous(job.period), most=_MOST_BEFORE)
    label = f"baseline {facts.version}" if isinstance(facts, BaselineFacts) else ""
    known = from_routing.reference(fitted, label, before)
    change = from_routing.change(served, now, known, period=period, alarm=about)
    return change, from_routing.load(served, whole, fitted)


def _suspects(job: _Job, served: Served, fitted: Baseline | None, ood: Ood | Missing) -> Suspects | Missing:
    """Return the most unusual requests, explained where their fingerprints were kept."""
    if isinstance(ood, Missing):
        return ood
    rows = store.suspicious(job.connection, job.row.id, job.period.since, job.period.until, WORST)
    if not rows:
        return Missing("No stored request of the period has a p-value of 5 % or less.", "")
    keys = [row.id for row in rows]
    prints = store.fingerprints(job.connection, keys)
    shown = job.settings.http.page_samples
    texts = store.samples(job.connection, keys, job.now) if shown else {}
    found = tuple(_suspect(row, _reasons(served, fitted, prints.get(row.id)), texts.get(row.id)) for row in rows)
    why = (
        ""
        if texts
        else "No text of these requests was sampled."
        if shown
        else ("Text is hidden: set MOE_WATCH_HTTP__PAGE_SAMPLES=true to show sampled text here.")
    )
    return Suspects(found, why)


def _reasons(served: Served, fitted: Baseline | None, row: store.AnyRow | None) -> tuple[str, ...]:
    if fitted is None or row is None:
        return ()
    try:
        prompt, decode = (arrays.unpack_counts(raw, served.layers, served.experts) for raw in (row.prompt, row.decode))
        return fingerprint.reasons(fingerprint.compare(fitted, prompt, decode, served.layer_ids))
    except ValueError:
        return ()


def _suspect(row: store.AnyRow, reasons: tuple[str, ...], text: store.AnyRow | None) -> Suspect:
    return Suspect(
        request_id=row.request_id,
        choice=row.choice,
        replica=row.replica,
        finished_at=row.finished_at,
        p=row.ood_p,
        score=row.ood_score if row.ood_score is not None else 0.0,
        prompt_tokens=row.prompt_tokens,
        output_tokens=row.output_tokens,
        domain=row.domain,
        finish_reason=row.finish_reason,
        reasons=reasons,
        text=None if text is None else Text(conversation(text.prompt), text.output),
    )


def _coverage(job: _Job, found: from_windows.Measured, quality: Quality | Missing) -> Coverage:
    sums, known = found.whole.sums, found.whole.vectors.entropy_n
    period = job.period
    return Coverage(
        requests=found.whole.requests,
        routed=found.whole.routed_requests,
        joined=None if sums.joined is None else round(sums.joined),
        scored=round(sums.scored or 0),
        aborted=found.whole.tallies.outcomes.get("abort", 0),
        received=None if sums.frames is None else round(sums.frames),
        dropped={reason: round(n) for reason, n in sums.dropped.items() if n},
        silent=from_windows.silent(found, job.row.first_seen),
        rows_since=store.oldest_request(job.connection, job.row.id),
        samples=store.sample_count(job.connection, job.row.id, period.since, period.until),
        shadowed=0 if isinstance(quality, Missing) or quality.gap is None else quality.gap.requests,
        confidence=round(float(known.max())) if known is not None and known.size else 0,
    )
