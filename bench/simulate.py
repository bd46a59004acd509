"""Simulated routing of a 30 x 128 top-8 model: requests are mixtures of topics, tokens of a request are alike.

Every topic has its own distribution over the experts of every layer. A request has one main topic, some of the others,
and a peculiarity of its own in every layer, so that its tokens are strongly correlated: pooled counts vary about a
hundred times more than a multinomial. Sessions (requests in a row by one user), day cycles of topic and length, unseen
topics near and far, and a moved layer are all made from the same parts.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

import numpy as np
from numpy.typing import NDArray

from moe_watch.detect.common.batch import Batch

DAY: Final = 86_400.0
Rng = np.random.Generator


@dataclass(frozen=True)
class World:
    """A model and its traffic; everything follows from ``seed`` and the numbers below."""

    seed: int = 0
    layers: int = 30
    experts: int = 128
    top_k: int = 8
    topics: int = 12
    unseen: int = 8  # topics of each unseen kind
    contrast: float = 1.0  # standard deviation of a topic's log shares
    nearness: tuple[float, float] = (0.88, 0.985)  # correlation of near unseen topics with a known one, first to last
    peculiarity: float = 0.35  # standard deviation of a request's own log shares
    length: float = 5.0  # mean of log tokens
    length_spread: float = 1.2
    shortest: int = 10
    longest: int = 8192
    popular: NDArray[np.float64] = field(init=False)
    shares: dict[str, NDArray[np.float32]] = field(init=False)  # kind -> [topics, layers, experts]

    def __post_init__(self) -> None:
        """Draw the topics."""
        rng = np.random.default_rng(self.seed)
        shape = (self.layers, self.experts)
        base = 0.5 * rng.standard_normal(shape)
        known = rng.standard_normal((self.topics, *shape))
        own = rng.standard_normal((self.unseen, *shape))
        parents = known[np.arange(self.unseen) % self.topics]
        likeness = np.linspace(*self.nearness, self.unseen)[:, None, None]
        near = likeness * parents + np.sqrt(1 - likeness**2) * rng.standard_normal((self.unseen, *shape))
        kinds = {"normal": known, "far": own, "near": near}
        object.__setattr__(self, "popular", rng.dirichlet(np.full(self.topics, 3.0)))
        object.__setattr__(self, "shares", {kind: _softmax(base + self.contrast * own) for kind, own in kinds.items()})

    @classmethod
    def of(cls, shares: NDArray[np.float64], seed: int = 0) -> World:
        """Return the world whose topics have the given shares ``[topics, layers, experts]``; no topic is unseen."""
        topics, layers, experts = shares.shape
        world = cls(seed, layers, experts, topics=topics, unseen=1)
        object.__setattr__(world, "shares", {"normal": shares.astype(np.float32)})
        return world

    def draw(
        self,
        n: int,
        rng: Rng,
        kind: str = "normal",
        *,
        popular: NDArray[np.float64] | None = None,
        tokens: NDArray[np.int64] | int | None = None,
        session: int = 1,
        moved: tuple[int, float] | None = None,
        at: NDArray[np.float64] | None = None,
    ) -> Batch:
        """Return n requests of ``kind``.

        ``popular [topics]`` or ``[n, topics]`` replaces the topics' popularity; ``session`` requests in a row share
        topic and most of their peculiarity; ``moved`` = (layer, share) moves that share of a layer's mass to four
        experts; ``at`` are their times in seconds.
        """
        parts = [
            self._block(min(2000, n - i), rng, kind, _rows(popular, i), _rows(tokens, i), session, moved)
            for i in range(0, n, 2000)
        ]
        prompt, decode = (np.concatenate([p[side] for p in parts]) for side in (0, 1))
        return Batch(prompt, decode, self.top_k, finished_at=np.arange(n, dtype=float) if at is None else at)

    def _block(
        self,
        n: int,
        rng: Rng,
        kind: str,
        popular: NDArray[np.float64] | None,
        tokens: NDArray[np.int64] | int | None,
        session: int,
        moved: tuple[int, float] | None,
    ) -> tuple[NDArray[np.uint32], NDArray[np.uint32]]:
        shares = self._request_shares(n, rng, kind, popular, session)
        if moved is not None:
            layer, part = moved
            shares[:, layer] *= 1 - part
            shares[:, layer, :4] += part / 4
        length = self.lengths(n, rng) if tokens is None else np.broadcast_to(tokens, n)[:n]
        first = rng.binomial(length, rng.beta(2, 2, n))
        shares = shares.astype(np.float64)
        shares /= shares.sum(-1, keepdims=True)
        prompt, decode = (
            rng.multinomial((part * self.top_k)[:, None], shares).astype(np.uint32) for part in (first, length - first)
        )
        return prompt, decode

    def lengths(self, n: int, rng: Rng, shift: NDArray[np.float64] | float = 0.0) -> NDArray[np.int64]:
        """Return n lengths in tokens, log-normal; ``shift`` moves the mean of their logarithm."""
        drawn = np.exp(rng.normal(self.length + shift, self.length_spread, n))
        return np.clip(drawn, self.shortest, self.longest).astype(np.int64)

    def _request_shares(
        self, n: int, rng: Rng, kind: str, popular: NDArray[np.float64] | None, session: int
    ) -> NDArray[np.float32]:
        own = self.shares[kind]
        known = self.shares["normal"]
        sessions = -(-n // session)
        chance = np.broadcast_to(self.popular if popular is None else popular, (n, self.topics))[::session]
        topic = (chance.cumsum(1) < rng.random((sessions, 1)) * chance.sum(1, keepdims=True)).sum(1)
        main = own[rng.integers(0, len(own), sessions)] if kind != "normal" else own[topic]
        weight = rng.beta(8, 1.5, sessions).astype(np.float32)
        others = rng.dirichlet(np.full(self.topics, 0.3), sessions).astype(np.float32)
        side = (others @ known.reshape(self.topics, -1)).reshape(sessions, self.layers, self.experts)
        mixed = weight[:, None, None] * main + (1 - weight)[:, None, None] * side
        shape = (self.layers, self.experts)
        of_session = rng.standard_normal((sessions, *shape), np.float32)
        shared = np.sqrt(0.7) if session > 1 else 0.0
        of_request = rng.standard_normal((n, *shape), np.float32)
        index = np.arange(n) // session
        noise = shared * of_session[index] + np.sqrt(1 - shared**2) * of_request
        return np.asarray(mixed[index] * np.exp(self.peculiarity * noise), np.float32)


def _rows(values: NDArray[np.generic] | int | None, start: int) -> NDArray[np.generic] | int | None:
    """Return what belongs to the block from ``start`` of a value for all requests or for each."""
    if isinstance(values, np.ndarray) and values.ndim and values.shape[0] > 2000:
        return values[start : start + 2000]
    return values


def _softmax(logits: NDArray[np.float64]) -> NDArray[np.float32]:
    exponential = np.exp(logits - logits.max(-1, keepdims=True))
    return np.asarray(exponential / exponential.sum(-1, keepdims=True), np.float32)
