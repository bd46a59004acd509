"""Files that this user alone can read: what is written of requests goes through here, whatever the umask says.

What ``provision`` writes does not: Prometheus, Alertmanager and Grafana run as users of their own and have to read it.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Literal


def replace(path: Path, text: str) -> None:
    """Put a file with ``text`` in the place of ``path`` at once: readers of an old one with open modes keep that."""
    descriptor, made = tempfile.mkstemp(prefix=f".{path.name[:200]}.", dir=path.parent)  # mode 0600
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8", errors="replace") as file:
            file.write(text)
        Path(made).replace(path)
    except BaseException:
        Path(made).unlink()
        raise


def opened(path: Path, mode: Literal["wb", "ab", "ab+"]) -> IO[bytes]:
    """Return ``path`` opened for writing; a new file gets mode 0600."""
    return open(path, mode, opener=_opener)


def _opener(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


@contextmanager
def umask() -> Iterator[None]:
    """Give new files and folders modes 0600 and 0700 meanwhile, where a library opens them; for the whole process."""
    before = os.umask(0o077)
    try:
        yield
    finally:
        os.umask(before)
