"""Follows what the shadow writes: tests gap and garbled share request by request, and sets the quality metrics.

It reads the store, so it does not matter whether the shadow runs in this process or in another. Call it off the event
loop.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from sqlalchemy import Engine
from sqlalchemy.orm import Session

from moe_watch.detect.quality import advantage, against_dense
from moe_watch.detect.quality.against_dense import Observed
from moe_watch.domain.alarm_endings import Ending
from moe_watch.metrics import series
from moe_watch.metrics.board import Board
from moe_watch.settings import Settings
from moe_watch.shadow import alarm_text
from moe_watch.shadow.signals import DEFECTS
from moe_watch.shadow.trial import Kind, Trial
from moe_watch.store.records import quality_references, shadows

OUTCOMES = ("scored", "unscored", "signals", "unsupported", "dropped", "failed")
WINDOW_S = 6 * 3600.0  # what the gauges are over
_REVIEW_S = 60.0
_LAG_S = 5.0  # rows are stamped before they are committed
_CATCH_UP_S = 24 * 3600.0
_COVERAGE_S = 600.0
_BENCH_S = 30 * 24 * 3600.0  # a load of both servers says nothing of the servers of long ago


@dataclass(frozen=True)
class Change:
    """An alarm of ``kind`` that starts, or ends by ``ending``; ``began_at`` is when what it is about seems to begin."""

    kind: Kind
    started: bool
    began_at: float
    summary: str = ""
    evidence: dict[str, Any] = field(default_factory=dict)
    ending: Ending = "recovered"


@dataclass
class _Stream:
    """One model at one replica against one dense model."""

    dense: str
    relearned_at: float  # its tests know nothing from before
    cursor: float  # the time of the newest result that was taken, by the clock of now
    newest: int  # the highest key of a request whose result was taken
    trials: dict[Kind, Trial]
    taken: dict[int, float] = field(default_factory=dict)  # times by key, where a clock that was set back goes again
    reviewed_at: float = -math.inf

    def take(self, there: dict[int, float]) -> None:
        """Take note of results: the next ones come after them, or have a higher key."""
        self.cursor = max(self.cursor, *there.values(), -math.inf)
        self.newest = max(self.newest, *there, 0)
        self.taken = {key: at for key, at in self.taken.items() if at > self.cursor}


@dataclass
class QualityWatch:
    """The quality of every model and replica that ``update`` is asked about."""

    engine: Engine
    settings: Settings
    board: Board
    _streams: dict[tuple[str, str], _Stream] = field(default_factory=dict)

    def update(self, model: str, replica: str, now: float) -> list[Change]:
        """Read what is new, set the metrics of this model and replica, and return alarms that started or ended.

        Raises ``sqlalchemy.exc.SQLAlchemyError`` when the store is away; the next call goes on from where this began.
        """
        labels = (model, replica)
        with Session(self.engine) as session:
            stream, changed = self._stream(session, labels, now)
            anew = set(changed)
            fresh = self._fresh(session, labels, stream, now - _LAG_S)
            self._count(fresh, labels)
            changed += self._feed(session, stream, fresh, labels)
            changes = [self._change(session, stream, kind, labels, now, anew=kind in anew) for kind in changed]
            if now - stream.reviewed_at >= _REVIEW_S:
                stream.reviewed_at = now
                self._review(session, stream, labels, now)
        self.board.set(series.QUALITY_DEGRADED, float(stream.trials["quality"].state.alarmed), *labels)
        return changes

    def _observed(
        self, session: Session, labels: tuple[str, str], stream: _Stream, since: float, until: float
    ) -> Observed:
        return shadows.observed(session, since, until, model=labels[0], replica=labels[1], dense=stream.dense or None)

    def _fresh(self, session: Session, labels: tuple[str, str], stream: _Stream, until: float) -> Observed:
        """Return the results that were not taken before, and take them.

        One that is older than what was taken, though its request is newer, shows a clock that was set back. It passes
        again through the time of results that were taken already, so those are kept in mind.
        """
        there = shadows.arrived(session, *labels, since=stream.cursor, until=until, beyond=stream.newest)
        new = {key: at for key, at in there.items() if key not in stream.taken}
        earliest = math.nextafter(min(new.values(), default=math.inf), -math.inf)
        if earliest < stream.cursor:
            again = shadows.arrived(session, *labels, since=earliest, until=stream.cursor)
            stream.taken |= {key: at for key, at in again.items() if key <= stream.newest}
            stream.cursor = earliest
        stream.take(new)
        return shadows.of_keys(session, list(new), dense=stream.dense or None)

    def _stream(self, session: Session, labels: tuple[str, str], now: float) -> tuple[_Stream, list[Kind]]:
        """Return the stream and which alarms differ from before.

        It is made anew when the dense model is another one, because gaps to one are no measure of gaps to the other,
        and when its references are to be learned anew. The last day is fed to the tests of the first stream after a
        start, so that an alarm that was open opens again; those of a later one begin with what comes now.
        """
        dense, relearned_at = (
            shadows.dense_model(session, *labels) or "",
            quality_references.valid_from(session, labels[0]),
        )
        before = self._streams.get(labels)
        if before is not None and (dense, relearned_at) == (before.dense, before.relearned_at):
            return before, []
        if before is None:
            self._show_zeros(labels)
        since = max(now - _CATCH_UP_S, relearned_at)
        stream = _Stream(
            dense, relearned_at, since, shadows.newest(session, *labels), self._trials(session, labels, dense)
        )
        if before is not None and before.dense:
            stream.cursor, stream.taken = max(before.cursor, relearned_at), before.taken
            stream.newest = before.newest if relearned_at == before.relearned_at else stream.newest
        else:
            stream.take(shadows.arrived(session, *labels, since=since, until=now - _LAG_S))
            self._feed(session, stream, self._observed(session, labels, stream, since, now - _LAG_S), labels)
        self._streams[labels] = stream
        was = {kind for kind, trial in before.trials.items() if trial.state.alarmed} if before is not None else set()
        return stream, [kind for kind, trial in stream.trials.items() if trial.state.alarmed != (kind in was)]

    def _trials(self, session: Session, labels: tuple[str, str], dense: str) -> dict[Kind, Trial]:
        shadow, run_length = self.settings.shadow, self.settings.detect.average_run_length
        tolerances: dict[Kind, float] = {"quality": shadow.gap_tolerance, "garbled": shadow.garbled_tolerance}
        return {
            kind: Trial(
                kind,
                run_length,
                tolerance,
                shadow.reference_requests,
                quality_references.load(session, (*labels, dense), kind),
            )
            for kind, tolerance in tolerances.items()
        }

    def _show_zeros(self, labels: tuple[str, str]) -> None:
        for outcome in OUTCOMES:
            self.board.add(series.SHADOW_REQUESTS, 0, *labels, outcome)
        for kind in DEFECTS:
            self.board.add(series.GARBLED_REQUESTS, 0, *labels, kind)

    def _feed(self, session: Session, stream: _Stream, seen: Observed, labels: tuple[str, str]) -> list[Kind]:
        """Give new requests to the tests; return the kinds whose alarm started or ended."""
        changed: list[Kind] = []
        for kind, trial in stream.trials.items():
            learning = trial.known is None
            values, weights = (seen.gap, seen.weight) if kind == "quality" else (seen.garbled, seen.sample_weight)
            if trial.feed(values, weights, seen.at):
                changed.append(kind)
            if learning and trial.known is not None:
                quality_references.keep(session, (*labels, stream.dense), kind, trial.known)
                session.commit()
        return changed

    def _change(
        self, session: Session, stream: _Stream, kind: Kind, labels: tuple[str, str], now: float, *, anew: bool
    ) -> Change:
        """Return what to tell of a trial that changed, or that differs from the one before it: ``anew``."""
        trial = stream.trials[kind]
        if not trial.state.alarmed:
            ending: Ending = "reference_replaced" if anew else "recovered"
            return Change(trial.kind, started=False, began_at=trial.began_at, ending=ending)
        before = self._observed(session, labels, stream, trial.began_at - WINDOW_S, trial.began_at)
        after = self._observed(session, labels, stream, trial.began_at, now)
        summary, evidence = alarm_text.alarm(trial, before, after, " at ".join(labels))
        return Change(trial.kind, True, trial.began_at, summary, evidence)  # noqa: FBT003

    def _count(self, fresh: Observed, labels: tuple[str, str]) -> None:
        for outcome, count in Counter(fresh.outcome.tolist()).items():
            self.board.add(series.SHADOW_REQUESTS, count, *labels, outcome)
        for kind, flags in fresh.defects.items():
            self.board.add(series.GARBLED_REQUESTS, float(np.nansum(flags)), *labels, kind)

    def _review(self, session: Session, stream: _Stream, labels: tuple[str, str], now: float) -> None:
        """Set the gauges over the last hours; what cannot be estimated is left out."""
        seen = self._observed(session, labels, stream, now - WINDOW_S, now)
        found = against_dense.review(seen)
        self._show(series.QUALITY_GAP, found.gap.value, labels)
        self._show(series.QUALITY_GAP_LOWER, found.gap.lower, labels)
        self._show(series.QUALITY_GAP_UPPER, found.gap.upper, labels)
        self._show(series.GARBLED_RATIO, found.garbled.value, labels)
        self._show(series.GARBLED_RATIO_LOWER, found.garbled.lower, labels)
        deciles: dict[tuple[str, ...], float] = {(str(k),): e.value for k, e in enumerate(found.curve.deciles, 1) if e}
        self.board.replace(series.QUALITY_GAP_BY_OOD, labels, deciles)
        covered = shadows.coverage(session, *labels, now - _COVERAGE_S, now)
        self._show(series.SHADOW_COVERAGE, math.nan if covered is None else covered, labels)
        value, upper = self._advantage(session, stream.dense, labels, now)
        self._show(series.MOE_ADVANTAGE, value, labels)
        self._show(series.MOE_ADVANTAGE_UPPER, upper, labels)

    def _show(self, metric: series.Metric, value: float, labels: tuple[str, str]) -> None:
        """Set a gauge, or take it away where there is nothing to estimate it from any more."""
        self.board.replace(metric, labels, {} if math.isnan(value) else {(): value})

    def _advantage(self, session: Session, dense: str, labels: tuple[str, str], now: float) -> tuple[float, float]:
        """Return MoE over dense tokens per second and its upper bound; nan when it is not known.

        The shadow's own replays tell it where both models have as many requests under way; else the last
        ``moe-watch bench-servers`` does, at the concurrency nearest to the MoE's.
        """
        speeds = shadows.speeds(session, now - WINDOW_S, now, model=labels[0], replica=labels[1], dense=dense)
        paid = advantage.live(
            speeds.moe_tpot_s, speeds.moe_concurrency, speeds.dense_tpot_s, speeds.dense_concurrency, speeds.weight
        ).overall
        if paid:
            return paid.value, paid.upper
        running = shadows.concurrency(session, *labels, now - _COVERAGE_S, now)
        steps = shadows.benches(session, now - _BENCH_S, now, model=labels[0])
        if running is None or not steps:
            return math.nan, math.nan
        latest = [step for step in steps if step.at == steps[0].at]
        near = advantage.nearest([step.concurrency for step in latest], running)
        return latest[near].ratio, latest[near].ratio_upper
