"""Adds requests up into windows of time, one per model and replica; windows merge by addition.

Everything in a window is a sum, so that windows of replicas, hours or pieces of a window after a restart give exactly
what one window over all of their requests would have given.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from moe_watch import wire
from moe_watch.detect.common.batch import Batch
from moe_watch.domain.request import Joined
from moe_watch.domain.window_sums import Sums, Tallies, Vectors, count, histogram
from moe_watch.metrics import series

P_EDGES: Final = (0.0001, 0.001, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
TOKEN_EDGES: Final = tuple(float(2**power) for power in range(4, 18))


@dataclass
class Window:
    """Sums over the requests of one stretch of time.

    ``counts`` ``[2, layers, experts]`` are expert choices in prompts and in generated text; ``moments``
    ``[2, layers, experts]`` sum the requests' square-root shares and their squares.
    """

    layers: int
    experts: int
    requests: int = 0
    routed_requests: int = 0
    counts: NDArray[np.uint64] = field(init=False)
    moments: NDArray[np.float64] = field(init=False)
    sums: Sums = field(default_factory=Sums)
    vectors: Vectors = field(default_factory=Vectors)
    tallies: Tallies = field(default_factory=Tallies)

    def __post_init__(self) -> None:
        """Start from nothing."""
        self.counts = np.zeros((2, self.layers, self.experts), np.uint64)
        self.moments = np.zeros((2, self.layers, self.experts))

    def add_requests(self, requests: Sequence[Joined]) -> None:
        """Add what is known of ``requests`` without their routing; canaries are left to the caller."""
        self.requests += len(requests)
        asked = [request.request for request in requests if request.request is not None]
        count(self.tallies.outcomes, [outcome(request) for request in requests])
        count(self.tallies.domains, [request.domain for request in asked if request.domain])
        self.sums.add(
            Sums(
                frames=sum(_frames(request) for request in requests),
                joined=sum(request.complete for request in requests),
            )
        )
        self._add_latency([request.latency for request in requests if request.latency is not None])

    def _add_latency(self, timed: Sequence[wire.Latency]) -> None:
        if not timed:
            return
        self.sums.add(
            Sums(
                prompt_tokens=sum(latency.prompt_tokens for latency in timed),
                output_tokens=sum(latency.output_tokens for latency in timed),
                preemptions=sum(latency.preemptions for latency in timed),
                corrupted=sum(latency.corrupted for latency in timed),
            )
        )
        tokens = np.array([latency.prompt_tokens for latency in timed])
        contexts = np.searchsorted(list(series.CONTEXT_BUCKETS.values()), tokens)
        ttft = np.array([latency.ttft_s for latency in timed])
        self.vectors.add(
            Vectors(
                prompt_tokens=histogram(tokens, TOKEN_EDGES),
                output_tokens=histogram([latency.output_tokens for latency in timed], TOKEN_EDGES),
                tpot_s=histogram([one.tpot_s for one in timed if one.output_tokens > 1], series.TPOT_BUCKETS),
                ttft_s={
                    series.CONTEXTS[bucket]: histogram(ttft[contexts == bucket], series.TTFT_BUCKETS)
                    for bucket in np.unique(contexts)
                },
            )
        )

    def add_routing(self, batch: Batch) -> None:
        """Add the fingerprints of ``batch``."""
        self.routed_requests += len(batch)
        self.counts[0] += _sum(batch.prompt)
        self.counts[1] += _sum(batch.decode)
        total = batch.total.astype(np.float32)
        part = 1 / np.maximum(np.einsum("nle->nl", total), 1)
        self.moments[1] += np.einsum("nle,nl->le", total, part)
        self.moments[0] += np.einsum("nle,nl->le", np.sqrt(total, out=total), np.sqrt(part))
        if batch.entropy is not None:
            entropy, n = _over_known(batch.entropy)
            self.vectors.add(Vectors(entropy=entropy, entropy_n=n))
        if batch.margin is not None:
            margin, n = _over_known(batch.margin)
            self.vectors.add(Vectors(margin=margin, margin_n=n))

    def add_scores(self, p: NDArray[np.floating], flagged: NDArray[np.bool_], requests: Sequence[Joined] = ()) -> None:
        """Add conformal p-values ``[n]`` (nan: too short to score) and which of them are out of distribution.

        With the ``requests`` [n] that they belong to, both are counted by domain tag and modality as well.
        """
        self.sums.add(Sums(scored=float(np.isfinite(p).sum()), ood=float(flagged.sum())))
        self.vectors.add(Vectors(ood_p=histogram(p, P_EDGES)))
        known = [(r.request, out) for r, out, at in zip(requests, flagged, p, strict=False) if np.isfinite(at)]
        tagged = [(asked, out) for asked, out in known if asked is not None]
        tallies = self.tallies
        for scored, ood, labels in (
            (tallies.scored_domains, tallies.ood_domains, [asked.domain for asked, _ in tagged]),
            (
                tallies.scored_modalities,
                tallies.ood_modalities,
                ["image" if asked.images else "text" for asked, _ in tagged],
            ),
        ):
            counted = count(scored, labels)
            count(ood, [label for label, (_, out) in zip(counted, tagged, strict=True) if out])

    def merge(self, other: Window) -> None:
        """Add ``other``; raise ``ValueError`` when it is of another shape."""
        if (self.layers, self.experts) != (other.layers, other.experts):
            raise ValueError("windows of models of different shapes do not add up")
        self.requests += other.requests
        self.routed_requests += other.routed_requests
        self.counts += other.counts
        self.moments += other.moments
        self.sums.add(other.sums)
        self.vectors.add(other.vectors)
        self.tallies.add(other.tallies)

    def scalars(self) -> dict[str, Any]:
        """Return everything but the two arrays as JSON."""
        return {
            "sums": self.sums.as_json(),
            "vectors": self.vectors.as_json(),
            "tallies": self.tallies.as_json(),
        }

    def load_scalars(self, scalars: dict[str, Any]) -> None:
        """Take over what ``scalars`` returned, of this version or another."""
        self.sums = Sums.from_json(scalars.get("sums", {}))
        self.vectors = Vectors.from_json(scalars.get("vectors", {}))
        self.tallies = Tallies.from_json(scalars.get("tallies", {}))


def _over_known(values: NDArray[np.floating]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the sum of ``values [n, layers]`` per layer, and over how many requests; nan counts as neither."""
    known = np.isfinite(values)
    return np.where(known, values, 0).sum(0, dtype=np.float64), known.sum(0, dtype=np.float64)


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
