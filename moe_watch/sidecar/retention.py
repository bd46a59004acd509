"""Keeps the store within its retention while the sidecar runs."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Final

import structlog
from sqlalchemy import Engine
from sqlalchemy.exc import SQLAlchemyError

from moe_watch.settings import Settings
from moe_watch.store.lifecycle.prune import prune

_EVERY_S: Final = 900.0
_log = structlog.get_logger()


async def run(
    settings: Settings,
    store: Engine,
    clock: Callable[[], float] = time.time,
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
) -> None:
    """Prune now and then until cancelled; a store that is away is tried again."""
    while True:
        try:
            pruned = await asyncio.to_thread(prune, store, settings.store, clock())
            _log.debug("pruned", **vars(pruned))
        except (SQLAlchemyError, ValueError) as error:  # a window that cannot be read must not end all pruning
            _log.warning("pruning failed, will be tried again", error=str(error))
        await sleep(_EVERY_S)
