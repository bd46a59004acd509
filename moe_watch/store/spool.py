"""Batches that wait on disk while the store is away: bounded, replayed in order.

Segment files of records, each ``length, crc32, payload`` (both little-endian uint32). A segment goes when all of it was
written to the store; one that is read again after a crash does no harm, since every row has a unique key. A record cut
off by a crash ends its segment.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import struct
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Final

from moe_watch.domain import private_files
from moe_watch.settings import Settings
from moe_watch.store.engine import sqlite_path

_HEADER: Final = struct.Struct("<II")
_SEGMENT_BYTES: Final = 16 << 20


class SpoolFullError(RuntimeError):
    """The spool is at its bound, or the disk is full."""


class Spool:
    """A queue of byte strings in ``folder``, of at most ``most_bytes`` on disk; raises ``OSError`` if it cannot be."""

    def __init__(self, folder: Path, most_bytes: int, segment_bytes: int = _SEGMENT_BYTES) -> None:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._lock = private_files.opened(folder / "lock", "ab")
        fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        self._folder, self._most, self._segment_bytes = folder, most_bytes, segment_bytes
        self._segments = sorted(folder.glob("*.spool"))
        self._sizes = {path: path.stat().st_size for path in self._segments}
        self._number = int(self._segments[-1].stem) if self._segments else 0
        self._out: IO[bytes] | None = None  # a new process begins a new segment: the old tail may be cut off
        self._read_at = 0  # in the oldest segment
        self.torn = 0  # records that were cut off or damaged

    @property
    def size(self) -> int:
        """Return the size on disk."""
        return sum(self._sizes.values())

    def __bool__(self) -> bool:
        """Say whether anything waits."""
        return bool(self._segments)

    def append(self, payload: bytes) -> None:
        """Put ``payload`` at the end; raise ``SpoolFullError`` when it does not fit."""
        record = _record(payload)
        if self.size + len(record) > self._most:
            raise SpoolFullError(f"the spool holds {self.size} of at most {self._most} bytes")
        try:
            out = self._tail()
            out.write(record)
            out.flush()
        except OSError as error:
            self._close_tail()
            raise SpoolFullError(f"the spool cannot be written: {error.strerror}") from error
        self._sizes[self._segments[-1]] += len(record)

    def peek(self) -> bytes | None:
        """Return the oldest payload that waits, or None; the same again until ``pop``."""
        while self._segments:
            payload = self._next(self._segments[0])
            if payload is not None:
                return payload
            if not self._drop_oldest():
                return None
        return None

    def pop(self) -> None:
        """Forget what ``peek`` returned."""
        payload = self.peek()
        if payload is None:
            return
        self._read_at += _HEADER.size + len(payload)
        if self._read_at >= self._sizes[self._segments[0]]:
            self._drop_oldest()

    def payloads(self) -> Iterator[bytes]:
        """Yield everything that waits without forgetting it."""
        for path in self._segments:
            yield from _whole(path.read_bytes())

    def rewrite(self, change: Callable[[bytes], bytes]) -> None:
        """Put ``change(payload)`` in the place of everything that waits; what is damaged goes. Before any ``peek``."""
        for path in self._segments:
            records = b"".join(_record(change(payload)) for payload in _whole(path.read_bytes()))
            part = path.with_suffix(".part")
            with private_files.opened(part, "wb") as file:
                file.write(records)
                file.flush()
                os.fsync(file.fileno())
            part.replace(path)
            self._sizes[path] = len(records)

    def close(self) -> None:
        """Let another process have the folder."""
        self._close_tail()
        self._lock.close()

    def _tail(self) -> IO[bytes]:
        full = bool(self._segments) and self._sizes[self._segments[-1]] >= self._segment_bytes
        if self._out is None or full:
            self._close_tail()
            self._number += 1
            path = self._folder / f"{self._number:012d}.spool"
            self._out = private_files.opened(path, "wb")
            self._segments.append(path)
            self._sizes[path] = 0
        return self._out

    def _next(self, path: Path) -> bytes | None:
        with path.open("rb") as file:
            file.seek(self._read_at)
            header = file.read(_HEADER.size)
            if len(header) < _HEADER.size:
                self.torn += bool(header)
                return None
            payload = file.read(_HEADER.unpack(header)[0])
        whole = _parse(header + payload, 0)
        self.torn += whole is None
        return whole

    def _drop_oldest(self) -> bool:
        """Delete the oldest segment, which is read or damaged; return whether another is left."""
        path = self._segments.pop(0)
        if not self._segments:
            self._close_tail()
        path.unlink(missing_ok=True)
        del self._sizes[path]
        self._read_at = 0
        return bool(self._segments)

    def _close_tail(self) -> None:
        if self._out is not None:
            with contextlib.suppress(OSError):  # closing tries once more to write what a full disk refused
                self._out.close()
            self._out = None


def waiting(folder: Path) -> Iterator[bytes]:
    """Yield what waits in the spool of another process, and what it has taken of its oldest segment."""
    for path in sorted(folder.glob("*.spool")):
        with contextlib.suppress(FileNotFoundError):  # taken meanwhile
            yield from _whole(path.read_bytes())


def _record(payload: bytes) -> bytes:
    return _HEADER.pack(len(payload), zlib.crc32(payload)) + payload


def _whole(raw: bytes) -> Iterator[bytes]:
    """Yield the payloads of a segment up to where it is cut off or damaged."""
    at = 0
    while (payload := _parse(raw, at)) is not None:
        at += _HEADER.size + len(payload)
        yield payload


def _parse(raw: bytes, at: int) -> bytes | None:
    """Return the payload of the record at ``at``; None when it is cut off or damaged."""
    if len(raw) < at + _HEADER.size:
        return None
    length, checksum = _HEADER.unpack_from(raw, at)
    payload = raw[at + _HEADER.size : at + _HEADER.size + length]
    return payload if len(payload) == length and zlib.crc32(payload) == checksum else None


def spool_folder(settings: Settings) -> Path:
    """Return where batches wait: as set, else beside the SQLite file."""
    path = sqlite_path(settings.store.url)
    return settings.spool_dir or (path.with_name(path.name + ".spool") if path else Path("moe-watch.spool"))
