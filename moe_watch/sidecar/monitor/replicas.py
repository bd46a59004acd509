"""Hands finished requests to the monitor of their replica, and what is found to the board.

Lives in one thread of its own, because a batch takes longer than the event loop may wait.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, Final

from moe_watch import wire
from moe_watch.detect.canary.comparison import FAULTS
from moe_watch.domain import memory, status
from moe_watch.domain.alarm_endings import Ending
from moe_watch.domain.request import Joined
from moe_watch.metrics import series
from moe_watch.metrics.board import Board
from moe_watch.settings import Settings
from moe_watch.sidecar.background import News, Served
from moe_watch.sidecar.monitor import describe as described
from moe_watch.sidecar.monitor import publish
from moe_watch.sidecar.monitor.deployment_events import DeploymentEvents, differences
from moe_watch.sidecar.monitor.detectors import Normal
from moe_watch.sidecar.monitor.replica_monitor import ReplicaMonitor
from moe_watch.store import losses
from moe_watch.store.records import served_models
from moe_watch.store.schema import CanaryRun
from moe_watch.store.write.batch import NewEvent, Writes
from moe_watch.store.write.request_rows import text

_ASSESS_S: Final = 5.0
_MOST_HELD: Final = 1000  # requests of a replica that wait for its announcement
_MOST_CELLS: Final = 1 << 22  # layers x experts x requests that are unpacked at once
_RENEWALS: Final = 8  # times that an announcement is written before it would count as expired


class ReplicaMonitors:
    """The monitors of all replicas."""

    def __init__(self, settings: Settings, board: Board) -> None:
        self.by_replica: dict[str, ReplicaMonitor] = {}
        self.refused: Counter[str] = Counter()  # unannounced
        self._settings, self._board = settings, board
        self._normals: dict[str, Normal] = {}  # by identity
        self._pending = Writes()
        self._events: defaultdict[str, DeploymentEvents] = defaultdict(DeploymentEvents)  # by replica
        self._held: defaultdict[str, list[Joined]] = defaultdict(list)  # by replica, until it is announced
        self._held_bytes: Counter[str] = Counter()
        self._written: dict[str, float] = {}  # replica -> when its announcement was written
        self._dropped: dict[str, losses.Counts] = {}  # by replica: what is in the windows already
        self._assessed: dict[str, float] = {}  # replica -> when, the longest ago first

    def remember(self, dropped: dict[str, losses.Counts]) -> None:
        """Take note of what the process before has counted of the taps' own losses, by replica."""
        self._dropped = dropped

    def announce(self, model: wire.Model, now: float, heard_at: float | None = None) -> None:
        """Take note of what a replica serves; another model there than before starts anew.

        ``heard_at`` is when it was heard where that is not ``now``: a start makes nobody younger.
        """
        heard_at = now if heard_at is None else heard_at
        monitor = self.by_replica.get(model.replica)
        identity = served_models.identity(model)
        changed = monitor is not None and self._changed(monitor.model, model, now)
        if monitor is not None and monitor.identity == identity:
            monitor.model = model
            self._board.add(series.EVENTS, int(changed), *monitor.labels, "model_changed")
            self._write_announcement(model, now)
            return
        if monitor is not None:
            self._close(monitor, now, "configuration_changed")
        ended = monitor.alarms.ended if monitor is not None else ()
        dropped = monitor.tap_health.dropped if monitor is not None else self._dropped.pop(model.replica, {})
        monitor = ReplicaMonitor(model, self._settings.detect, self._settings.store, self._settings.window_s, now)
        monitor.alarms.ended.extend(ended)
        monitor.tap_health.dropped = dropped
        monitor.use(self._normals.get(identity), now)
        monitor.renew(now)
        monitor.events = self._events[model.replica]
        self.by_replica[model.replica] = monitor
        self._assessed[model.replica] = 0.0
        self._write_announcement(model, heard_at, is_new=True)
        publish.begin(self._board, monitor.snapshot(now))
        self._board.add(series.EVENTS, int(changed), *monitor.labels, "model_changed")
        self._held_bytes.pop(model.replica, None)
        waited = self.process(self._held.pop(model.replica, ()), now)
        self._pending.extend(waited)

    def _write_announcement(self, model: wire.Model, now: float, *, is_new: bool = False) -> None:
        """Let the store know what is served, and now and then that it still is: a start takes up nothing expired."""
        due = self._settings.replica_expires_s / _RENEWALS
        if is_new or not 0 <= now - self._written[model.replica] < due:
            self._written[model.replica] = now
            written = served_models.announcement(model, now, self._settings.sidecar)
            self._pending.extend(written)

    def _close(self, monitor: ReplicaMonitor, now: float, ending: Ending) -> None:
        monitor.alarms.end_all(now, ending)
        self._pending.extend(monitor.collect(now, last=True))
        self._board.drop(*monitor.labels)

    def forget(self, replica: str, now: float) -> None:
        """Take a replica that is gone for good out of metrics, status and memory; its history stays in the store."""
        monitor = self.by_replica.get(replica)
        if monitor is not None:
            self._close(monitor, now, "tap_silent")
        self._board.drop("unknown", replica)
        self.refused["unannounced"] += len(self._held.get(replica, ()))
        kept: tuple[dict[str, Any], ...] = (
            *(self.by_replica, self._written, self._assessed, self._events, self._held, self._held_bytes),
        )
        for known in kept:
            known.pop(replica, None)

    def _changed(self, before: wire.Model, model: wire.Model, now: float) -> bool:
        """Make an event of a replica that serves in another configuration than before; say whether it does."""
        detail = text(", ".join(differences(before, model)))
        if detail:
            values = {"at": model.sent_at, "replica": model.replica, "kind": "model_changed", "detail": detail}
            self._events[model.replica].add("model_changed", model.sent_at, detail)
            written = served_models.announcement(model, now, self._settings.sidecar)
            self._pending.extend(written)
            self._pending.events.append(NewEvent(served_models.identity(model), values))
        return bool(detail)

    def hear(self, frame: wire.Health | wire.Event, now: float) -> None:
        """Take note of what a tap says of itself and of its engine."""
        monitor = self.by_replica.get(frame.replica)
        if isinstance(frame, wire.Event):
            values = {"at": frame.at, "replica": frame.replica, "kind": frame.kind, "detail": text(frame.detail)}
            self._pending.events.append(NewEvent(monitor.identity if monitor is not None else "", values))
            self._events[frame.replica].add(frame.kind, frame.at, text(frame.detail))
            if monitor is not None:
                self._board.add(series.EVENTS, 1, *monitor.labels, frame.kind)
            return
        if monitor is not None:
            monitor.tap_health.record(frame, now)
            publish.tap_up(self._board, monitor.labels, up=monitor.tap_health.state(now).up)
            self._count_dropped(monitor, frame)

    def _count_dropped(self, monitor: ReplicaMonitor, health: wire.Health) -> None:
        """Count what the tap says that it dropped, once: also where a process before this one has counted it."""
        counted: Counter[str] = Counter()
        for reason, n in health.dropped.items():
            counted[reason if reason in series.DROP_REASONS else "error"] += n
        grown = monitor.tap_health.increase(health.source, counted)
        if grown:
            self._lost(monitor, grown)
            counts, sidecar = monitor.tap_health.dropped, self._settings.sidecar
            self._pending.meta |= losses.kept(sidecar, monitor.model.replica, counts)

    def lose(self, lost: Mapping[str, int]) -> None:
        """Count frames of replicas that were sent and never came."""
        for replica, n in lost.items():
            if replica in self.by_replica:
                self._lost(self.by_replica[replica], {"lost": n})
            else:
                self._board.add(series.FRAMES_DROPPED, n, "unknown", replica, "lost")

    def _lost(self, monitor: ReplicaMonitor, frames: Mapping[str, int]) -> None:
        monitor.lose(frames)
        publish.dropped(self._board, monitor.labels, frames)

    def process(self, requests: Sequence[Joined], now: float) -> Writes:
        """Judge finished ``requests``; return what is to be written."""
        by_replica: defaultdict[str, list[Joined]] = defaultdict(list)
        for request in requests:
            by_replica[request.replica].append(request)
        for replica, theirs in by_replica.items():
            monitor = self.by_replica.get(replica)
            if monitor is None:
                self._hold(replica, theirs)
                continue
            at_once = max(1, _MOST_CELLS // max(1, monitor.layers * monitor.experts))
            for start in range(0, len(theirs), at_once):
                judged = monitor.process(theirs[start : start + at_once], now)
                publish.batch(self._board, judged, self._settings, now)
            monitor.follow_alarms(now)
        return self.collect(now)

    def _hold(self, replica: str, requests: Sequence[Joined]) -> None:
        """Keep requests until their replica announces what it serves; what is too much of them is refused."""
        held, most = self._held[replica], memory.Parts(self._settings.memory_bytes).held
        for request in requests:
            size = request.size
            if len(held) >= _MOST_HELD or self._held_bytes.total() + size > most:
                self.refused["unannounced"] += 1
                continue
            held.append(request)
            self._held_bytes[replica] += size

    def tick(self, now: float) -> Writes:
        """Assess the replica that has waited longest, renew verdicts and gauges; return what is to be written."""
        replica = min(self._assessed, key=self._assessed.__getitem__, default=None)
        if replica is not None and not 0 <= now - self._assessed[replica] < _ASSESS_S:
            self._assessed[replica] = now
            if self.by_replica[replica].assess(now):
                publish.layers(self._board, self.by_replica[replica].snapshot(now))
        for monitor in self.by_replica.values():
            publish.state(self._board, monitor.renew(now), self._settings.detect.ood_alpha)
            publish.counted(self._board, monitor.labels, *monitor.take_new_counts())
        return self.collect(now)

    def collect(self, now: float, *, last: bool = False) -> Writes:
        """Return what is to be written; at the ``last`` everything that is held, and alarms end with who watched."""
        out, self._pending = self._pending, Writes()
        if last:
            self.refused["unannounced"] += sum(map(len, self._held.values()))
            self._held.clear()
            self._held_bytes.clear()
        for monitor in self.by_replica.values():
            if last:
                monitor.alarms.end_all(now, "sidecar_stopped")
            out.extend(monitor.collect(now, last=last))
        return out

    def use(self, normals: dict[str, Normal], now: float) -> None:
        """Judge by the active baselines ``normals`` (by identity of the model) from now on."""
        before, self._normals = self._normals, normals
        for monitor in self.by_replica.values():
            normal = normals.get(monitor.identity)
            if (None if normal is None else normal.active) != _active(before, monitor.identity):
                monitor.use(normal, now)
                monitor.follow_alarms(now)
                publish.baseline(self._board, monitor.labels, monitor.detectors.normal)
                if normal is not None:
                    self._board.add(series.EVENTS, 1, *monitor.labels, "baseline_promoted")

    def served(self) -> list[Served]:
        """Return which models with experts are served where."""
        return [
            Served(*monitor.labels, monitor.identity) for monitor in list(self.by_replica.values()) if monitor.layers
        ]

    def learn(self, news: Sequence[News], now: float) -> None:
        """Open and end the alarms that shadow and canaries give cause for."""
        for one in news:
            monitor = self.by_replica.get(one.replica)
            if monitor is None:
                continue
            for change in one.quality:
                if change.started:
                    monitor.begin(change.kind, change.began_at, now, change.summary, change.evidence)
                else:
                    monitor.end(change.kind, now, change.ending)
            if one.canary is not None:
                publish.canary(self._board, monitor.snapshot(now), one.canary)
                _check_canaries(monitor, one.canary, one.reference_since, now)
            if one.siblings is not None:
                publish.siblings(self._board, monitor.labels, one.siblings)
                monitor.compare(one.siblings, now)
            monitor.follow_alarms(now)

    def describe(self, now: float) -> list[status.Replica]:
        """Return what is seen now, replica by replica."""
        return [described.replica(self.by_replica[replica].snapshot(now)) for replica in sorted(self.by_replica)]

    def matrix(self, replica: str, now: float) -> status.Matrix | None:
        """Return expert shares of one replica; None for an unknown one."""
        monitor = self.by_replica.get(replica)
        return None if monitor is None else described.matrix(monitor.snapshot(now))


def _active(normals: dict[str, Normal], identity: str) -> object:
    normal = normals.get(identity)
    return None if normal is None else normal.active


def _check_canaries(monitor: ReplicaMonitor, run: CanaryRun, reference_since: float, now: float) -> None:
    """Open or end the alarm of routing drift; a replay that saw nothing does neither."""
    if run.verdict in FAULTS:
        evidence = {**run.evidence, "verdict": run.verdict, "canary_run": run.id}
        monitor.begin("routing", run.at, run.at, run.summary, evidence)
    elif run.verdict in {"healthy", "benign"}:
        known = monitor.alarms.open.get("routing")
        replaced = known is not None and known.values["flagged_at"] < reference_since
        monitor.end("routing", now, "reference_replaced" if replaced else "recovered")
