"""Outlier detectors of pyod at their defaults: ``python -m bench.detection.peers.pyod_ REQUESTS.npz OUT.json``.

The archive has ``reference [n, features]`` (normal requests of all lengths), ``normal|64`` and ``<kind>|64`` for each
length; what is written are the scores' areas under the ROC curve by detector, length and kind.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from pyod.models.copod import COPOD
from pyod.models.ecod import ECOD
from pyod.models.gmm import GMM
from pyod.models.hbos import HBOS
from pyod.models.iforest import IForest
from pyod.models.inne import INNE
from pyod.models.knn import KNN
from pyod.models.lof import LOF
from pyod.models.mcd import MCD
from pyod.models.ocsvm import OCSVM
from pyod.models.pca import PCA
from sklearn.metrics import roc_auc_score

# CBLOF refuses these requests: no separation into large and small clusters.
DETECTORS: dict[str, Callable[[], Any]] = {
    "KNN": KNN, "LOF": LOF, "PCA": PCA, "MCD": lambda: MCD(random_state=0), "GMM": lambda: GMM(random_state=0),
    "OCSVM": OCSVM, "IForest": lambda: IForest(random_state=0), "INNE": lambda: INNE(random_state=0),
    "HBOS": HBOS, "ECOD": ECOD, "COPOD": COPOD,
}  # fmt: skip


def main() -> None:
    """Fit every detector on the reference, score everything else."""
    data = np.load(sys.argv[1])
    rows = []
    for name, make in DETECTORS.items():
        print(f"  pyod {name}", flush=True)
        detector = make()
        detector.fit(data["reference"])
        rows.append({"peer": f"pyod {name}", **_judged(detector, data)})
        Path(sys.argv[2]).write_text(json.dumps(rows) + "\n", encoding="utf-8")


def _judged(detector: Any, data: Any) -> dict[str, Any]:
    """Return AUROC by length and kind, and the cost of scoring."""
    areas: dict[str, dict[str, float]] = {}
    scores = {}
    start = time.perf_counter()
    for name in data.files:
        if name != "reference":
            scores[name] = detector.decision_function(data[name])
    seconds, scored = time.perf_counter() - start, sum(len(s) for s in scores.values())
    for name, found in scores.items():
        kind, n = name.split("|")
        if kind != "normal":
            normal = scores[f"normal|{n}"]
            truth = np.repeat([0, 1], [len(normal), len(found)])
            areas.setdefault(n, {})[kind] = round(float(roc_auc_score(truth, np.concatenate([normal, found]))), 4)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"areas": areas, "microseconds": 1e6 * seconds / scored, "process_mb": round(peak)}


main()
