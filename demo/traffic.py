"""Send chat requests to a vLLM server through the OpenAI client, a bounded number at a time."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from openai import AsyncOpenAI

from demo import corpus


@dataclass(frozen=True)
class Prompt:
    """One request to come: its text and the domain it was drawn from."""

    domain: str
    text: str


@dataclass(frozen=True)
class Answer:
    """What came back, under the id by which moe-watch knows the request."""

    request_id: str
    prompt: Prompt
    text: str


def mixture(n: int, seed: int, *, unseen_share: float = 0.0, unseen: Sequence[str] = ()) -> list[Prompt]:
    """Return ``n`` prompts of the normal domains, a share of them replaced by ``unseen`` kinds, shuffled."""
    generator = random.Random(seed)
    kinds = unseen or corpus.UNSEEN
    drawn = [
        generator.choice(kinds) if generator.random() < unseen_share else generator.choice(corpus.NORMAL)
        for _ in range(n)
    ]
    pools = {domain: iter(corpus.prompts(domain, drawn.count(domain), seed)) for domain in sorted(set(drawn))}
    return [Prompt(domain, next(pools[domain])) for domain in drawn]


async def send(
    url: str,
    model: str,
    prompts: Iterable[Prompt],
    *,
    concurrency: int = 16,
    max_tokens: int = 24,
    timeout_s: float = 120,
    on_answer: Callable[[Answer], None] = lambda _: None,
    stop: Callable[[], bool] = lambda: False,
) -> list[Answer]:
    """Send ``prompts`` in order, at most ``concurrency`` at once, until they or ``stop`` end; return the answers."""
    answers: list[Answer] = []
    queue = iter(prompts)
    async with AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=timeout_s) as client:

        async def worker() -> None:
            for prompt in queue:
                if stop():
                    return
                reply = await client.chat.completions.create(
                    model=model,
                    messages=[{"role": "user", "content": prompt.text}],
                    max_tokens=max_tokens,
                    temperature=0.7,
                    extra_headers={"X-Moe-Watch-Domain": prompt.domain},
                )
                answer = Answer(reply.id, prompt, reply.choices[0].message.content or "")
                answers.append(answer)
                on_answer(answer)

        async with asyncio.TaskGroup() as group:
            for _ in range(concurrency):
                group.create_task(worker())
    return answers
