"""What every peer's script does: read the streams, run its detectors at several parameters, write when they alarmed.

Needs numpy alone, so that it runs in any peer's environment:
``python -m bench.detection.peers.river_ STREAMS.npz OUT.json``.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

Update = Callable[[Any], bool]  # takes one request's score (or row of features), says whether it alarms
PROMISE = 10_000  # requests between false alarms to which every detector is tuned
_SHOWN_MB = 1024  # ru_maxrss is in KiB


@dataclass(frozen=True)
class Peer:
    """A detector: ``make(reference, value)`` gives its update; ``values`` go from most to least sensitive."""

    name: str
    parameter: str
    default: float
    values: Sequence[float]
    make: Callable[[np.ndarray, float], Update]
    multivariate: bool = False
    streams: int = 10_000  # at most so many, where it is slow


def first_alarm(update: Update, stream: np.ndarray) -> int | None:
    """Return the index of the first request at which ``update`` alarms."""
    for index, value in enumerate(stream):
        if update(value):
            return index
    return None


def main(peers: Sequence[Peer]) -> None:
    """Run ``peers`` over the streams of the first argument, write the second."""
    data = np.load(sys.argv[1])
    results = []
    for peer in peers:
        print(f"  {peer.name}", flush=True)
        results += _run(peer, data)
        Path(sys.argv[2]).write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


def _run(peer: Peer, data: Any) -> list[dict[str, Any]]:
    """Return the peer's rows: at its default, and at the most sensitive value that keeps the promise."""
    columns = slice(None) if peer.multivariate else 0
    rows, tuned = [], None
    nulls = {peer.default: _null(peer, data, columns, peer.default)}
    for value in peer.values:
        if value not in nulls:
            nulls[value] = _null(peer, data, columns, value)
        if nulls[value]["run_length"] >= PROMISE:
            tuned = value
            break
    for at, value in (("default", peer.default), ("tuned", tuned)):
        if value is None:
            rows.append({"peer": peer.name, "at": at, "parameter": peer.parameter, "value": None})
            continue
        delays = {name: _delays(peer, data, name, columns, value) for name in _scenarios(data)}
        rows.append(
            {"peer": peer.name, "at": at, "parameter": peer.parameter, "value": value, **nulls[value], "delays": delays}
        )
    return rows


def _null(peer: Peer, data: Any, columns: Any, value: float) -> dict[str, float]:
    """Return alarms on normal streams, the run length between them, and the cost."""
    alarms = seen = 0
    seconds = 0.0
    for pool, order in zip(data["null_pool"], data["null"][: peer.streams], strict=False):
        update = peer.make(data["reference"][pool][:, columns], value)
        stream = data["normal"][pool][order][:, columns]
        start = time.perf_counter()
        alarm = first_alarm(update, stream)
        seconds += time.perf_counter() - start
        alarms += alarm is not None
        seen += len(stream) if alarm is None else alarm + 1
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / _SHOWN_MB
    return {
        "false_alarms": alarms,
        "requests": seen,
        "run_length": seen / max(alarms, 1),
        "microseconds": 1e6 * seconds / seen,
        "process_mb": round(peak),
    }


def _scenarios(data: Any) -> list[str]:
    return sorted(name[:-3] for name in data.files if name.endswith("_at"))


def _delays(peer: Peer, data: Any, name: str, columns: Any, value: float) -> list[int | None]:
    """Return requests from the change to the alarm, None where there was none; early alarms are left out."""
    found: list[int | None] = []
    change = int(data["change"])
    for pool, order, kind in zip(data["null_pool"], data["order"][: peer.streams], data[f"{name}_at"], strict=False):
        update = peer.make(data["reference"][pool][:, columns], value)
        other = data[name][pool]
        stream = np.where(kind[:, None], other[order % len(other)], data["normal"][pool][order])[:, columns]
        alarm = first_alarm(update, stream)
        if alarm is None or alarm >= change:
            found.append(None if alarm is None else alarm - change + 1)
    return found
