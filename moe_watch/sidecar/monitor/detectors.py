"""The detectors of one replica: each request and the stream of requests against the active baseline."""

from __future__ import annotations

from dataclasses import dataclass

import structlog

from moe_watch.detect import online
from moe_watch.detect.common.batch import Batch
from moe_watch.detect.drift import moments
from moe_watch.detect.drift.localise import Localisation
from moe_watch.detect.drift.location import DriftLocation
from moe_watch.detect.fit.baseline_fit import Baseline
from moe_watch.detect.load import dead
from moe_watch.settings import DetectSettings
from moe_watch.store.records import baselines

_log = structlog.get_logger()


@dataclass(frozen=True)
class Normal:
    """The active baseline and what the store says of it."""

    active: baselines.Active
    fitted: Baseline


class Detectors:
    """The state of the detectors; one that fails costs its result, not the process."""

    def __init__(self, settings: DetectSettings) -> None:
        self.normal: Normal | None = None
        self.observation: online.Observation | None = None
        self.expert_use: dead.Use | None = None  # by the baseline's traffic
        self._settings = settings
        self._state: online.LiveState | None = None
        self._location: DriftLocation | None = None  # of the open traffic drift
        self._errors = 0

    @property
    def baseline_id(self) -> int | None:
        """Return the key of the active baseline in the store."""
        return self.normal.active.id if self.normal is not None else None

    @property
    def moved(self) -> Localisation | None:
        """Return which layers and experts the open drift moved; None while they cannot be told."""
        return self._location.found if self._location is not None else None

    def use(self, normal: Normal | None) -> None:
        """Begin anew with another baseline, or with none."""
        self._state, self.normal, self.expert_use, self.observation = None, None, None, None
        if normal is None:
            return
        try:
            self._state = online.start(normal.fitted, self._settings.average_run_length, self._settings.tolerance)
            self.normal = normal
            self.expert_use = dead.use(normal.fitted.users, normal.fitted.requests, normal.fitted.counts)
        except Exception:  # noqa: BLE001 - a baseline that cannot be used must not end the sidecar
            self._errors += 1
            _log.exception("the baseline cannot be used: fit a new one", version=normal.active.version)

    def observe(self, batch: Batch, labels: tuple[str, str]) -> online.Observation | None:
        """Score ``batch`` and feed the drift detectors; None without a baseline or where a detector fails."""
        if self.normal is None or self._state is None:
            return None
        try:
            self._state, self.observation = online.observe(self.normal.fitted, self._state, batch)
        except Exception:  # noqa: BLE001 - whatever it is, requests must still be counted and stored
            self._errors += 1
            _log.exception("a detector failed", model=labels[0], replica=labels[1])
            return None
        return self.observation

    def start_location(self) -> None:
        """Begin to look for the layers and experts that a drift moved."""
        if self.normal is not None:
            self._location = DriftLocation(moments.of_baseline(self.normal.fitted))

    def stop_location(self) -> None:
        """Stop looking: the drift is over."""
        self._location = None

    def locate(self, batch: Batch) -> Localisation | None:
        """Take in requests after the alarm; return a new answer, if there is one."""
        found = self._location is not None and self._location.add(batch)
        return self.moved if found else None

    def take_errors(self) -> int:
        """Return the number of failures since this was asked last."""
        errors, self._errors = self._errors, 0
        return errors
