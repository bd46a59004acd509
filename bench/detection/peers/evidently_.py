"""PSI and Jensen-Shannon of evidently on windows of moe-watch's OOD score against the reference."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
from evidently.legacy.calculations.stattests import jensenshannon_stat_test, psi_stat_test

from bench.detection.peers.protocol import Peer, Update, main


def _windows(test: Any, size: int) -> Callable[[np.ndarray, float], Update]:
    """Return a detector that tests each full window of ``size`` requests against a fixed threshold."""

    def make(reference: np.ndarray, value: float) -> Update:
        known, window = pd.Series(reference), []

        def update(score: Any) -> bool:
            window.append(float(score))
            if len(window) < size:
                return False
            result = test.func(known, pd.Series(window), "num", value)
            window.clear()
            return bool(result[1])

        return update

    return make


main(
    [
        Peer(
            f"evidently {name}, windows of {size}",
            "threshold",
            0.1,
            (0.02, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.6),
            _windows(test, size),
        )
        for size in (250, 1000)
        for name, test in (("PSI", psi_stat_test), ("Jensen-Shannon", jensenshannon_stat_test))
    ]
)
