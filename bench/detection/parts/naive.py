"""What tests that count tokens do on windows of the same streams: chi-square, Kolmogorov-Smirnov, PSI, Jensen-Shannon.

Each window of requests is compared with the baseline, layer by layer; the two tests share an error of 5 % among the
layers, the two distances have the customary thresholds, for any layer.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from scipy.stats import chi2, kstwobign

from bench.detection.traffic import pools, streams
from bench.detection.traffic.streams import Rng, Rows

WINDOWS: Final = (100, 500)
TRIALS: Final = 100
ERROR: Final = 0.05
OOD: Final = 0.1
Counts = NDArray[np.float64]  # [layers, experts]
TESTS: Final = ("chi-square", "KS", "PSI > 0.2", "JS > 0.1")


def verdicts(reference: Counts, window: Counts) -> list[bool]:
    """Return what the four say of the summed counts of a window against those of the baseline."""
    layers = len(window)
    n, m = reference.sum(1, keepdims=True), window.sum(1, keepdims=True)
    p, q = (reference + 0.5) / (n + 0.5 * reference.shape[1]), (window + 0.5) / (m + 0.5 * window.shape[1])
    pooled = (reference + window) / (n + m)
    used = pooled > 0
    terms = [
        np.where(used, (seen - total * pooled) ** 2 / np.where(used, total * pooled, 1), 0)
        for seen, total in ((reference, n), (window, m))
    ]
    chi = chi2.sf((terms[0] + terms[1]).sum(1), np.maximum(used.sum(1) - 1, 1))
    gap = np.abs((reference / n).cumsum(1) - (window / m).cumsum(1)).max(1)
    ks = kstwobign.sf(gap * np.sqrt(n * m / (n + m))[:, 0])
    psi = ((q - p) * np.log(q / p)).sum(1)
    middle = (p + q) / 2
    js = 0.5 * (p * np.log2(p / middle) + q * np.log2(q / middle)).sum(1)
    return [
        bool((chi < ERROR / layers).any()),
        bool((ks < ERROR / layers).any()),
        bool((psi > 0.2).any()),
        bool((js > 0.1).any()),
    ]


def run(done: dict[str, Any], save: Callable[[dict[str, Any]], None], *, seed: int) -> dict[str, Any]:
    """Return the share of windows that each flags, on normal traffic and on a tenth of far unseen requests."""
    for setting, make in (("steady", streams.apart), ("sessions", _sessions)):
        if setting in done:
            continue
        pieces = {piece.name: piece for piece in pools.sources(seed)[setting]}
        reference = pools.fingerprints(setting, pieces["fit"], seed).select(slice(4000)).total.sum(0, dtype=float)
        normal, far = (pools.fingerprints(setting, pieces[name], seed).total for name in ("normal", "far"))
        rng = np.random.default_rng([seed, 3])
        done[setting] = {str(m): _shares(reference, normal, far, m, make, rng) for m in WINDOWS}
        save(done)
    return done


def _sessions(pool: int, n: int, rng: Rng) -> Rows:
    return streams.by_session(pool, n, rng, session=pools.SESSION)


def _shares(
    reference: Counts, normal: NDArray[np.uint32], far: NDArray[np.uint32], m: int, make: Callable[..., Rows], rng: Rng
) -> dict[str, list[float]]:
    found: dict[str, list[list[bool]]] = {"normal": [], "unseen": []}
    for _ in range(TRIALS):
        rows = make(len(normal), m, rng)
        other = rng.random(m) < OOD
        found["normal"].append(verdicts(reference, normal[rows].sum(0, dtype=float)))
        mixed = normal[rows[~other]].sum(0, dtype=float) + far[make(len(far), int(other.sum()), rng)].sum(
            0, dtype=float
        )
        found["unseen"].append(verdicts(reference, mixed))
    return {kind: np.mean(flags, 0).tolist() for kind, flags in found.items()}


def tables(result: dict[str, Any]) -> dict[str, str]:
    """Return the table of shares of windows flagged."""
    lines = ["| traffic, window | " + " | ".join(TESTS) + " |", "| --- | --- | --- | --- | --- |"]
    said = {"steady": "independent requests", "sessions": f"sessions of {pools.SESSION}"}
    for setting, windows in result.items():
        for m, kinds in windows.items():
            for kind, shares in kinds.items():
                what = "nothing changed" if kind == "normal" else f"{OOD:.0%} far unseen"
                lines.append(f"| {said[setting]}, {m}, {what} | " + " | ".join(f"{s:.2f}" for s in shares) + " |")
    return {"naive": "\n".join(lines)}
