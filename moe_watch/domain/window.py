"""Adds requests up into windows of time, one per model and replica; windows merge by addition.

Everything in a window is a sum, so that windows of replicas, hours or pieces of a window after a restart give exactly
what one window over all of their requests would have given.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

from moe_watch.detect.common.batch import Batch
from moe_watch.domain.request import Joined
from moe_watch.metrics import series

MOST_DOMAINS: Final = 32  # more of them in one window count as "other"
P_EDGES: Final = (0.0001, 0.001, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
TOKEN_EDGES: Final = tuple(float(2**power) for power in range(4, 18))
EDGES: Final[dict[str, tuple[float, ...]]] = {  # name of a histogram -> upper bounds, the last bucket is open
    **{f"ttft_s.{context}": series.TTFT_BUCKETS for context in series.CONTEXTS},
    "tpot_s": series.TPOT_BUCKETS,
    "prompt_tokens": TOKEN_EDGES,
    "output_tokens": TOKEN_EDGES,
    "ood_p": P_EDGES,
}
_NAMED_LIKE: Final = {"ood_domains": "scored_domains", "ood_modalities": "scored_modalities"}


@dataclass
class Window:
    """Sums over the requests of one stretch of time.

    ``counts`` ``[2, layers, experts]`` are expert choices in prompts and in generated text; ``moments``
    ``[2, layers, experts]`` sum the requests' square-root shares and their squares; ``sums`` are numbers by name,
    ``vectors`` arrays by name (histograms as in ``EDGES``, ``entropy`` and ``margin`` per layer), ``tallies`` counts by
    name and value (outcomes, domains).
    """

    layers: int
    experts: int
    requests: int = 0
    routed_requests: int = 0
    counts: NDArray[np.uint64] = field(init=False)
    moments: NDArray[np.float64] = field(init=False)
    sums: dict[str, float] = field(default_factory=dict)
    vectors: dict[str, NDArray[np.float64]] = field(default_factory=dict)
    tallies: dict[str, dict[str, int]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Start from nothing."""
        self.counts = np.zeros((2, self.layers, self.experts), np.uint64)
        self.moments = np.zeros((2, self.layers, self.experts))

    def add_requests(self, requests: Sequence[Joined]) -> None:
        """Add what is known of ``requests`` without their routing; canaries are left to the caller."""
        self.requests += len(requests)
        self._tally("outcomes", [outcome(request) for request in requests])
        self._tally("domains", [r.request.domain for r in requests if r.request is not None and r.request.domain])
        self.sum("frames", sum(_frames(request) for request in requests))
        self.sum("joined", sum(request.complete for request in requests))
        self.sum("images", sum(r.request.images for r in requests if r.request is not None))
        self.sum("with_images", sum(r.request.images > 0 for r in requests if r.request is not None))
        self._add_latency([request for request in requests if request.latency is not None])

    def _add_latency(self, requests: Sequence[Joined]) -> None:
        timed = [request.latency for request in requests if request.latency is not None]
        self.sum("timed", len(timed))
        if not timed:
            return
        for name in ("prompt_tokens", "output_tokens", "cached_tokens", "preemptions", "corrupted", "e2e_s", "queue_s"):
            self.sum(name, float(sum(getattr(latency, name) for latency in timed)))
        tokens = np.array([latency.prompt_tokens for latency in timed])
        self.histogram("prompt_tokens", tokens)
        self.histogram("output_tokens", [latency.output_tokens for latency in timed])
        self.histogram("tpot_s", [latency.tpot_s for latency in timed if latency.output_tokens > 1])
        contexts = np.searchsorted(list(series.CONTEXT_BUCKETS.values()), tokens)
        ttft = np.array([latency.ttft_s for latency in timed])
        for bucket in np.unique(contexts):
            self.histogram(f"ttft_s.{series.CONTEXTS[bucket]}", ttft[contexts == bucket])

    def add_routing(self, batch: Batch) -> None:
        """Add the fingerprints of ``batch``."""
        self.routed_requests += len(batch)
        self.counts[0] += _sum(batch.prompt)
        self.counts[1] += _sum(batch.decode)
        total = batch.total.astype(np.float32)
        part = 1 / np.maximum(np.einsum("nle->nl", total), 1)
        self.moments[1] += np.einsum("nle,nl->le", total, part)
        self.moments[0] += np.einsum("nle,nl->le", np.sqrt(total, out=total), np.sqrt(part))
        self.sum("routed_tokens", float(batch.tokens.sum()))
        for name, values in (("entropy", batch.entropy), ("margin", batch.margin)):
            if values is not None:
                known = np.isfinite(values)
                self._vector(name, np.where(known, values, 0).sum(0, dtype=np.float64))
                self._vector(f"{name}_n", known.sum(0, dtype=np.float64))

    def add_scores(self, p: NDArray[np.floating], flagged: NDArray[np.bool_], requests: Sequence[Joined] = ()) -> None:
        """Add conformal p-values ``[n]`` (nan: too short to score) and which of them are out of distribution.

        With the ``requests`` [n] that they belong to, both are counted by domain tag and modality as well.
        """
        self.sum("scored", float(np.isfinite(p).sum()))
        self.sum("ood", float(flagged.sum()))
        self.histogram("ood_p", p)
        known = [(r.request, out) for r, out, at in zip(requests, flagged, p, strict=False) if np.isfinite(at)]
        tagged = [(asked, out) for asked, out in known if asked is not None]
        for name, labels in (
            ("domains", [asked.domain for asked, _ in tagged]),
            ("modalities", ["image" if asked.images else "text" for asked, _ in tagged]),
        ):
            counted = self._tally(f"scored_{name}", labels)
            self._tally(f"ood_{name}", [label for label, (_, out) in zip(counted, tagged, strict=True) if out])

    def histogram(self, name: str, values: ArrayLike) -> None:
        """Count ``values`` into the histogram ``name`` of ``EDGES``; nan is left out."""
        seen = np.asarray(values, np.float64)
        bins = np.searchsorted(EDGES[name], seen[~np.isnan(seen)])
        self._vector(name, np.bincount(bins, minlength=len(EDGES[name]) + 1).astype(np.float64))

    def sum(self, name: str, value: float) -> None:
        """Add ``value`` to the number ``name``."""
        self.sums[name] = self.sums.get(name, 0.0) + float(value)

    def merge(self, other: Window) -> None:
        """Add ``other``; raise ``ValueError`` when it is of another shape."""
        if (self.layers, self.experts) != (other.layers, other.experts):
            raise ValueError("windows of models of different shapes do not add up")
        self.requests += other.requests
        self.routed_requests += other.routed_requests
        self.counts += other.counts
        self.moments += other.moments
        for name, number in other.sums.items():
            self.sum(name, number)
        for name, vector in other.vectors.items():
            self._vector(name, vector)
        for name in sorted(other.tallies, key=lambda name: name in _NAMED_LIKE):
            mine = self.tallies.setdefault(name, {})
            for value, number in other.tallies[name].items():
                known = self._named(name, value)
                mine[known] = mine.get(known, 0) + number

    def scalars(self) -> dict[str, Any]:
        """Return everything but the two arrays as JSON."""
        vectors = {name: vector.tolist() for name, vector in self.vectors.items()}
        return {"sums": dict(self.sums), "vectors": vectors, "tallies": {k: dict(v) for k, v in self.tallies.items()}}

    def load_scalars(self, scalars: dict[str, Any]) -> None:
        """Take over what ``scalars`` returned."""
        self.sums = dict(scalars.get("sums", {}))
        self.vectors = {name: np.array(vector) for name, vector in scalars.get("vectors", {}).items()}
        self.tallies = {name: dict(tally) for name, tally in scalars.get("tallies", {}).items()}

    def _vector(self, name: str, values: NDArray[np.float64]) -> None:
        before = self.vectors.get(name)
        self.vectors[name] = values.copy() if before is None else before + values

    def _tally(self, name: str, values: Sequence[str]) -> list[str]:
        """Count ``values`` and return the names under which they were counted."""
        tally, names = self.tallies.setdefault(name, {}), []
        for value in values:
            known = self._named(name, value)
            tally[known] = tally.get(known, 0) + 1
            names.append(known)
        return names

    def _named(self, name: str, value: str) -> str:
        """Return what ``value`` is called in the tally ``name``: "other" once there are too many values in it."""
        known = self.tallies.get(_NAMED_LIKE.get(name, name), {})
        return value if value in known or len(known) < MOST_DOMAINS else "other"


def _sum(counts: NDArray[np.uint32]) -> NDArray[np.integer[Any]]:
    """Return the sum over requests; in 32 bits where that holds it, which takes a fifth of the time."""
    fits = len(counts) * int(counts.max(initial=0)) < 2**32
    return np.asarray(counts.sum(0, dtype=np.uint32 if fits else np.uint64))


def _frames(request: Joined) -> int:
    """Return how many frames came of a choice; the HTTP side, which serves all choices of a request, with the first."""
    of_all = request.request is not None and request.choice == 0
    return (request.routing is not None) + (request.latency is not None) + of_all


def outcome(request: Joined) -> str:
    """Return how a request ended, as one of ``metrics.OUTCOMES``."""
    if request.latency is not None and request.latency.finish_reason in series.OUTCOMES:
        return request.latency.finish_reason
    if request.request is not None and request.request.status >= 400:
        return "error"
    if request.routing is not None and request.routing.outcome == "aborted":
        return "abort"
    return "abort" if request.request is not None and request.request.disconnected else "other"


@dataclass
class Clock:
    """Cuts time into windows of ``seconds`` on a grid.

    The first window after a start is a piece, and so are those that lie where the clock was before it was set back:
    no two windows begin at the same time, so none is written over another.
    """

    seconds: float
    start: float = -1.0
    end: float = -1.0
    _latest: float = -1.0  # start of any window so far

    def is_over(self, now: float) -> bool:
        """Say whether the current window, if any, has ended at ``now`` (seconds since the epoch)."""
        return now >= self.end or now < self.start

    def open(self, now: float) -> None:
        """Begin the window that ``now`` is in."""
        grid = now // self.seconds * self.seconds
        is_piece = self._latest < 0 or grid <= self._latest
        self.start = now if is_piece else grid
        self.end = grid + self.seconds
        self._latest = max(self._latest, self.start)
