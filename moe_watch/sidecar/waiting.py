"""Finished requests and notes that wait to be judged, in bounded memory: a wrong sender is faster than the monitors."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from moe_watch import wire
from moe_watch.domain import memory
from moe_watch.domain.request import Joined

Note = wire.Model | wire.Health | wire.Event


@dataclass
class Batch:
    """What is judged at once."""

    joined: list[Joined] = field(default_factory=list)
    notes: list[Note] = field(default_factory=list)
    size: int = 0

    def __bool__(self) -> bool:
        """Say whether there is anything in it."""
        return bool(self.joined or self.notes)


@dataclass
class Waiting:
    """Finished requests and notes; what does not fit into ``most`` bytes is dropped and counted.

    Notes have a quarter for themselves: a tap must be heard, whatever else comes.
    """

    most: int
    refused: Counter[str] = field(default_factory=Counter)
    _batch: Batch = field(default_factory=Batch)
    _notes: int = 0
    _judged: int = 0

    def put(self, joined: Sequence[Joined], frames: Iterable[wire.AnyFrame] = ()) -> None:
        """Take in what has finished, and the notes among ``frames``."""
        for one in joined:
            size = one.size
            if self._batch.size + self._judged + size > self.most * 3 // 4:
                self.refused["memory"] += 1
                continue
            self._batch.joined.append(one)
            self._batch.size += size
        for frame in frames:
            if isinstance(frame, Note):
                self._put_note(frame)

    def _put_note(self, note: Note) -> None:
        size = memory.weigh(note)
        if self._notes + size > self.most // 4:
            self.refused["memory"] += 1
            return
        self._batch.notes.append(note)
        self._notes += size

    def take(self) -> Batch:
        """Return all that waits; it counts until it is ``done``."""
        taken, self._batch, self._notes = self._batch, Batch(), 0
        self._judged += taken.size
        return taken

    def done(self, batch: Batch) -> None:
        """Take note that ``batch`` was judged."""
        self._judged -= batch.size
