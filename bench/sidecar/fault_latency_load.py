"""A steady load on one server: so many requests always under way, fixed prompts and lengths, each answer timed."""

from __future__ import annotations

import asyncio
import itertools
import json
import statistics
import threading
import time
from dataclasses import dataclass
from typing import Any, Self

import aiohttp

from demo.traffic import mixture
from moe_watch.servers import stream

MODEL = "bench"
CONCURRENCY, TOKENS, TIMEOUT_S = 4, 24, 60
PROMPTS = [prompt.text for prompt in mixture(24, 5)]


@dataclass(frozen=True)
class Answer:
    """What came of one request; times in seconds of ``time.perf_counter``. ``error`` is empty where it was answered."""

    prompt: int  # its place in PROMPTS
    started: float
    first: float  # when the first of the text came
    ended: float
    text: str
    error: str = ""


@dataclass(frozen=True)
class Speed:
    """How a server did between two moments."""

    ttft_ms: float  # median
    tpot_ms: float  # median
    requests_per_s: float
    cpu_ms: float  # CPU time of the server's processes, per request


class Load:
    """Keeps ``CONCURRENCY`` requests under way from a thread while its ``with`` lasts; those begun are seen through."""

    def __init__(self, url: str) -> None:
        self.answers: list[Answer] = []
        self._url, self._leave = f"{url}/v1/chat/completions", threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()), name="load", daemon=True)

    def __enter__(self) -> Self:
        """Begin."""
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Wait for the last answers."""
        self._leave.set()
        self._thread.join()

    async def _run(self) -> None:
        numbers = itertools.count()
        timeout = aiohttp.ClientTimeout(total=TIMEOUT_S)
        async with aiohttp.ClientSession(timeout=timeout) as client, asyncio.TaskGroup() as group:
            for _ in range(CONCURRENCY):
                group.create_task(self._work(client, numbers))

    async def _work(self, client: aiohttp.ClientSession, numbers: itertools.count[int]) -> None:
        while not self._leave.is_set():
            answer = await self._ask(client, next(numbers) % len(PROMPTS))
            self.answers.append(answer)
            if answer.error:
                await asyncio.sleep(0.1)  # a server that refuses is not to be asked a thousand times a second

    async def _ask(self, client: aiohttp.ClientSession, prompt: int) -> Answer:
        body = {"model": MODEL, "messages": [{"role": "user", "content": PROMPTS[prompt]}], "max_tokens": TOKENS,
                "temperature": 0, "stream": True, "ignore_eos": True}  # fmt: skip
        started, first, raw = time.perf_counter(), 0.0, bytearray()
        try:
            async with client.post(self._url, json=body) as reply:
                reply.raise_for_status()
                async for part in reply.content.iter_any():
                    first = first or time.perf_counter()
                    raw += part
            ended = time.perf_counter()
            return Answer(prompt, started, first, ended, _text(raw))
        except (aiohttp.ClientError, TimeoutError, ValueError) as error:
            return Answer(prompt, started, first, time.perf_counter(), "", repr(error))


def _text(raw: bytes) -> str:
    """Return the text of a streamed answer; raises ``ValueError`` where it is not whole."""
    events: list[dict[str, Any]] = [event for line in raw.splitlines() if (event := stream.event(line)) is not None]
    choices = [event["choices"][0] for event in events if event.get("choices")]
    if not choices or choices[-1].get("finish_reason") != "length":
        raise ValueError(f"an answer that ends early: {json.dumps(events[-1:])[:300]}")
    return "".join(choice["delta"].get("content") or "" for choice in choices)


def speed(answers: list[Answer], begin: float, end: float, cpu_s: float) -> Speed:
    """Return the speed between two moments, in which the server used ``cpu_s`` seconds of CPU time."""
    good = [answer for answer in answers if not answer.error]
    ended = sorted(answer.ended for answer in good if begin <= answer.ended <= end)
    whole = [answer for answer in good if answer.started >= begin and answer.ended <= end]
    if len(whole) < CONCURRENCY:
        errors = {answer.error for answer in answers if answer.error}
        longest = max((answer.ended - answer.started for answer in answers), default=0.0)
        raise RuntimeError(
            f"{len(whole)} requests answered in {end - begin:.1f} s, {len(answers)} in all, the slowest in "
            f"{longest:.1f} s: too few to time. Errors: {sorted(errors) or 'none'}"
        )
    return Speed(
        ttft_ms=1e3 * statistics.median(answer.first - answer.started for answer in whole),
        tpot_ms=1e3 * statistics.median((answer.ended - answer.first) / (TOKENS - 1) for answer in whole),
        requests_per_s=(len(ended) - 1) / (ended[-1] - ended[0]),
        cpu_ms=1e3 * cpu_s / len(ended),
    )
