"""What happened to the deployment of one replica, against which its changes are dated; one room of the sidecar."""

from __future__ import annotations

from collections import deque
from typing import Any, Final

import numpy as np

from moe_watch import wire
from moe_watch.detect.common.attribution import Dating, Happening, date
from moe_watch.sidecar.monitor.rolling_window import Recent

_MOST: Final = 100
_LONGEST: Final = 500  # characters of a detail
_NEAR: Final = 200  # requests between an event and a change that it may explain
_FACTS: Final = {
    "vllm_version": "vLLM",
    "revision": "revision",
    "weights": "weights",
    "quantization": "quantisation",
    "moe_backend": "MoE kernels",
    "dtype": "type",
    "architecture": "architecture",
    "runner": "model runner",
    "layers": "layers",
    "experts": "experts",
    "top_k": "top-k",
    "eplb": "EPLB",
    "max_num_batched_tokens": "most tokens in a step",
}
_PARALLEL: Final = {"tp": "tensor-parallel", "pp": "pipeline-parallel", "dp": "data-parallel", "ep": "expert-parallel"}


def differences(before: wire.Model, after: wire.Model) -> list[str]:
    """Return in words what two announcements of one replica differ in, but for what says nothing of routing."""
    pairs = [(word, getattr(before, name), getattr(after, name)) for name, word in _FACTS.items()]
    pairs += [
        (f"{word} ranks", before.parallel.get(name, 1), after.parallel.get(name, 1)) for name, word in _PARALLEL.items()
    ]
    return [f"{word} {_said(new)} instead of {_said(old)}" for word, old, new in pairs if old != new]


def _said(value: Any) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    return str(value)[:40] or "none"


class Happenings:
    """The latest events of one replica, in bounded memory."""

    def __init__(self) -> None:
        self._seen: deque[Happening] = deque(maxlen=_MOST)

    def add(self, kind: str, at: float, detail: str = "") -> None:
        """Take note of an event at ``at``, seconds since the epoch."""
        self._seen.append(Happening(at, kind, detail[:_LONGEST]))

    def date(self, began_at: float, recent: Recent) -> Dating | None:
        """Return the event to which a change of the traffic that began at ``began_at`` is dated, None without one."""
        finished = np.asarray(recent.finished_at.rows(), np.float64)
        return date(began_at, list(self._seen), finished, most_requests=_NEAR)
