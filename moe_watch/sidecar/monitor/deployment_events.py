"""The events of one replica's deployment (restarts, new versions), to which changes of its routing are dated."""

from __future__ import annotations

from collections import deque
from typing import Any, Final

import numpy as np

from moe_watch import wire
from moe_watch.detect.common.attribution import Dating, Happening, date
from moe_watch.sidecar.monitor.rolling_window import RollingWindow

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
    return [f"{word} {_shown(new)} instead of {_shown(old)}" for word, old, new in pairs if old != new]


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    return str(value)[:40] or "none"


class DeploymentEvents:
    """The latest events of one replica, in bounded memory."""

    def __init__(self) -> None:
        self._events: deque[Happening] = deque(maxlen=_MOST)

    def add(self, kind: str, at: float, detail: str = "") -> None:
        """Take note of an event at ``at``, seconds since the epoch."""
        self._events.append(Happening(at, kind, detail[:_LONGEST]))

    def date(self, began_at: float, rolling: RollingWindow) -> Dating | None:
        """Return the event to which a change of the traffic that began at ``began_at`` is dated, None without one."""
        finished = np.asarray(rolling.finished_at.rows(), np.float64)
        return date(began_at, list(self._events), finished, most_requests=_NEAR)
