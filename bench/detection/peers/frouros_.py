"""Page-Hinkley, CUSUM and the geometric moving average of frouros, fed with moe-watch's OOD score."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from frouros.detectors import concept_drift as drift

from bench.detection.peers.protocol import Peer, Update, main

_WARM = 1000


def _fed(new: Callable[[float], Any]) -> Callable[[np.ndarray, float], Update]:
    def make(reference: np.ndarray, value: float) -> Update:
        detector = new(value)
        shift = float(reference.min())  # its detectors are made for errors: numbers above 0
        for score in reference[:_WARM]:
            detector.update(value=float(score) - shift)
            if detector.drift:
                detector.reset()

        def update(score: Any) -> bool:
            detector.update(value=float(score) - shift)
            return bool(detector.drift)

        return update

    return make


main(
    [
        Peer(
            "frouros PageHinkley",
            "lambda",
            50.0,
            (10, 20, 35, 50, 75, 100, 150, 200, 300, 500, 1000),
            _fed(lambda value: drift.PageHinkley(config=drift.PageHinkleyConfig(lambda_=value))),
        ),
        Peer(
            "frouros CUSUM",
            "lambda",
            50.0,
            (10, 20, 35, 50, 75, 100, 150, 200, 300, 500, 1000),
            _fed(lambda value: drift.CUSUM(config=drift.CUSUMConfig(lambda_=value))),
        ),
        Peer(
            "frouros GeometricMovingAverage",
            "lambda",
            1.0,
            (0.3, 0.5, 0.7, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0),
            _fed(lambda value: drift.GeometricMovingAverage(config=drift.GeometricMovingAverageConfig(lambda_=value))),
        ),
    ]
)
