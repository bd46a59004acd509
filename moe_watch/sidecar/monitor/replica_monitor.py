"""One model at one replica: its windows, its detectors, its open alarms and its verdict.

Used from one thread; others read its ``snapshot``. Times are seconds since the epoch by the sidecar's clock.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import structlog

from moe_watch import wire
from moe_watch.detect import online
from moe_watch.detect.common.batch import Batch
from moe_watch.detect.drift import location
from moe_watch.detect.drift.localise import Localisation
from moe_watch.detect.ood.score import OodScores
from moe_watch.domain.alarm_endings import Ending
from moe_watch.domain.request import Joined
from moe_watch.domain.window_sums import Sums
from moe_watch.settings import DetectSettings, StoreSettings
from moe_watch.sidecar.background import Siblings
from moe_watch.sidecar.monitor import alarm_text, layer_health
from moe_watch.sidecar.monitor.deployment_events import DeploymentEvents
from moe_watch.sidecar.monitor.detectors import Detectors, Normal
from moe_watch.sidecar.monitor.fingerprints import batch_of, shape_of
from moe_watch.sidecar.monitor.layer_health import Assessment
from moe_watch.sidecar.monitor.raised_alarms import RaisedAlarms
from moe_watch.sidecar.monitor.rolling_window import RollingWindow
from moe_watch.sidecar.monitor.snapshot import JudgedBatch, ReplicaSnapshot
from moe_watch.sidecar.monitor.tap_health import TapHealth
from moe_watch.sidecar.monitor.verdict import blindness, decide
from moe_watch.sidecar.monitor.windows import Windows
from moe_watch.store.records import served_models
from moe_watch.store.write import request_rows
from moe_watch.store.write.batch import NewAlarm, NewRequest, Writes

_log = structlog.get_logger()


class ReplicaMonitor:
    """The running picture of one model at one replica."""

    def __init__(
        self, model: wire.Model, detect: DetectSettings, store: StoreSettings, window_s: float, now: float
    ) -> None:
        self.model = model
        self.identity = served_models.identity(model)
        self.layers, self.experts = shape_of(model)
        self.detectors = Detectors(detect)
        self.tap_health = TapHealth()
        self.events = DeploymentEvents()
        self.alarms = RaisedAlarms(self.identity, model.replica)
        self._rolling = RollingWindow(self.layers, self.experts)
        self._windows = Windows((self.layers, self.experts), window_s, now)
        self._assessment: Assessment | None = None
        self._siblings: Siblings | None = None
        self._requests = self._routed = 0
        self._verdict, self._reason, self._since = "idle", "it was announced just now", now
        self._detect, self._store = detect, store
        self._rows: list[NewRequest] = []
        self._unassessed = False
        self._judged: frozenset[str] = frozenset()  # kinds of the alarms that the verdict knows

    @property
    def labels(self) -> tuple[str, str]:
        """Return the labels of its metrics."""
        return self.model.model, self.model.replica

    def snapshot(self, now: float) -> ReplicaSnapshot:
        """Return what is known at ``now``; whoever reads it changes nothing."""
        return ReplicaSnapshot(
            at=now,
            model=self.model,
            identity=self.identity,
            layers=self.layers,
            experts=self.experts,
            verdict=self._verdict,
            reason=self._reason,
            since=self._since,
            tap=self.tap_health.state(now),
            requests=self._requests,
            routed=self._routed,
            shares=self._rolling.shares(),
            latest=self._windows.latest(),
            normal=self.detectors.normal,
            observation=self.detectors.observation,
            assessment=self._assessment,
            moved=self.detectors.moved,
            siblings=self._siblings,
            open={kind: one.values for kind, one in self.alarms.open.items()},
            ended=tuple(self.alarms.ended),
            suspects=tuple(self._rolling.suspects),
        )

    def use(self, normal: Normal | None, now: float) -> None:
        """Judge by another baseline from now on; alarms against the one before end."""
        self.end("traffic", now, "baseline_replaced")
        self._rolling.forget_scores()
        self.detectors.use(normal)

    def process(self, requests: Sequence[Joined], now: float) -> JudgedBatch:
        """Take in finished requests; what is to be written comes with the next ``collect``."""
        batch, routed = batch_of(self.model, requests)
        ordinary = [request for request in requests if not request.canary]
        window = self._windows.change()
        window.add_requests(ordinary)
        flags = np.array([(r.complete, r.routing is not None) for r in ordinary], bool).reshape(-1, 2)
        self._rolling.flags.push(flags)
        self._requests += len(ordinary)
        self._unassessed = True
        scored, ood = [requests[index] for index in routed], None
        if len(batch):
            self._routed += len(batch)
            window.add_routing(batch)
            self._rolling.add_routing(batch)
            ood = self._observe(batch, scored, now)
        self._rows += self._new_rows(requests, routed, ood)
        normal = self.detectors.normal
        return JudgedBatch(self.labels, 0 if normal is None else normal.active.version, ordinary, ood, scored)

    def lose(self, frames: Mapping[str, int]) -> None:
        """Take note of frames that never came, by reason."""
        if frames:
            self._windows.change().sums.add(Sums(dropped=dict(frames)))

    def _new_rows(self, requests: Sequence[Joined], routed: list[int], ood: OodScores | None) -> list[NewRequest]:
        return request_rows.new_requests(
            self.identity,
            requests,
            routed,
            ood,
            baseline_id=self.detectors.baseline_id,
            fingerprint_rate=self._store.fingerprint_rate,
            keep_samples_days=self._store.keep_samples_days,
        )

    def _observe(self, batch: Batch, requests: Sequence[Joined], now: float) -> OodScores | None:
        """Score ``batch``, feed the drift detectors, and open or end the alarm of traffic drift."""
        observation = self.detectors.observe(batch, self.labels)
        if observation is None:
            return None
        ood = observation.ood
        finished = np.zeros(len(batch)) if batch.finished_at is None else batch.finished_at
        self._windows.current.add_scores(ood.p, ood.p <= self._detect.ood_alpha, requests)
        self._rolling.add_scores([r.request_id for r in requests], ood.p, finished, self._detect.ood_alpha)
        self._add_location(self.detectors.locate(batch), now)
        for alarm in observation.alarms:
            if alarm.started:
                self._begin_drift(alarm, len(batch), now)
            else:
                self.end("traffic", now, "recovered")
        return ood

    def _begin_drift(self, alarm: online.Alarm, batched: int, now: float) -> None:
        began = self._rolling.began_at(alarm.began + batched - 1 - alarm.at) or now
        text = alarm_text.of_drift(self.snapshot(now), alarm, self._detect.ood_alpha, self._detect.average_run_length)
        self.begin("traffic", began, now, *alarm_text.dated(text, self.events.date(began, self._rolling)))
        self.detectors.start_location()

    def _add_location(self, moved: Localisation | None, now: float) -> None:
        """Put the layers and experts that moved into the open alarm."""
        if moved is not None:
            ids = self.snapshot(now).layer_ids
            self.alarms.add_evidence("traffic", {"where": location.evidence(moved, ids)})

    def compare(self, found: Siblings, now: float) -> None:
        """Open or end the alarm of a replica that differs from its siblings."""
        self._siblings = found
        if not found.standing.deviates:
            self.end("replica", now, "recovered")
            return
        summary, evidence = alarm_text.of_siblings(self.snapshot(now), found)
        self.begin("replica", found.flagged_at, now, summary, evidence)
        if self.alarms.open["replica"].values["evidence"].get("where") != evidence["where"]:
            self.alarms.add_evidence("replica", evidence)

    def begin(self, kind: str, began_at: float, now: float, summary: str, evidence: dict[str, Any]) -> None:
        """Open an alarm of ``kind`` unless one is open."""
        values = {"summary": summary, "evidence": evidence, "baseline_id": self.detectors.baseline_id}
        self.alarms.begin(kind, began_at, now, **values)

    def end(self, kind: str, now: float, ending: Ending) -> None:
        """Close the alarm of ``kind``, if one is open."""
        if kind == "traffic":
            self.detectors.stop_location()
        self.alarms.end(kind, now, ending)

    def take_new_counts(self) -> tuple[Counter[str], int]:
        """Return the alarms raised, by kind, and the failures of detectors since this was asked last."""
        return self.alarms.begun(), self.detectors.take_errors()

    def collect(self, now: float, *, last: bool = False) -> Writes:
        """Return what is to be written; windows when they are over, every few seconds, and at the ``last``."""
        out = Writes()
        out.requests, self._rows = self._rows, []
        out.windows += self._windows.collect(self.identity, self.model.replica, now, last=last)
        out.alarms += self.alarms.collect()
        return out

    def assess(self, now: float) -> bool:
        """Look at load balance, dead experts and sight over the latest fingerprints; say whether there was news."""
        if not self._unassessed or not self.layers:
            return False
        self._unassessed = False
        use = self.detectors.expert_use
        found = self._assessment = layer_health.assess(self.model, self._rolling, use, self._detect)
        known: NewAlarm | None = self.alarms.open.get("dead_experts")
        if found.dead.dead.any():
            self.begin("dead_experts", now, now, *alarm_text.of_dead(self.snapshot(now), found))
        elif known is not None:
            same = known.values["baseline_id"] == self.detectors.baseline_id
            self.end("dead_experts", now, "recovered" if same else "baseline_replaced")
        return True

    def renew(self, now: float) -> ReplicaSnapshot:
        """Renew the verdict, open or end the alarm of a blind tap, and return the picture after that.

        A silent tap is most often a vLLM that restarts: it is never healthy, but what pages is TapDown, once it lasts.
        """
        seen = self.snapshot(now)
        unseen, silent = blindness(seen), seen.tap.state == "silent"
        if unseen and not silent:
            self.begin("blind", now, now, f"{seen.name}: {unseen}", {"reason": unseen})
        else:
            self.end("blind", now, "tap_silent" if silent else "recovered")
        verdict, self._reason = decide(seen)
        if verdict != self._verdict:
            _log.info("verdict", model=seen.labels[0], replica=seen.labels[1], verdict=verdict, reason=self._reason)
            self._verdict, self._since = verdict, now
        self._judged = frozenset(self.alarms.open)
        return self.snapshot(now)

    def follow_alarms(self, now: float) -> None:
        """Renew the verdict where alarms opened or ended since: nobody sees an alarm beside the verdict of before."""
        if self._judged != self.alarms.open.keys():
            self.renew(now)
