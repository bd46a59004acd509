"""A short, bounded load on two OpenAI-compatible servers: the same prompts, in turns, at equal concurrency.

Turns alternate (MoE, dense, dense, MoE, ...), so that drift of a shared machine falls on both and neither disturbs the
other. Every prompt begins differently, so that no prefix cache helps.
"""

from __future__ import annotations

import asyncio
import itertools
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import httpx
import numpy as np

from moe_watch.detect.common.weighted_estimates import Estimate
from moe_watch.detect.quality.advantage import rounds as ratio_of_rounds
from moe_watch.servers import client
from moe_watch.servers.client import ServerError, shaped

_STORY = (
    "the report says that a small team moved its service to new machines last spring and wrote down what went well "
    "what was slow and what nobody had expected so that the next move takes less time than this one did"
)
WORDS = _STORY.split()


@dataclass(frozen=True)
class Target:
    """One server; ``http`` has its base URL and token."""

    name: str
    http: httpx.AsyncClient
    model: str


@dataclass(frozen=True)
class Turn:
    """One round on one server: generated tokens over wall time, and the median time to first token."""

    tokens_per_s: float
    ttft_s: float
    requests: int


@dataclass(frozen=True)
class Level:
    """Both servers at one concurrency; ``ratio`` above 1 says that the MoE pays."""

    concurrency: int
    moe: tuple[Turn, ...]
    dense: tuple[Turn, ...]

    @property
    def ratio(self) -> Estimate:
        """MoE over dense tokens per second, over the paired rounds."""
        return ratio_of_rounds(
            np.array([turn.tokens_per_s for turn in self.moe]), np.array([turn.tokens_per_s for turn in self.dense])
        )


def prompts(words: int) -> Iterator[str]:
    """Yield prompts of about ``words`` words without end, each with a beginning of its own."""
    for number in itertools.count():
        body = itertools.islice(itertools.cycle(WORDS[number % len(WORDS) :] + WORDS), words)
        yield f"Note {number}: {' '.join(body)}. Go on with it."


async def side_by_side(
    moe: Target,
    dense: Target,
    texts: Iterator[str],
    *,
    levels: Sequence[int] = (1, 4, 16, 64),
    rounds: int = 4,
    requests: Callable[[int], int] = lambda concurrency: max(8, 2 * concurrency),
    max_tokens: int = 64,
) -> list[Level]:
    """Load both at each concurrency and return what they did; raises ``ServerError``."""
    found = []
    for concurrency in levels:
        turns: dict[str, list[Turn]] = {moe.name: [], dense.name: []}
        for place in range(rounds + 1):  # the first is to warm up and is not counted
            taken = list(itertools.islice(texts, requests(concurrency)))
            for target in (moe, dense) if place % 2 else (dense, moe):
                turn = await load(target, taken, concurrency, max_tokens)
                turns[target.name] += [turn] if place else []
        found.append(Level(concurrency, tuple(turns[moe.name]), tuple(turns[dense.name])))
    return found


async def load(target: Target, texts: Sequence[str], concurrency: int, max_tokens: int) -> Turn:
    """Send ``texts`` with at most ``concurrency`` under way; raises ``ServerError`` when an answer fails."""
    waiting, answers = iter(texts), list[tuple[int, float]]()

    async def work() -> None:
        for text in waiting:
            answers.append(await _one(target, text, max_tokens))

    started = time.perf_counter()
    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(concurrency):
                group.create_task(work())
    except* ServerError as failed:
        raise ServerError(f"{target.name} failed under load: {failed.exceptions[0]}") from failed
    elapsed = time.perf_counter() - started
    return Turn(
        sum(tokens for tokens, _ in answers) / elapsed, statistics.median(ttft for _, ttft in answers), len(answers)
    )


async def _one(target: Target, text: str, max_tokens: int) -> tuple[int, float]:
    """Return generated tokens and time to first token of one streamed chat."""
    body = {
        "model": target.model,
        "messages": [{"role": "user", "content": text}],
        "max_tokens": max_tokens,
        "temperature": 0,
        "ignore_eos": True,  # vLLM: equal work on both; others pass over it and may stop earlier
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    started, first, tokens = time.perf_counter(), 0.0, 0
    with shaped("an answer"):
        async for event in client.stream(target.http, "/v1/chat/completions", body):
            first = first or time.perf_counter() - started
            tokens = int((event.get("usage") or {}).get("completion_tokens", tokens))
    if not tokens:
        raise ServerError("the stream says nothing of the tokens that it generated")
    return tokens, first
