"""How well a score of requests tells unseen ones from normal ones, and what the bench's parts fit it with."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import cross_val_predict

from demo.separation import auroc
from moe_watch.detect.common.batch import Batch
from moe_watch.detect.common.hellinger import hellinger
from moe_watch.detect.fit.baseline_fit import BaselineBuilder
from moe_watch.detect.ood.score import OodScores, score

Counts = NDArray[np.integer]
Judge = Callable[[Counts], OodScores]


def judge(reference: Counts, top_k: int, minimum: int = 500) -> Judge:
    """Return the product's OOD score against a baseline of ``reference [n, layers, experts]``, in this order."""
    builder = BaselineBuilder(minimum)
    builder.add(_batch(reference, top_k))
    baseline = builder.build()
    return lambda counts: score(baseline, _batch(counts, top_k))


def _batch(counts: Counts, top_k: int) -> Batch:
    whole = np.asarray(counts, np.uint32)
    return Batch(whole, np.zeros_like(whole), top_k, finished_at=np.arange(len(whole), dtype=float))


def apart(normal: NDArray[np.floating], unseen: NDArray[np.floating]) -> dict[str, Any]:
    """Return AUROC and the share of normal requests flagged where 95 % of the unseen are."""
    threshold = np.quantile(unseen, 0.05)
    area = auroc(normal.astype(np.float64), unseen.astype(np.float64))
    return {"auroc": round(area, 4), "fpr95": round(float((normal >= threshold).mean()), 4), "n": len(unseen)}


def mean(found: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the mean of several results of ``apart``, with the lowest and the highest AUROC."""
    areas = [each["auroc"] for each in found]
    means = {name: round(float(np.mean([each[name] for each in found])), 4) for name in ("auroc", "fpr95")}
    return means | {"n": found[0]["n"], "between": [min(areas), max(areas)]}


def supervised(normal: Counts, unseen: Counts) -> float:
    """Return the AUROC of a classifier that is shown both, by cross-validation: about what the routing can tell.

    Logistic regression on square-root shares. No score that never saw the unseen kind should be expected to do better.
    """
    rows = np.concatenate([hellinger(normal), hellinger(unseen)]).reshape(len(normal) + len(unseen), -1)
    truth = np.arange(len(rows)) >= len(normal)
    model = LogisticRegression(C=30.0, max_iter=300, class_weight="balanced")
    found = cross_val_predict(model, rows, truth, cv=4, method="decision_function")
    return round(auroc(found[~truth], found[truth]), 4)
