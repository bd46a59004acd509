"""Whose the folder of a unix socket is: who can put a socket there gets the frames that taps send, and sampled text.

Used on both sides; like ``wire`` it needs nothing but Python.
"""

from __future__ import annotations

import os
import stat
from itertools import pairwise
from pathlib import Path
from typing import Final

REMEDY: Final = (
    "another user could take the frames: remove it, or set MOE_WATCH_ENDPOINT, for vLLM and for moe-watch, to a socket "
    "in a folder of your own"
)


def folder_of(endpoint: str) -> Path:
    """Return the folder of the socket at an ``ipc://`` endpoint."""
    return Path(endpoint.removeprefix("ipc://")).absolute().parent


def planted(folder: Path) -> str:
    """Return why another user may have made ``folder`` or may fill it; nothing when none can.

    Looked at are those folders on the way that lie where everybody may make one, such as below /tmp.
    """
    for way in (folder, folder.resolve()):
        for step, above in pairwise((way, *way.parents)):
            if _is_open(above) and (why := _foreign(step)):
                return why
    return ""


def shared(folder: Path) -> str:
    """Return why other users can put sockets into ``folder``, if so; a mounted volume is shared on purpose."""
    if not _is_open(folder) or os.path.ismount(folder):
        return ""
    return f"{folder} is open to every user (mode {stat.S_IMODE(folder.stat().st_mode):o})"


def _is_open(folder: Path) -> bool:
    """Say whether everybody may make something in ``folder``."""
    try:
        return bool(folder.stat().st_mode & stat.S_IWOTH)
    except OSError:
        return False


def _foreign(folder: Path) -> str:
    """Return why ``folder`` itself is not to be trusted; one that is not there yet is."""
    try:
        found = folder.lstat()
    except OSError:
        return ""
    if not stat.S_ISDIR(found.st_mode):
        return f"{folder} is no folder but a link or a file"
    if found.st_uid not in {0, os.geteuid()}:
        return f"{folder} belongs to user {found.st_uid}, and this is user {os.geteuid()}"
    if found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        return f"{folder} can be written by others (mode {stat.S_IMODE(found.st_mode):o})"
    return ""
