"""Servers of other model families, of compiled code, and without the tap; two at a time are started at once."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from demo import shapes
from tests.real.support.vllm_server import MIDDLEWARE, Tapped, VllmServer, tapped

# So small a queue that it overflows in a test; and a way to look into the server's processes.
SMALL_QUEUE = {"MOE_WATCH_QUEUE_FRAMES": "100"}
INSIDE = (
    "--worker-extension-cls",
    "tests.real.support.inside.Extension",
    "--middleware",
    "tests.real.support.inside.Door",
)


@dataclass(frozen=True)
class Mixtral:
    """Mixtral (8 experts, top-2) with random weights: with the tap on, and with it installed and off."""

    tapped: Tapped
    off: VllmServer
    path: Path


@dataclass(frozen=True)
class Others:
    """Qwen3-MoE (320 experts, top-8) with random weights, and the tiny MoE compiled."""

    qwen3: Tapped
    compiled: Tapped
    path: Path


@contextlib.contextmanager
def serving_mixtral(work: Path, args: Sequence[str]) -> Iterator[Mixtral]:
    """Make weights in ``work`` and serve them twice."""
    path = shapes.make("mixtral", work / "weights")
    on = tapped(path, work / "on", *args, *INSIDE, env=SMALL_QUEUE)
    with _both(on, _untapped(path, work, args)) as servers:
        yield Mixtral(*servers, path)


@contextlib.contextmanager
def serving_others(work: Path, moe: Path, args: Sequence[str]) -> Iterator[Others]:
    """Make the weights of Qwen3-MoE in ``work`` and serve both."""
    path = shapes.make("many-experts", work / "weights")
    qwen3 = tapped(path, work / "qwen3", *args)
    compiled = tapped(moe, work / "compiled", *args, *INSIDE, "--no-enforce-eager")
    with _both(qwen3, compiled) as servers:
        yield Others(*servers, path)


@contextlib.contextmanager
def _untapped(model: Path, work: Path, args: Sequence[str]) -> Iterator[VllmServer]:
    told = {"PYTHONPROFILEIMPORTTIME": "1"}  # every process logs what it imports
    server = VllmServer.start(model, work, name="off", args=[*MIDDLEWARE, *args, *INSIDE], env=told)
    try:
        yield server
    finally:
        server.stop()


@contextlib.contextmanager
def _both(
    one: contextlib.AbstractContextManager[Tapped], other: contextlib.AbstractContextManager[Any]
) -> Iterator[tuple[Tapped, Any]]:
    """Enter two at once."""
    with contextlib.ExitStack() as stack, ThreadPoolExecutor(1) as pool:
        entering = pool.submit(other.__enter__)
        try:
            first = stack.enter_context(one)
        finally:
            second = entering.result()
            stack.push(other.__exit__)
        yield first, second
