"""From how many prompt positions a request's confidence can be read: the demo's MoE, recorded token by token."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from bench.detection.traffic.recorded import Recording, recording
from demo.separation import auroc

LENGTHS: Final = (64, 256)
POSITIONS: Final = (256, 64, 32, 16, 8)  # measured at most, evenly spaced; the tap takes 32
Float = NDArray[np.float64]


def run() -> dict[str, Any]:
    """Return by length and positions: the error against all positions, and how well unseen kinds are told."""
    record = recording()
    return {"lengths": {str(n): {str(m): _judged(record, n, m) for m in POSITIONS} for n in LENGTHS}}


def _judged(record: Recording, n: int, most: int) -> dict[str, float]:
    normal = np.flatnonzero(np.char.startswith(record.group, "test/") & (record.lengths >= min(n, 200)))
    seen, whole = _confidence(record, normal, n, most), _confidence(record, normal, n, n)
    areas = []
    for kind in np.unique(record.group[np.char.startswith(record.group, "unseen/")]):
        rows = np.flatnonzero((record.group == kind) & (record.lengths >= min(n, 200)))
        if len(rows) > 4:
            other = _confidence(record, rows, n, most)
            areas.append(max(_two_sided(seen[:, i], other[:, i]) for i in range(2)))
    error = (seen - whole).std(0) / whole.std(0)
    return {"entropy": float(error[0]), "margin": float(error[1]), "auroc": float(np.mean(areas))}


def _confidence(record: Recording, rows: NDArray[np.int64], n: int, most: int) -> Float:
    """Return mean entropy and margin over layers ``[m, 2]`` of the first ``n`` tokens, from ``most`` positions."""
    found = []
    for row in rows:
        length = min(n, int(record.lengths[row]))
        at = slice(0, length, -(-length // most))
        found.append([float(part[row, at].mean(dtype=float)) for part in (record.entropy, record.margin)])
    return np.array(found)


def _two_sided(normal: Float, other: Float) -> float:
    area = auroc(normal, other)
    return max(area, 1 - area)


def tables(result: dict[str, Any]) -> dict[str, str]:
    """Return errors and areas by length and positions."""
    lines = [
        "| tokens | positions, at most | error of entropy | of margin | AUROC, mean over kinds |",
        "| --- " * 5 + "|",
    ]
    for n, found in result["lengths"].items():
        for most, row in found.items():
            if int(most) <= int(n):
                errors = f"{row['entropy']:.2f} | {row['margin']:.2f}"
                lines.append(f"| {n} | {most} | {errors} | {row['auroc']:.3f} |")
    return {"confidence": "\n".join(lines)}
