"""Other scores of unusual requests on the recording of the demo's MoE: pyod's, and one that was tried here.

All are fitted on the same normal requests of 12 to 256 tokens as moe-watch's score, and judged on the same kinds. pyod
gets what a user of it would compute, square-root shares, and all of the requests to fit, since it calibrates nothing.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from scipy.cluster.vq import kmeans2

from bench.detection.parts import peers
from bench.detection.parts.ood import NORMAL_KIND
from bench.detection.parts.ood_tiny import LENGTHS, LONGEST, SHORTEST, TOP_K
from bench.detection.parts.separation import apart, judge
from bench.detection.traffic.recorded import Recording, recording
from moe_watch.detect.common.hellinger import hellinger

NEEDS: Final = ["pyod==3.6.7"]
BEST: Final = 3  # detectors of pyod that are shown: those of the highest mean at 64 tokens
GROUPS: Final = 16
PRIOR: Final = 50  # requests that the pooled covariance of a group counts for
Float = NDArray[np.float64]


class Requests:
    """Beginnings of texts: counts ``[n, layers, experts]``, tokens ``[n]``, confidence ``[n, 2 layers]``."""

    def __init__(self, record: Recording, rows: NDArray[np.int64], tokens: NDArray[np.int64]) -> None:
        self.tokens = np.minimum(tokens, record.lengths[rows])
        self.counts = record.counts(rows, self.tokens)
        self.roots = hellinger(self.counts).reshape(len(rows), -1).astype(float)
        sure = np.concatenate([record.entropy, record.margin], 2)
        self.confidence = np.stack([sure[i, :n].mean(0, dtype=float) for i, n in zip(rows, self.tokens, strict=True)])


def run(seed: int) -> dict[str, Any]:
    """Return rows of AUROC by length and kind; makes pyod's environment where it is missing."""
    record = recording()
    rng = np.random.default_rng(seed)
    rows = rng.permutation(np.flatnonzero(np.char.startswith(record.group, "reference/")))
    tokens = np.exp(rng.uniform(np.log(SHORTEST), np.log(LONGEST + 1), len(rows))).astype(np.int64)
    reference = Requests(record, rows, tokens)
    judged = judge(reference.counts, TOP_K)
    tests = _tests(record)
    ours = {
        "moe-watch": lambda requests: judged(requests.counts).score,
        "tried: mixture of Gaussians, with confidence": mixture(reference),
    }
    found = [{"peer": name, **_judged(score, tests)} for name, score in ours.items()]
    found_kinds = sorted({kind for kind, _ in tests} - {"normal"})
    return {"requests": len(rows), "kinds": found_kinds, "rows": found + _pyod(reference, tests, seed)}


def _tests(record: Recording) -> dict[tuple[str, int], Requests]:
    """Return normal requests and those of every kind, of each length."""
    found = list(dict.fromkeys(g.split("/")[1] for g in record.group if g.startswith("unseen/")))
    tests = {}
    for n in LENGTHS:
        long_enough = record.lengths >= min(n, 200)
        for kind in ("normal", *found):
            mine = np.char.startswith(record.group, "test/") if kind == "normal" else record.group == f"unseen/{kind}"
            rows = np.flatnonzero(mine & long_enough)
            if len(rows) > 4:
                tests[kind, n] = Requests(record, rows, np.full(len(rows), n))
    return tests


def _judged(score: Callable[[Requests], NDArray[Any]], tests: dict[tuple[str, int], Requests]) -> dict[str, Any]:
    start = time.perf_counter()
    scores = {name: score(requests) for name, requests in tests.items()}
    seconds, scored = time.perf_counter() - start, sum(len(s) for s in scores.values())
    areas: dict[str, dict[str, float]] = {}
    for (kind, n), found in scores.items():
        if kind != "normal":
            areas.setdefault(str(n), {})[kind] = apart(scores["normal", n], found)["auroc"]
    return {"areas": areas, "microseconds": 1e6 * seconds / scored}


def _pyod(reference: Requests, tests: dict[tuple[str, int], Requests], seed: int) -> list[dict[str, Any]]:
    folder = peers.HOME / f"seed{seed}"
    folder.mkdir(parents=True, exist_ok=True)
    file, out = folder / "requests.npz", folder / "pyod.json"
    np.savez(file, reference=reference.roots, **{f"{kind}|{n}": r.roots for (kind, n), r in tests.items()})
    peers.run_in(peers.environment("pyod", NEEDS), "pyod_", file, out)
    return list(json.loads(out.read_text(encoding="utf-8")))


def mixture(reference: Requests) -> Callable[[Requests], Float]:
    """Return the negative log density of a mixture of Gaussians that carry the noise of n tokens.

    Of square-root shares and of every layer's entropy and margin, with full covariances, each shrunk to the pooled one.
    """
    low, high = reference.confidence.mean(0), reference.confidence.std(0)

    def features(requests: Requests) -> Float:
        return np.concatenate([requests.roots, 0.1 * (requests.confidence - low) / high], 1)

    rows, inverse = features(reference), 1 / reference.tokens
    axes = np.linalg.svd(reference.roots - reference.roots.mean(0), full_matrices=False)[2][:20]
    label = kmeans2(reference.roots @ axes.T, GROUPS, minit="++", seed=np.random.default_rng(0))[1]
    centres = np.stack([rows[label == group].mean(0) for group in range(GROUPS)])
    rest = rows - centres[label]
    root = np.sqrt(reference.tokens)[:, None]
    design = np.concatenate([root, 1 / root], 1)
    noise = np.linalg.lstsq(design, rest**2 * root, rcond=None)[0][1]
    scale = np.sqrt(np.maximum(noise, 1e-3 * np.abs(noise).max()))
    rest /= scale
    pooled = rest.T @ rest / len(rest)
    groups = []
    for group, centre in enumerate(centres):
        own = label == group
        values, turn = np.linalg.eigh((rest[own].T @ rest[own] + PRIOR * pooled) / (own.sum() + PRIOR))
        groups.append((centre, turn, np.maximum(values - inverse[own].mean(), 2e-3), np.log(own.mean())))

    def score(requests: Requests) -> Float:
        seen, of_length = features(requests), 1 / requests.tokens[:, None]
        logs = []
        for centre, turn, values, share in groups:
            along, variance = ((seen - centre) / scale) @ turn, values + of_length
            logs.append(share - 0.5 * (along**2 / variance + np.log(variance)).sum(1))
        density = -np.logaddexp.reduce(logs, 0)
        return np.asarray(density)

    return score


def tables(result: dict[str, Any]) -> dict[str, str]:
    """Return mean and hardest kind by score and length."""
    columns = [f"{what}, {n} tokens" for n in LENGTHS for what in ("mean", "hardest")]
    lines = ["| score | " + " | ".join(columns) + " | us a request |", "| --- " * (len(columns) + 2) + "|"]
    others = sorted(result["rows"][2:], key=lambda row: -_mean(row, 64))[:BEST]
    for row in (*result["rows"][:2], *others):
        cells = []
        for n in LENGTHS:
            areas = {kind: area for kind, area in row["areas"][str(n)].items() if kind != NORMAL_KIND}
            hardest = min(areas, key=lambda kind: areas[kind])
            cells += [f"{_mean(row, n):.3f}", f"{areas[hardest]:.3f} ({hardest})"]
        lines.append(f"| {row['peer']} | " + " | ".join(cells) + f" | {row['microseconds']:.0f} |")
    return {"ood-peers": "\n".join(lines)}


def _mean(row: dict[str, Any], n: int) -> float:
    return float(np.mean([area for kind, area in row["areas"][str(n)].items() if kind != NORMAL_KIND]))
