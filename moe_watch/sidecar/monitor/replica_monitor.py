"""One model at one replica: its window, its detectors, its open alarms and its verdict.

Used from one thread. Times are seconds since the epoch by the sidecar's clock.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import structlog

from moe_watch import wire
from moe_watch.detect import online
from moe_watch.detect.common.batch import Batch
from moe_watch.detect.drift import location, moments
from moe_watch.detect.drift.location import Whereabouts
from moe_watch.detect.fit.baseline_fit import Baseline
from moe_watch.detect.load import dead
from moe_watch.detect.ood.score import OodScores
from moe_watch.domain import window as aggregate
from moe_watch.domain.alarm_endings import Ending
from moe_watch.domain.request import Joined
from moe_watch.settings import DetectSettings, StoreSettings
from moe_watch.sidecar.background import Siblings
from moe_watch.sidecar.monitor import alarm_text, layer_health
from moe_watch.sidecar.monitor.deployment_events import Happenings
from moe_watch.sidecar.monitor.layer_health import Assessment
from moe_watch.sidecar.monitor.raised_alarms import Raised
from moe_watch.sidecar.monitor.rolling_window import Recent
from moe_watch.sidecar.monitor.tap_health import Heard
from moe_watch.sidecar.monitor.verdict import blindness, decide
from moe_watch.store.records import baselines, served_models, windows
from moe_watch.store.write import request_rows
from moe_watch.store.write.batch import NewEpisode, NewRequest, Writes

_PARTIAL_S: Final = 5.0  # how much of a window a kill may lose

_log = structlog.get_logger()


@dataclass(frozen=True)
class Normal:
    """The active baseline and what the store says of it."""

    active: baselines.Active
    fitted: Baseline


@dataclass(frozen=True)
class Seen:
    """What one batch of requests showed."""

    requests: Sequence[Joined]  # canaries left out
    ood: OodScores | None
    scored: Sequence[Joined]  # those in ``ood``, in its order


class Watch:
    """The running picture of one model at one replica."""

    def __init__(
        self, model: wire.Model, detect: DetectSettings, store: StoreSettings, window_s: float, now: float
    ) -> None:
        self.model = model
        self.identity = served_models.identity(model)
        self.layers, self.experts = model.layers, model.experts if model.layers else 0
        self.recent = Recent(self.layers, self.experts)
        self.clock = aggregate.Clock(window_s)
        self.clock.open(now)
        self.window = self._new_window()
        self.previous = self._new_window()
        self.normal: Normal | None = None
        self.observation: online.Observation | None = None
        self.assessment: Assessment | None = None
        self.whereabouts: Whereabouts | None = None  # of the open traffic drift
        self.siblings: Siblings | None = None  # as they were compared last
        self.heard = Heard()
        self.happened = Happenings()
        self.raised = Raised(self.identity, model.replica)
        self.requests = 0
        self.routed = 0
        self._errors = 0
        self.verdict, self.reason, self.since = "idle", "it was announced just now", now
        self._detect, self._store = detect, store
        self._state: online.LiveState | None = None
        self._used: dead.Use | None = None
        self._pending = Writes()
        self._written_at = now
        self._dirty = False
        self._unassessed = False

    def _new_window(self) -> aggregate.Window:
        return aggregate.Window(self.layers, self.experts)

    @property
    def open(self) -> dict[str, NewEpisode]:
        """Return the open alarms by kind."""
        return self.raised.open

    @property
    def labels(self) -> tuple[str, str]:
        """Return the labels of its metrics."""
        return self.model.model, self.model.replica

    def layer_id(self, index: int) -> int:
        """Return the index in the whole model of a layer with experts."""
        return self.model.layer_ids[index] if index < len(self.model.layer_ids) else index

    def use(self, normal: Normal | None, now: float) -> None:
        """Judge by another baseline from now on; alarms against the one before end."""
        self.end("traffic", now, "baseline_replaced")
        self.recent.forget_scores()
        self.observation = None
        self._state, self.normal, self._used = None, None, None
        if normal is None:
            return
        try:
            self._state = online.start(normal.fitted, self._detect.average_run_length, self._detect.tolerance)
            self.normal = normal
            self._used = dead.use(normal.fitted.users, normal.fitted.requests, normal.fitted.counts)
        except Exception:  # noqa: BLE001 - a baseline that cannot be used must not end the sidecar
            self._errors += 1
            _log.exception("the baseline cannot be used: fit a new one", version=normal.active.version)

    def process(self, requests: Sequence[Joined], now: float) -> Seen:
        """Take in finished requests; what is to be written comes with the next ``collect``."""
        batch, routed = self._batch(requests)
        ordinary = [request for request in requests if not request.canary]
        self.window.add_requests(ordinary)
        flags = np.array([(r.complete, r.routing is not None) for r in ordinary], bool).reshape(-1, 2)
        self.recent.flags.push(flags)
        self.requests += len(ordinary)
        self._dirty = self._unassessed = True
        ood = None
        if len(batch):
            self.routed += len(batch)
            self.window.add_routing(batch)
            self.recent.add_routing(batch)
            ood = self._observe(batch, [requests[index] for index in routed], now)
        self._pending.requests += self._rows(requests, routed, ood)
        return Seen(ordinary, ood, [requests[index] for index in routed])

    def lose(self, frames: Mapping[str, int]) -> None:
        """Take note of frames that never came, by reason."""
        for reason, n in frames.items():
            self.window.sum(f"dropped.{reason}", n)
            self._dirty = True

    def _rows(self, requests: Sequence[Joined], routed: list[int], ood: OodScores | None) -> list[NewRequest]:
        return request_rows.new_requests(
            self.identity,
            requests,
            routed,
            ood,
            baseline_id=self._baseline_id,
            fingerprint_rate=self._store.fingerprint_rate,
            keep_samples_days=self._store.keep_samples_days,
        )

    def _batch(self, requests: Sequence[Joined]) -> tuple[Batch, list[int]]:
        """Return the fingerprints of the ordinary requests that have any, in the order of their end, and which."""
        shape = (self.layers, self.experts)
        chosen = [
            (r.routing.finished_at, index)
            for index, r in enumerate(requests)
            if r.routing is not None and not r.canary and (r.routing.layers, r.routing.experts) == shape
        ]
        order = [index for _, index in sorted(chosen)]
        routings = [routing for index in order if (routing := requests[index].routing) is not None]
        prompt = wire.unpack_all([routing.prompt for routing in routings], *shape)
        decode = wire.unpack_all([routing.decode for routing in routings], *shape)
        confidence = np.full((2, len(order), self.layers), np.nan, np.float32)
        sure = [at for at, r in enumerate(routings) if r.entropy is not None and r.margin is not None]
        for index, name in enumerate(("entropy", "margin")):
            confidence[index, sure] = [getattr(routings[at], name) for at in sure] or np.zeros((0, self.layers))
        known = bool(np.isfinite(confidence).any())
        finished = np.array([routing.finished_at for routing in routings])
        entropy, margin = (confidence[0], confidence[1]) if known else (None, None)
        return Batch(prompt, decode, max(1, self.model.top_k), entropy, margin, finished), order

    def _observe(self, batch: Batch, requests: Sequence[Joined], now: float) -> OodScores | None:
        """Score ``batch`` and feed the drift detectors; a detector that fails costs its result, not the process."""
        if self.normal is None or self._state is None:
            return None
        try:
            self._state, self.observation = online.observe(self.normal.fitted, self._state, batch)
        except Exception:  # noqa: BLE001 - whatever it is, requests must still be counted and stored
            self._errors += 1
            _log.exception("a detector failed", model=self.model.model, replica=self.model.replica)
            return None
        ood = self.observation.ood
        finished = np.zeros(len(batch)) if batch.finished_at is None else batch.finished_at
        self.window.add_scores(ood.p, ood.p <= self._detect.ood_alpha, requests)
        self.recent.add_scores([r.request_id for r in requests], ood.p, finished, self._detect.ood_alpha)
        if self.whereabouts is not None and self.whereabouts.add(batch):
            self._say_where(self.whereabouts)
        for alarm in self.observation.alarms:
            if alarm.started:
                self._begin_drift(alarm, len(batch), now)
            else:
                self.end("traffic", now, "recovered")
        return ood

    def _begin_drift(self, alarm: online.Alarm, batched: int, now: float) -> None:
        began = self.recent.began_at(alarm.began + batched - 1 - alarm.at) or now
        told = alarm_text.of_drift(self, alarm, self._detect.ood_alpha, self._detect.average_run_length)
        self.begin("traffic", began, now, *alarm_text.dated(told, self.happened.date(began, self.recent)))
        if self.normal is not None:
            self.whereabouts = Whereabouts(moments.of_baseline(self.normal.fitted))

    def _say_where(self, told: Whereabouts) -> None:
        """Put the layers and experts that moved into the open alarm."""
        if told.found is not None:
            ids = [self.layer_id(row) for row in range(self.layers)]
            self.raised.add_evidence("traffic", {"where": location.evidence(told.found, ids)})

    def compare(self, found: Siblings, now: float) -> None:
        """Open or end the alarm of a replica that differs from its siblings."""
        self.siblings = found
        if not found.standing.deviates:
            self.end("replica", now, "recovered")
            return
        summary, evidence = alarm_text.of_siblings(self, found)
        self.begin("replica", found.flagged_at, now, summary, evidence)
        if self.open["replica"].values["evidence"].get("where") != evidence["where"]:
            self.raised.add_evidence("replica", evidence)

    def begin(self, kind: str, began_at: float, now: float, summary: str, evidence: dict[str, Any]) -> None:
        """Open an alarm of ``kind`` unless one is open."""
        told = {"summary": summary, "evidence": evidence, "baseline_id": self._baseline_id}
        self.raised.begin(kind, began_at, now, **told)

    def end(self, kind: str, now: float, ending: Ending) -> None:
        """Close the alarm of ``kind``, if one is open."""
        if kind == "traffic":
            self.whereabouts = None
        self.raised.end(kind, now, ending)

    @property
    def _baseline_id(self) -> int | None:
        return self.normal.active.id if self.normal is not None else None

    def since_published(self) -> tuple[Counter[str], int]:
        """Return the alarms raised, by kind, and the failures of detectors since this was asked last."""
        errors, self._errors = self._errors, 0
        return self.raised.begun(), errors

    def collect(self, now: float, *, last: bool = False) -> Writes:
        """Return what is to be written; windows when they are over, every few seconds, and at the ``last``."""
        over = self.clock.is_over(now)
        if self._dirty and (over or last or not 0 <= now - self._written_at < _PARTIAL_S):
            seconds = self.clock.end - self.clock.start
            window = windows.row(self.identity, self.model.replica, self.clock.start, seconds, self.window)
            self._pending.windows.append(window)
            self._written_at, self._dirty = now, False
        if over:
            self.clock.open(now)
            self.previous, self.window = self.window, self._new_window()
        out, self._pending = self._pending, Writes()
        out.episodes += self.raised.collect()
        return out

    def latest(self) -> aggregate.Window:
        """Return the sums over the window before and the current one."""
        total = self._new_window()
        total.merge(self.previous)
        total.merge(self.window)
        return total

    def assess(self, now: float) -> bool:
        """Look at load balance, dead experts and sight over the latest fingerprints; say whether there was news."""
        if not self._unassessed or not self.layers:
            return False
        self._unassessed = False
        self.assessment = layer_health.assess(self.model, self.recent, self._used, self._detect)
        if self.assessment.dead.dead.any():
            self.begin("dead_experts", now, now, *alarm_text.of_dead(self, self.assessment))
        elif (known := self.open.get("dead_experts")) is not None:
            same = known.values["baseline_id"] == self._baseline_id
            self.end("dead_experts", now, "recovered" if same else "baseline_replaced")
        return True

    def judge(self, now: float) -> None:
        """Renew the verdict and the reason for it, and open or end the alarm of a blind tap.

        A silent tap is most often a vLLM that restarts: it is never healthy, but what pages is TapDown, once it lasts.
        """
        unseen, silent = blindness(self, now), self.heard.tap(now)[1] == "silent"
        if unseen and not silent:
            self.begin("blind", now, now, f"{self.model.model} at {self.model.replica}: {unseen}", {"reason": unseen})
        else:
            self.end("blind", now, "tap_silent" if silent else "recovered")
        verdict, self.reason = decide(self, now)
        if verdict != self.verdict:
            told = {"model": self.model.model, "replica": self.model.replica, "verdict": verdict}
            _log.info("verdict", **told, reason=self.reason)
            self.verdict, self.since = verdict, now
