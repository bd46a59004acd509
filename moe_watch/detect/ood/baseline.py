"""A fitted picture of normal routing, as it is kept in the store."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from moe_watch.detect.common import npz
from moe_watch.detect.ood.conformal import Calibration
from moe_watch.detect.ood.length_curve import Curve
from moe_watch.detect.ood.subspace import Subspace

PARTS = ("total", "prompt", "decode")
FEWEST_TOKENS = 8  # a part with fewer routed tokens is not scored
_PLAIN = ("layers", "experts", "top_k", "requests", "counts", "users", "shares", "shares_sd", "scores", "kept")


@dataclass(frozen=True)
class Part:
    """Normal routing of one part of the requests, and the scores of the calibration requests."""

    subspace: Subspace
    calibration: Calibration


@dataclass(frozen=True)
class Views:
    """What the drift channels need besides the subspace of whole requests; k groups of requests."""

    groups: NDArray[np.float32]  # [k, q] centres of the groups, inside the subspace
    precision: NDArray[np.float32]  # [layers, experts] 1 / standard deviation of what lies outside the subspace
    layer: Curve  # SPE of each layer, by length
    stray: Curve  # squared distance to the nearest centre, by length
    extreme: Curve  # largest excess over experts, by length
    confidence: Curve  # mean entropy and mean margin over layers, by length; nan where never known


@dataclass(frozen=True)
class Baseline:
    """What is normal: ``parts`` by name ("total", and "prompt" and "decode" where there were enough of them)."""

    layers: int
    experts: int
    top_k: int
    requests: int
    counts: NDArray[np.uint64]  # [layers, experts] over all requests
    users: NDArray[np.uint64]  # [layers, experts] requests that chose the expert at least once
    shares: NDArray[np.float32]  # [layers, experts] mean square-root share of a request
    shares_sd: NDArray[np.float32]  # [layers, experts] its standard deviation between requests
    parts: Mapping[str, Part]
    views: Views
    scores: NDArray[np.float32]  # [calibration requests, channels] in the order of time, see channels.py
    kept: float  # share of all requests that the sample holds, of which the scores are stretches
    entropy: NDArray[np.float32]  # [layers] mean router entropy, nats; nan where unknown

    def to_bytes(self) -> bytes:
        """Return the baseline as an npz archive."""
        arrays = {name: np.asarray(getattr(self, name)) for name in (*_PLAIN, "entropy")}
        for name, part in self.parts.items():
            arrays |= npz.flatten(part, f"{name}.")
        return npz.to_bytes(arrays | npz.flatten(self.views, "views."))

    @classmethod
    def from_bytes(cls, raw: bytes) -> Baseline:
        """Return the baseline in ``raw``; raises ``ValueError`` when it is none of this version. Runs no pickles."""
        try:
            arrays = npz.from_bytes(raw)
            parts = {
                name: npz.restore(Part, arrays, f"{name}.") for name in PARTS if f"{name}.subspace.weight" in arrays
            }
            plain = {name: int(arrays[name]) for name in _PLAIN[:4]} | {name: arrays[name] for name in _PLAIN[4:9]}
            views = npz.restore(Views, arrays, "views.")
            entropy = arrays.get("entropy", np.full(plain["layers"], np.nan, np.float32))  # newer than the rest
            return cls(**plain, parts=parts, views=views, kept=float(arrays["kept"]), entropy=entropy)  # type: ignore[arg-type]
        except (KeyError, OSError, BadZipFile) as error:
            raise ValueError(f"not a baseline of this version: {error}") from error
