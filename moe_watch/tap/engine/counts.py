"""Sums per request that stay on the device until the request finishes: counts of experts, and confidence."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from moe_watch.tap.engine.ledger import Ints

_TOGETHER: Final = {"cpu": 1 << 16, "cuda": 1 << 25}  # logits looked at together: a cache's worth; a bound on memory


class Sums(NamedTuple):
    """What one slot held."""

    counts: NDArray[np.int32]  # [2, layers, experts + 2]: prompt and decode; the outer experts are ids out of range
    confidence: NDArray[np.float32] | None  # [layers, 2]: sums of entropy and margin


Fetch = Callable[[], Sums]  # waits until the sums are on the host


@dataclass(frozen=True, slots=True)
class Shape:
    """Layers with experts, experts of each, experts chosen per token."""

    layers: int
    experts: int
    top_k: int


def confidence(logits: torch.Tensor) -> torch.Tensor:
    """Return entropy (nats) and top-1 minus top-2 probability [tokens, layers, 2] of the softmax of ``logits``.

    ``logits`` is [layers, tokens, experts]; what is infinite or not a number gives what is not a number. With experts
    outermost every reduction is one pass over long vectors, which on a CPU takes a third of what rows of 16 take.
    """
    by_expert = logits.permute(2, 1, 0).contiguous().float()
    most, which = by_expert.max(0)
    below = (by_expert - most).clamp_(min=-80)  # exp(-80) is nothing, and -inf times nothing is not
    share = below.exp()
    total = share.sum(0)
    entropy = total.log() - below.mul_(share).sum(0) / total
    share.scatter_(0, which.unsqueeze(0), 0)
    return torch.stack((entropy, (1 - share.amax(0)) / total), -1)


class Counts:
    """``[slots + 1, 2, layers, experts + 2]`` int32, ``[slots + 1, layers, 2]`` float32; the last slot has no owner."""

    def __init__(self, slots: int, shape: Shape, device: torch.device) -> None:
        self.shape = shape
        self.device = device
        self._row = shape.layers * (shape.experts + 2)
        self._flat = torch.zeros((2 * slots + 2) * self._row, dtype=torch.int32, device=device)
        self._slots = self._flat.view(slots + 1, 2, shape.layers, shape.experts + 2)
        self._confidence = torch.zeros((slots + 1, shape.layers, 2), device=device)
        self._layers = (torch.arange(shape.layers, device=device) * (shape.experts + 2) + 1).view(-1, 1, 1)
        self._one = torch.ones((), dtype=torch.int32, device=device)
        self._copies = torch.cuda.Stream(device) if device.type == "cuda" else None

    def add(self, ids: torch.Tensor, rows: Ints) -> None:
        """Count ``ids`` [layers, tokens, top_k] in ``rows`` [tokens]: 2 * slot + phase."""
        place = self._layers + self._there(rows * self._row).view(1, -1, 1)
        place = place + ids.clamp(-1, self.shape.experts)
        self._flat.scatter_add_(0, place.view(-1), self._one.expand(place.numel()))

    def add_confidence(self, logits: torch.Tensor, tokens: Ints, slots: Ints) -> None:
        """Sum entropy (nats) and top-1 minus top-2 probability of ``logits`` [layers, *, experts] at ``tokens`` [n]."""
        where, to = self._there(tokens), self._there(slots)
        rows = max(_TOGETHER[self.device.type] // (self.shape.layers * self.shape.experts), 1)
        for at, slot in zip(where.split(rows), to.split(rows), strict=True):
            self._confidence.index_add_(0, slot, confidence(logits.index_select(1, at)))

    def take(self, slot: int, *, with_confidence: bool) -> Fetch:
        """Empty ``slot``; return a function that waits for what it held."""
        held = [self._slots[slot], self._confidence[slot]] if with_confidence else [self._slots[slot]]
        copies = [values.clone() for values in held]
        for values in held:
            values.zero_()
        ready = self._leave(copies)

        def fetch() -> Sums:
            arrays = [values.numpy() for values in ready()]
            return Sums(arrays[0], arrays[1] if with_confidence else None)

        return fetch

    def _there(self, values: Ints) -> torch.Tensor:
        """Return ``values`` on the device; never waits for it."""
        here = torch.from_numpy(values)
        return here if self._copies is None else here.pin_memory().to(self.device, non_blocking=True)

    def _leave(self, values: list[torch.Tensor]) -> Callable[[], list[torch.Tensor]]:
        """Begin to copy ``values`` to the host behind the work under way; return the wait for it."""
        if self._copies is None:
            return lambda: values
        here = [torch.empty_like(value, device="cpu", pin_memory=True) for value in values]
        self._copies.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(self._copies):
            for source, target in zip(values, here, strict=True):
                target.copy_(source, non_blocking=True)
                source.record_stream(self._copies)
            done = self._copies.record_event()

        def wait() -> list[torch.Tensor]:
            done.synchronize()
            return here

        return wait
