"""Which row of a step belongs to which request and phase, and which rows count: bookkeeping without a device.

A position of a request's text counts once. Positions are counted upwards from the prefix cache's end; a preempted
request that computes positions again stays below its high-water mark until it has caught up.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
_UNLIMITED = np.iinfo(np.int64).max


@dataclass(frozen=True, slots=True)
class Account:
    """What was counted for one request, in tokens; ``batch_sum`` over its ``steps``, in requests."""

    prompt_tokens: int
    prompt_routed: int
    decode_routed: int
    cached: int
    recomputed: int
    steps: int
    batch_sum: int
    batch_max: int


@dataclass(frozen=True, slots=True)
class Step:
    """One executed step: requests in batch order, the position of each one's first token, and how many tokens."""

    order: Sequence[str]
    starts: Mapping[str, int]
    lengths: Mapping[str, int]


class Ledger:
    """Slots for open requests. Slot ``slots`` takes what nobody owns; row ``2 * slot + phase`` is a target of counts."""

    def __init__(self, slots: int) -> None:
        self.slots = slots
        self.nowhere = 2 * slots
        self._slot_of: dict[str, int] = {}
        self._free = list(range(slots))
        self._numbers = np.zeros((10, slots + 1), np.int64)
        (
            self._prompt,
            self._cached,
            self._high,
            self._limit,
            self._prompt_routed,
            self._decode_routed,
            self._recomputed,
            self._steps,
            self._batch_sum,
            self._batch_max,
        ) = self._numbers

    def __len__(self) -> int:
        """Return the number of open requests."""
        return len(self._slot_of)

    def __contains__(self, request: str) -> bool:
        """Say whether ``request`` is open."""
        return request in self._slot_of

    def open(self, request: str, prompt_tokens: int, computed: int) -> bool:
        """Begin ``request`` with ``computed`` positions from a cache; return False when no slot is free.

        One that is open already goes on: it was preempted, or its prompt was continued.
        """
        slot = self._slot_of.get(request)
        if slot is None:
            if not self._free:
                return False
            slot = self._slot_of[request] = self._free.pop()
            self._numbers[:, slot] = 0
            self._cached[slot] = self._high[slot] = computed
            self._limit[slot] = _UNLIMITED
        self._prompt[slot] = prompt_tokens
        return True

    def end_text(self, request: str, output_tokens: int) -> None:
        """Say that the text has ended: its last token is not routed, whatever step was already under way."""
        slot = self._slot_of.get(request)
        if slot is not None:
            self._limit[slot] = self._prompt[slot] + max(output_tokens - 1, 0)

    def close(self, request: str) -> tuple[int, Account] | None:
        """Forget ``request``; return its slot, free again, and its account; None when it had no slot."""
        slot = self._slot_of.pop(request, None)
        if slot is None:
            return None
        self._free.append(slot)
        prompt, cached, _, _, prompt_routed, decode_routed, recomputed, steps, batch_sum, batch_max = self._numbers[
            :, slot
        ].tolist()
        return slot, Account(prompt, prompt_routed, decode_routed, cached, recomputed, steps, batch_sum, batch_max)

    def rows(self, step: Step) -> Ints:
        """Account for ``step``; return for each of its tokens the row that it counts in, or ``nowhere``."""
        slot = np.array([self._slot_of.get(request, self.slots) for request in step.order], np.int64)
        start = np.array([step.starts[request] for request in step.order], np.int64)
        length = np.array([step.lengths[request] for request in step.order], np.int64)
        prompt, high = self._prompt[slot], self._high[slot]
        first, end = np.maximum(start, high), np.minimum(start + length, self._limit[slot])
        self._prompt_routed[slot] += np.maximum(np.minimum(end, prompt) - first, 0)
        self._decode_routed[slot] += np.maximum(end - np.maximum(first, prompt), 0)
        self._recomputed[slot] += np.maximum(np.minimum(start + length, high) - start, 0)
        self._high[slot] = np.maximum(high, end)
        self._steps[slot] += 1
        self._batch_sum[slot] += len(slot)
        self._batch_max[slot] = np.maximum(self._batch_max[slot], len(slot))
        if length.max() > 1:
            position = np.arange(length.sum()) - np.repeat(length.cumsum() - length - start, length)
            slot, prompt, first, end = (np.repeat(values, length) for values in (slot, prompt, first, end))
        else:
            position = start
        counted = (position >= first) & (position < end) & (slot < self.slots)
        return np.where(counted, 2 * slot + (position >= prompt), self.nowhere)
