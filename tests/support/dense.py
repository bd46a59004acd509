"""One sampled request, and the dense client over a fake server."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

from moe_watch.servers.dense import DenseClient
from moe_watch.shadow.replay import Replay, replay
from moe_watch.store.records.shadows import Pending
from tests.support.fake_openai import FakeOpenAI

T = TypeVar("T")
CHAT = "/v1/chat/completions"

REQUEST = Pending(
    request_pk=1,
    request_id="chatcmpl-1",
    choice=0,
    replica="r0",
    model="moe",
    ood_p=0.5,
    prompt_tokens=20,
    output_tokens=8,
    finish_reason="length",
    corrupted=False,
    images=0,
    endpoint=CHAT,
    prompt='[{"role": "user", "content": "alphabet"}]',
    output="abcdxfgh",
    params={"temperature": 0.0, "max_tokens": 8},
    prompt_truncated=False,
    output_truncated=False,
    sample_rate=0.5,
)


def use(server: FakeOpenAI, work: Callable[[DenseClient], Awaitable[T]]) -> T:
    """Return what ``work`` returns of a client of ``server``."""

    async def run() -> T:
        async with server.client() as http:
            return await work(DenseClient(http))

    return asyncio.run(run())


def replayed(server: FakeOpenAI, request: Pending = REQUEST) -> Replay:
    """Return the replay of one request by ``server``."""

    async def work(client: DenseClient) -> Replay:
        return await replay(client, await client.probe(), request, at=5.0, weight=20.0)

    return use(server, work)
