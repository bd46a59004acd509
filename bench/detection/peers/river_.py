"""ADWIN, Page-Hinkley and KSWIN of river, fed with moe-watch's OOD score."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from river import drift

from bench.detection.peers.protocol import Peer, Update, main

_WARM = 1000


def _fed(new: Callable[[float], Any]) -> Callable[[np.ndarray, float], Update]:
    def make(reference: np.ndarray, value: float) -> Update:
        detector = new(value)
        for score in reference[:_WARM]:
            detector.update(float(score))

        def update(score: Any) -> bool:
            detector.update(float(score))
            return bool(detector.drift_detected)

        return update

    return make


main(
    [
        Peer(
            "river ADWIN",
            "delta",
            0.002,
            (0.3, 0.2, 0.1, 0.05, 0.02, 0.01, 0.005, 0.002, 0.0005, 0.0001, 1e-5),
            _fed(lambda value: drift.ADWIN(delta=value)),
        ),
        Peer(
            "river PageHinkley",
            "threshold",
            50.0,
            (10, 20, 35, 50, 75, 100, 150, 200, 300, 500, 1000),
            _fed(lambda value: drift.PageHinkley(threshold=value, mode="up")),
        ),
        Peer(
            "river KSWIN",
            "alpha",
            0.005,
            (0.005, 1e-4, 1e-5, 1e-6, 1e-7, 1e-9),
            _fed(lambda value: drift.KSWIN(alpha=value, seed=1)),
            streams=12,
        ),
    ]
)
