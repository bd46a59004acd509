"""Which token of a step belongs to which request and phase, and which ones count: bookkeeping without a device.

A position of a request's text counts once. Positions count upwards from where the prefix cache ends; a preempted
request that computes positions again counts none of them until it is past its high-water mark.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import repeat

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
_UNLIMITED = np.iinfo(np.int64).max
_FAR = 1 << 40  # farther apart than any two positions of one request


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
    measured: int = 0  # prompt positions whose confidence was measured


@dataclass(frozen=True, slots=True)
class Tokens:
    """For each token of the settled steps, in their order: the row that it counts in, its position, its slot."""

    row: Ints  # 2 * slot + (1 in decode), or ``Ledger.nowhere``
    position: Ints
    slot: Ints


class Ledger:
    """Slots of open requests; slot number ``slots`` stands for requests that have none."""

    def __init__(self, slots: int) -> None:
        self.slots = slots
        self.nowhere = 2 * slots
        self.steps = 0
        self._slot_of: dict[str, int] = {}
        self._free = list(range(slots))
        self._visits: tuple[list[int], list[int], list[int]] = (
            [],
            [],
            [],
        )  # slot, first position, tokens
        self._batches: list[int] = []
        self._numbers = np.zeros((11, slots + 1), np.int64)
        (
            self._prompt,
            self._prompt_routed,
            self._decode_routed,
            self._cached,
            self._recomputed,
            self._steps,
            self._batch_sum,
            self._batch_max,
            self._measured,
            self._high,
            self._limit,
        ) = self._numbers

    def __len__(self) -> int:
        """Return the number of open requests."""
        return len(self._slot_of)

    def __contains__(self, request: object) -> bool:
        """Say whether ``request`` is open."""
        return request in self._slot_of

    def is_full(self) -> bool:
        """Say whether no slot is free."""
        return not self._free

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

    def visit(
        self,
        order: Sequence[str],
        starts: Mapping[str, int],
        lengths: Mapping[str, int],
    ) -> None:
        """Note a step that computed ``lengths`` tokens of each request from position ``starts`` on, in this order."""
        slot, first, tokens = self._visits
        slot += map(self._slot_of.get, order, repeat(self.slots))
        first += map(starts.__getitem__, order)
        tokens += map(lengths.__getitem__, order)
        self._batches.append(len(order))
        self.steps += 1

    def end_text(self, request: str, output_tokens: int) -> None:
        """Say that the text has ended: its last token is not routed, whatever step was already under way."""
        slot = self._slot_of.get(request)
        if slot is not None:
            self._limit[slot] = self._prompt[slot] + max(output_tokens - 1, 0)

    def settle(self) -> Tokens:
        """Account for the noted steps and forget them."""
        slot, start, length = (np.array(values, np.int64) for values in self._visits)
        batch = np.repeat(np.array(self._batches, np.int64), self._batches)
        self._visits, self._batches, self.steps = ([], [], []), [], 0
        first = np.maximum(start, self._raise_high_water(slot, start + length))
        end = np.minimum(start + length, self._limit[slot])
        prompt = self._prompt[slot]
        self._add(self._prompt_routed, slot, np.maximum(np.minimum(end, prompt) - first, 0))
        self._add(self._decode_routed, slot, np.maximum(end - np.maximum(first, prompt), 0))
        self._add(self._recomputed, slot, np.minimum(first - start, length))
        self._add(self._steps, slot, np.ones_like(slot))
        self._add(self._batch_sum, slot, batch)
        np.maximum.at(self._batch_max, slot, batch)
        position = np.arange(length.sum()) - np.repeat(length.cumsum() - length - start, length)
        slot, prompt, first, end = (np.repeat(values, length) for values in (slot, prompt, first, end))
        counted = (position >= first) & (position < end) & (slot < self.slots)
        return Tokens(
            np.where(counted, 2 * slot + (position >= prompt), self.nowhere),
            position,
            slot,
        )

    def close(self, request: str) -> tuple[int, Account] | None:
        """Forget ``request``; return its slot, free again, and its account; None when it had no slot."""
        slot = self._slot_of.pop(request, None)
        if slot is None:
            return None
        self._free.append(slot)
        return slot, Account(*self._numbers[:9, slot].tolist())

    def note_measured(self, slot: Ints) -> None:
        """Count a measured prompt position for each of ``slot`` [n]."""
        self._add(self._measured, slot, np.ones_like(slot))

    def prompts(self, slot: Ints) -> Ints:
        """Return the tokens in the prompts of ``slot`` [n]."""
        return self._prompt[slot]

    def _raise_high_water(self, slot: Ints, end: Ints) -> Ints:
        """Return the high-water mark before each visit, in positions, and keep the last one of each slot."""
        by_slot = np.argsort(slot, kind="stable")
        slots = slot[by_slot]
        mark = np.maximum.accumulate(np.maximum(end[by_slot], self._high[slots]) + slots * _FAR) - slots * _FAR
        before = np.empty_like(mark)
        before[by_slot] = np.where(
            np.diff(slots, prepend=-1) == 0,
            np.concatenate(([0], mark[:-1])),
            self._high[slots],
        )
        np.maximum.at(self._high, slots, mark)
        return before

    def _add(self, to: Ints, slot: Ints, values: Ints) -> None:
        to += np.bincount(slot, values, self.slots + 1).astype(np.int64)
