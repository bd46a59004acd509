"""A simulated engine that routes canary prompts, with the noise of a healthy one and with faults on request."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from moe_watch.detect.canary.replay import Replay, Round

OUTPUT = 4


@dataclass(frozen=True)
class Fault:
    """Share of tokens that steadily get another last expert in ``layers``; ``nats`` taken from every token."""

    share: float = 0.0
    layers: tuple[int, ...] = ()
    nats: float = 0.0
    loads: tuple[str, ...] = ("1", "16")


HEALTHY = Fault()


@dataclass
class World:
    """n prompts whose tokens choose ``top_k`` of ``experts`` in each layer; a round flips ``noise`` of the choices.

    ``spread`` is the log-normal spread of the noise from round to round, which all prompts of a round share.
    """

    seed: int = 0
    n: int = 40
    layers: int = 4
    experts: int = 8
    top_k: int = 2
    noise: float = 0.02
    spread: float = 0.0
    tokens: NDArray[np.int64] = field(init=False)

    def __post_init__(self) -> None:
        """Draw the prompts."""
        self.random = np.random.default_rng(self.seed)
        self.tokens = self.random.integers(12, 40, self.n)
        self.owner = np.repeat(np.arange(self.n), self.tokens)
        scores = self.random.gumbel(size=(len(self.owner), self.layers, self.experts))
        scores += 2 * self.random.normal(size=(self.n, self.layers, self.experts))[self.owner]
        self.ids = np.argsort(-scores, axis=2)[:, :, : self.top_k]
        self.logprob = -self.random.exponential(2, (self.n, int(self.tokens.max()))).astype(np.float32)
        self.steady = np.random.default_rng(self.seed + 1)
        self.order = self.steady.random((len(self.owner), self.layers))
        self.other = (self.ids[:, :, -1] + self._step(self.steady)) % self.experts

    def _step(self, random: np.random.Generator) -> NDArray[np.int64]:
        """Draw how far another expert is from the one that was chosen, ``[tokens, layers]``."""
        return random.integers(1, self.experts, size=(len(self.owner), self.layers))

    def replay(self, load: str, fault: Fault = HEALTHY) -> Replay:
        """Replay once."""
        ids = self.ids.copy()
        share = self.noise * np.exp(self.spread * self.random.normal())
        flipped = self.random.random(self.order.shape) < share
        drawn = (self.ids[:, :, -1] + self._step(self.random)) % self.experts
        ids[:, :, -1] = np.where(flipped, drawn, ids[:, :, -1])
        active = load in fault.loads
        for layer in fault.layers if active else ():
            hit = self.order[:, layer] < fault.share
            ids[hit, layer, -1] = self.other[hit, layer]
        scored = np.arange(self.logprob.shape[1]) < self.tokens[:, None]
        lost = fault.nats if active else 0.0
        jitter = self.random.normal(0, 0.01 * bool(self.noise), self.logprob.shape)
        prompt_logprob = np.where(scored, self.logprob + jitter - lost, np.nan).astype(np.float32)
        return Replay(
            load=load,
            top_k=self.top_k,
            prompt=self._counts(ids),
            decode=np.ones((self.n, self.layers, self.experts), np.uint32),
            prompt_tokens=self.tokens.copy(),
            prompt_digest=np.arange(1, self.n + 1, dtype=np.uint64),
            output=np.zeros((self.n, OUTPUT), np.int32),
            prompt_logprob=prompt_logprob,
            output_logprob=np.full((self.n, OUTPUT), -1.0, np.float32),
        )

    def _counts(self, ids: NDArray[np.int64]) -> NDArray[np.uint32]:
        counts = np.zeros((self.n, self.layers, self.experts), np.uint32)
        owner = np.broadcast_to(self.owner[:, None, None], ids.shape)
        layer = np.broadcast_to(np.arange(self.layers)[None, :, None], ids.shape)
        np.add.at(counts, (owner, layer, ids), 1)
        return counts

    def round(self, fault: Fault = HEALTHY, loads: Sequence[str] = ("1",)) -> Round:
        """Return one round at ``loads``."""
        return Round(tuple(self.replay(load, fault) for load in loads))

    def reference(self, rounds: int = 8, loads: Sequence[str] = ("1",)) -> list[Round]:
        """Return healthy rounds."""
        return [self.round(loads=loads) for _ in range(rounds)]
