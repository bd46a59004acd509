"""A frozen picture of one model at one replica: verdict, metrics, status, page and alarm texts read nothing else.

The monitor makes it in its own thread, so that whoever reads it sees one moment and can change nothing. It is cheap:
values that are replaced and never changed in place (model, observation, assessment, baseline, the values of an alarm)
are references; what changes in place (counts of windows, rings, deques, the table of open alarms) is copied.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moe_watch import wire
from moe_watch.detect.drift.localise import Localisation
from moe_watch.detect.online import Observation
from moe_watch.detect.ood.score import OodScores
from moe_watch.domain.request import Joined
from moe_watch.sidecar.background import Siblings
from moe_watch.sidecar.monitor.detectors import Normal
from moe_watch.sidecar.monitor.layer_health import Assessment
from moe_watch.sidecar.monitor.rolling_window import Shares, Suspicion
from moe_watch.sidecar.monitor.tap_health import TapState


@dataclass(frozen=True)
class LatestRouting:
    """The routing of the window before and the current one; the arrays belong to the snapshot."""

    requests: int
    counts: NDArray[np.uint64]  # [layers, experts]
    entropy: NDArray[np.float64] | None  # mean per layer, nan where unknown; None where no request has it
    margin: NDArray[np.float64] | None


@dataclass(frozen=True)
class ReplicaSnapshot:
    """One model at one replica at one moment."""

    at: float  # seconds since the epoch
    model: wire.Model
    identity: str
    layers: int
    experts: int
    verdict: str
    reason: str
    since: float
    tap: TapState
    requests: int  # since it was announced
    routed: int
    shares: Shares
    latest: LatestRouting
    normal: Normal | None
    observation: Observation | None
    assessment: Assessment | None
    moved: Localisation | None  # by the open traffic drift
    siblings: Siblings | None  # as they were compared last
    open: Mapping[str, Mapping[str, Any]]  # values of the open alarms, by kind
    ended: tuple[Mapping[str, Any], ...]  # values of the latest alarms that ended, the last one first
    suspects: tuple[Suspicion, ...]  # the latest out-of-distribution requests, the last one at the end

    @property
    def labels(self) -> tuple[str, str]:
        """Return the labels of its metrics."""
        return self.model.model, self.model.replica

    @property
    def name(self) -> str:
        """Return what alarm texts call it."""
        return f"{self.model.model} at {self.model.replica}"

    @property
    def baseline_version(self) -> int:
        """Return the version of the active baseline; 0 without one."""
        return self.normal.active.version if self.normal is not None else 0

    def layer_id(self, index: int) -> int:
        """Return the index in the whole model of a layer with experts."""
        return self.model.layer_ids[index] if index < len(self.model.layer_ids) else index

    @property
    def layer_ids(self) -> list[int]:
        """Return the index in the whole model of every layer with experts."""
        return [self.layer_id(index) for index in range(self.layers)]


@dataclass(frozen=True)
class JudgedBatch:
    """A batch of finished requests and how they were scored."""

    labels: tuple[str, str]
    baseline_version: int  # 0 without one
    requests: Sequence[Joined]  # canaries left out
    ood: OodScores | None
    scored: Sequence[Joined]  # those in ``ood``, in its order
