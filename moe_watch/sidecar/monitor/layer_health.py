"""What the latest fingerprints of one replica say of load, dead experts and sight."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from moe_watch import wire
from moe_watch.detect.load.balance import Balance, balance, contiguous, over_ranks
from moe_watch.detect.load.blind import Sight, sight
from moe_watch.detect.load.dead import DeadExperts, Use, dead_experts
from moe_watch.settings import DetectSettings
from moe_watch.sidecar.monitor.rolling_window import RollingWindow

_RESAMPLES: Final = 200
_SIGHT_REQUESTS: Final = 100  # the latest, by which the tap is found to be blind


@dataclass(frozen=True)
class Assessment:
    """What the latest fingerprints say of load and sight."""

    balance: Balance
    ranks: Balance | None  # over expert-parallel ranks; None where their placement is unknown or there is one
    dead: DeadExperts
    idle: NDArray[np.int64]  # [layers, experts] requests since each was chosen, at least
    sight: Sight


def assess(model: wire.Model, rolling: RollingWindow, normal: Use | None, settings: DetectSettings) -> Assessment:
    """Return what ``recent`` says; ``normal`` is how the baseline's traffic uses the experts."""
    counts = rolling.counts.rows().astype(np.int64)
    flags = rolling.flags.rows()[-_SIGHT_REQUESTS:]
    routed = int(flags[:, 1].sum()) if len(flags) else 0
    return Assessment(
        balance(counts, _RESAMPLES),
        _over_ranks(model, counts),
        dead_experts(rolling.idle, rolling.passed, normal, settings.average_run_length),
        rolling.idle,
        sight(counts, routed, len(flags), settings.coverage_floor),
    )


def _over_ranks(model: wire.Model, counts: NDArray[np.int64]) -> Balance | None:
    """Return the balance over ranks under vLLM's contiguous placement; a balancer (EPLB) moves experts about."""
    if model.ranks < 2 or model.eplb:
        return None
    placement = contiguous(model.layers, model.experts, model.ranks)
    return balance(over_ranks(counts, placement), _RESAMPLES)
