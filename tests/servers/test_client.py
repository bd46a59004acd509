"""The one client: what is the server's fault and what the request's, and streams that arrive in any pieces."""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr

from moe_watch.servers import client, stream
from moe_watch.servers.client import RefusedError, ServerError
from moe_watch.servers.dense import DenseClient
from tests.support.dense import CHAT
from tests.support.fake_openai import FakeOpenAI

ENDS = "\u2028\u2029\x85\x0b\x0c\x1c"  # Unicode's ends of lines that JSON may hold as they are


def chunk(text: str) -> dict[str, Any]:
    return {"choices": [{"delta": {"content": text}, "finish_reason": None}]}


def written(events: list[dict[str, Any]], end: str = "\n") -> bytes:
    told = [json.dumps(event, ensure_ascii=False) for event in events]
    return "".join(f"data: {one}{end}{end}" for one in [*told, "[DONE]"]).encode()


def read(pieces: list[bytes]) -> list[dict[str, Any]]:
    async def arrive() -> AsyncIterator[bytes]:
        for piece in pieces:
            yield piece

    async def run() -> list[dict[str, Any]]:
        return [event async for event in stream.events(arrive())]

    return asyncio.run(run())


def answering(answer: httpx.Response) -> httpx.AsyncClient:
    return httpx.AsyncClient(transport=httpx.MockTransport(lambda _: answer), base_url="http://dense")


@given(
    st.lists(st.text(st.sampled_from(f"a{ENDS}é\U0001f600"), max_size=4)),
    st.lists(st.integers(0, 400)),
    st.sampled_from(["\n", "\r\n", "\r"]),
)
def test_a_stream_is_read_the_same_wherever_it_is_cut(texts: list[str], cuts: list[int], end: str) -> None:
    """Inside of a character, of a line, of its end; a line ends with CR, LF or both and with nothing else."""
    raw, events = written([chunk(text) for text in texts], end), [chunk(text) for text in texts]
    at = [0, *sorted(min(cut, len(raw)) for cut in cuts), len(raw)]
    assert read([raw[start:stop] for start, stop in itertools.pairwise(at)]) == events


def test_the_last_line_of_a_stream_needs_no_end() -> None:
    assert read([b'data: {"a"', b": 1}"]) == [{"a": 1}]


def test_a_generated_text_may_hold_what_unicode_takes_for_the_end_of_a_line() -> None:
    """VLLM streams text as it is: a line separator in it is no broken answer."""
    raw = written([chunk(f"one{ENDS}two"), {"choices": [{"delta": {}, "finish_reason": "stop"}]}])

    async def run() -> str:
        async with answering(httpx.Response(200, content=raw)) as http:
            return (await DenseClient(http, "m").generate(CHAT, {"messages": []})).text

    assert asyncio.run(run()) == f"one{ENDS}two"


@pytest.mark.parametrize("streamed", [True, False])
def test_a_request_that_cannot_be_written_is_not_the_servers_fault(streamed: bool) -> None:  # noqa: FBT001 - a case
    """A client of vLLM may send half of a surrogate pair in JSON; it cannot be sent on, now or later."""
    messages = json.loads('[{"role": "user", "content": "\\ud800"}]')

    async def run() -> None:
        async with FakeOpenAI().client() as http:
            dense = DenseClient(http, "dense")
            await (dense.generate(CHAT, {"messages": messages}) if streamed else dense.tokenize("\ud800"))

    with pytest.raises(RefusedError, match="cannot be written"):
        asyncio.run(run())


@pytest.mark.parametrize("streamed", [True, False])
@pytest.mark.parametrize(
    ("status", "refused"),
    [(400, True), (401, True), (404, True), (422, True), (307, False), (408, False), (429, False), (503, False)],
)
def test_a_server_in_trouble_is_told_from_one_that_refuses(status: int, refused: bool, streamed: bool) -> None:  # noqa: FBT001 - cases
    """Streamed or not, by the status alone; the words of the answer stay out of the message."""

    async def run() -> None:
        async with answering(httpx.Response(status, text="secret")) as http:
            if streamed:
                [_ async for _ in client.stream(http, "/v1/completions", {})]
            else:
                await client.post(http, "/v1/completions", {})

    with pytest.raises(ServerError, match=f"^/v1/completions: status {status}, 6 bytes$") as raised:
        asyncio.run(run())
    assert isinstance(raised.value, RefusedError) is refused


@pytest.mark.parametrize("url", ["http://a:1", "http://a:1/", "http://a:1/v1", "http://a:1/v1/"])
def test_a_client_finds_the_server_whether_or_not_its_address_ends_with_v1(url: str) -> None:
    """It shows the key, and hooks see each request."""
    seen: list[httpx.Request] = []

    async def hook(request: httpx.Request) -> None:
        seen.append(request)

    async def run() -> None:
        async with client.connect(url, SecretStr("key"), httpx.Timeout(9), hooks={"request": [hook]}) as http:
            http._transport = httpx.MockTransport(lambda _: httpx.Response(200, json={"data": []}))
            await client.get(http, "/v1/models")
            _ = [event async for event in client.stream(http, "/v1/completions", {})]

    asyncio.run(run())
    assert [str(request.url) for request in seen] == ["http://a:1/v1/models", "http://a:1/v1/completions"]
    assert {request.headers["authorization"] for request in seen} == {"Bearer key"}
