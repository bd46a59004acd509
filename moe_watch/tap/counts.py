"""Counts per request, phase, layer and expert, kept on the device until a request finishes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from moe_watch.tap.ledger import Ints

Fetch = Callable[[], NDArray[np.int32]]


@dataclass(frozen=True, slots=True)
class Shape:
    """Layers with experts, experts of each, experts chosen per token."""

    layers: int
    experts: int
    top_k: int


class Counts:
    """``[2 * slots + 2, layers, experts + 2]`` int32; the first and last expert take ids that are out of range."""

    def __init__(self, slots: int, shape: Shape, device: torch.device) -> None:
        self.shape = shape
        self.device = device
        self._row = shape.layers * (shape.experts + 2)
        self._flat = torch.zeros((2 * slots + 2) * self._row, dtype=torch.int32, device=device)
        self._slots = self._flat.view(slots + 1, 2, shape.layers, shape.experts + 2)
        first = torch.arange(shape.layers, device=device) * (shape.experts + 2) + 1
        self._first = first.view(-1, 1, 1)
        self._one = torch.ones((), dtype=torch.int32, device=device)

    def add(self, ids: torch.Tensor, rows: Ints) -> None:
        """Count ``ids`` [layers, tokens, top_k] in ``rows`` [tokens] of the table."""
        place = self._first + self._to_device(rows * self._row).view(1, -1, 1)
        place = place + ids.clamp(-1, self.shape.experts)
        self._flat.scatter_add_(0, place.view(-1), self._one.expand(place.numel()))

    def take(self, slot: int) -> Fetch:
        """Empty ``slot``; return a function that waits for its counts ``[2, layers, experts + 2]`` on the host."""
        counts = self._slots[slot].clone()
        self._slots[slot].zero_()
        return counts.numpy

    def _to_device(self, values: Ints) -> torch.Tensor:
        return torch.from_numpy(values)
