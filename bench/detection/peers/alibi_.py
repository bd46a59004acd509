"""MMD and LSDD online of alibi-detect, on the leading components of square-root expert shares and the OOD score.

Their parameter is the expected run time itself; it is bounded by the memory that a simulation of thresholds takes.
"""

from __future__ import annotations

import resource
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import torch
from alibi_detect.cd import LSDDDriftOnline, MMDDriftOnline

from bench.detection.peers.protocol import Peer, Update, main

_REFERENCE, _WINDOW, _SIMULATED = 500, 50, 1.5  # simulated streams per request of the expected run time: its least
_MOST_BYTES = 8 << 30  # MMDDriftOnline took 23 GB with 1,000 references and 10,000 simulated streams
torch.set_num_threads(1)
resource.setrlimit(resource.RLIMIT_AS, (_MOST_BYTES, _MOST_BYTES))


def _online(kind: Any) -> Callable[[np.ndarray, float], Update]:
    @cache
    def fitted(reference: bytes, columns: int, run_time: float) -> Any:
        rows = np.frombuffer(reference, np.float32).reshape(-1, columns)
        np.random.seed(0)  # noqa: NPY002 - the library draws from the global generator
        torch.manual_seed(0)
        return kind(
            rows,
            ert=run_time,
            window_size=_WINDOW,
            backend="pytorch",
            n_bootstraps=int(_SIMULATED * run_time),
            device="cpu",
            verbose=False,
        )

    def make(reference: np.ndarray, value: float) -> Update:
        rows = np.ascontiguousarray(reference[:_REFERENCE], np.float32)
        detector = fitted(rows.tobytes(), rows.shape[1], value)
        (getattr(detector, "reset_state", None) or detector.reset)()
        return lambda row: bool(detector.predict(row)["data"]["is_drift"])

    return make


main(
    [
        Peer(f"alibi-detect {kind.__name__}", "ert", 1000, (1000, 3000), _online(kind), multivariate=True, streams=12)
        for kind in (MMDDriftOnline, LSDDDriftOnline)
    ]
)
