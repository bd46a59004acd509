"""Keeps what runs beside the pipeline running: what fails is told and started again."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Final

import structlog

from moe_watch.metrics import series
from moe_watch.metrics.board import Board

_FIRST_PAUSE_S: Final = 1.0
_LONGEST_PAUSE_S: Final = 60.0

_log = structlog.get_logger()


async def keep(
    name: str,
    work: Callable[[], Coroutine[Any, Any, None]],
    board: Board,
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    clock: Callable[[], float] = time.monotonic,
) -> None:
    """Run ``work`` until it returns, which it does where it is switched off; after a failure start it again, later."""
    board.add(series.PART_FAILURES, 0, name)
    pause = _FIRST_PAUSE_S
    while True:
        began = clock()
        try:
            await work()
        except Exception:  # noqa: BLE001 - whatever it is, the pipeline goes on, and so does this
            _log.exception("a part beside the pipeline failed and is started again", part=name, pause_s=pause)
            board.add(series.PART_FAILURES, 1, name)
        else:
            return
        if clock() - began > _LONGEST_PAUSE_S:  # it was well for long: this is another failure
            pause = _FIRST_PAUSE_S
        await sleep(pause)
        pause = min(2 * pause, _LONGEST_PAUSE_S)
