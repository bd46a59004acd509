"""No log and no error quotes what a server answered: it may repeat what a user asked."""

from __future__ import annotations

import asyncio
import io
import json
import sys
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest
import structlog

from moe_watch.canary import prompts
from moe_watch.canary import replay as canary
from moe_watch.cli import log
from moe_watch.servers.client import ServerError
from moe_watch.servers.dense import DenseClient
from moe_watch.servers.load import Target, load
from moe_watch.settings import Settings, ShadowSettings
from moe_watch.shadow import worker
from moe_watch.shadow.judge import Judge
from moe_watch.shadow.worker import Worker, _Chosen
from tests.support.dense import CHAT, REQUEST
from tests.support.fake_openai import FakeOpenAI

WORD = "Rumpelstilzchen"
PATHS = ("/v1/models", "/metrics", "/tokenize", "/v1/completions", "/v1/chat/completions")
_TOKEN = {"logprobs": {"content": [{"token": "a", "logprob": WORD}]}, "delta": {"content": "a"}}

# What one of the paths answers instead: errors, JSON of other shapes, numbers that are none, broken streams.
ANSWERS: dict[str, Callable[[], httpx.Response]] = {
    **{f"status {code}": lambda code=code: httpx.Response(code, text=WORD) for code in (400, 401, 404, 422, 429, 500)},
    "error": lambda: httpx.Response(400, json={"error": {"message": WORD, "type": WORD, "code": WORD}}),
    "redirect": lambda: httpx.Response(307, headers={"location": f"http://{WORD}/"}),
    "no JSON": lambda: httpx.Response(200, text=WORD),
    "no UTF-8": lambda: httpx.Response(200, content=b'{"data": "' + WORD.encode() + b'\xff"}'),
    "no gzip": lambda: httpx.Response(200, headers={"content-encoding": "gzip"}, content=WORD.encode()),
    "too deep": lambda: httpx.Response(200, text="[" * 500_000 + WORD),
    "text": lambda: httpx.Response(200, json=WORD),
    "list": lambda: httpx.Response(200, json=[WORD]),
    "names": lambda: httpx.Response(200, json={"data": [{"id": WORD, "max_model_len": WORD}], "model": WORD}),
    "names that are none": lambda: httpx.Response(200, json={"data": [WORD]}),
    "tokens": lambda: httpx.Response(200, json={"tokens": [WORD, WORD, WORD]}),
    "no tokens": lambda: httpx.Response(200, json={"tokens": WORD}),
    "choices": lambda: httpx.Response(200, json={"choices": [{"text": WORD, "prompt_logprobs": [WORD] * 3}]}),
    "ranks": lambda: httpx.Response(200, content=_ranks(WORD, "Infinity")),
    "logprobs": lambda: httpx.Response(200, content=_ranks(f'"{WORD}"', "1")),
    "verdict": lambda: httpx.Response(200, json={"choices": [{"message": {"content": [WORD]}}]}),
    "metrics": lambda: httpx.Response(200, text=f"vllm:num_requests_running {WORD}\nvllm:num_requests_running{WORD}\n"),
    "stream error": lambda: _stream({"error": {"message": WORD}}),
    "stream of text": lambda: _stream(WORD),
    "stream of numbers": lambda: _stream({"choices": [_TOKEN]}),
    "stream of usage": lambda: _stream({"choices": [], "usage": {"completion_tokens": WORD}}),
    "stream of ids": lambda: _stream({"choices": [{"token_ids": WORD, "delta": {"content": [WORD]}}]}),
    "stream cut": lambda: httpx.Response(200, text=f"data: {{{WORD}\n\n"),
    "broken off": lambda: httpx.Response(200, stream=_Broken()),
}  # fmt: skip


def _ranks(logprob: str, rank: str) -> bytes:
    entry = f'{{"logprob": {logprob if logprob[0] == chr(34) else 0}, "rank": {rank}}}'
    ids = ", ".join(f'"{ord(letter)}": {entry}' for letter in "abcdefghijklmnopqrstuvwxyzTheqQuickbrownfx ")
    return (
        f'{{"choices": [{{"prompt_logprobs": [null{f", {{{ids}}}" * 18}], "x": "{logprob.strip(chr(34))}"}}]}}'.encode()
    )


def _stream(event: Any) -> httpx.Response:
    return httpx.Response(200, text=f"data: {json.dumps(event)}\n\n")


class _Broken(httpx.AsyncByteStream):
    async def __aiter__(self) -> Any:
        yield f"data: {{{WORD}".encode()
        raise httpx.RemoteProtocolError(WORD)


def client(path: str, answer: Callable[[], httpx.Response]) -> httpx.AsyncClient:
    """Return a client of a server that answers so at ``path``, and well at the others."""
    fake = httpx.ASGITransport(app=FakeOpenAI(verdicts=["A"] * 9).app())

    async def handle(request: httpx.Request) -> httpx.Response:
        return answer() if request.url.path == path else await fake.handle_async_request(request)

    return httpx.AsyncClient(transport=httpx.MockTransport(handle), base_url="http://dense")


@pytest.fixture
def logged(monkeypatch: pytest.MonkeyPatch) -> Iterator[io.StringIO]:
    """Return what goes to the log, as it is configured in the sidecar."""
    kept, err = structlog.get_config(), io.StringIO()
    monkeypatch.setattr(sys, "stderr", err)
    monkeypatch.setattr(worker, "_LOG", structlog.get_logger())
    log.configure("json")
    yield err
    structlog.configure(**kept)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("answer", ANSWERS)
def test_no_log_of_the_shadow_quotes_an_answer(path: str, answer: str, logged: io.StringIO) -> None:
    """Whatever a path of the dense server or the judge answers, the request ends in a row and the word in no line."""
    settings = Settings(shadow=ShadowSettings(requests_per_s=1e6, tokens_per_s=1e9))

    async def run() -> None:
        async with client(path, ANSWERS[answer]) as http:
            made = Worker(settings, None, DenseClient(http), Judge(http, "judge"))  # type: ignore[arg-type]
            made.breaker.admit = lambda _: True  # type: ignore[method-assign]
            row = await made._replay(_Chosen(REQUEST, 1.0))
            assert row.outcome in {"scored", "unscored", "failed", "unsupported"}
            await worker._judge(http, None)

    asyncio.run(run())
    assert WORD not in logged.getvalue()


@pytest.mark.parametrize("answer", ANSWERS)
def test_no_error_that_a_command_shows_quotes_an_answer(answer: str) -> None:
    """The dense client's, the judge's, the canaries' and the load's."""
    told: list[str] = []

    async def run() -> None:
        async with client("/v1/chat/completions", ANSWERS[answer]) as http:
            for work in (
                DenseClient(http, "m").generate(CHAT, {"messages": []}),
                Judge(http, "m").prefers_first("q", "a", "b"),
                load(Target("the server", http, "m"), ["x"], 1, 3),
            ):
                try:
                    await work
                except ServerError as error:
                    told.append(str(error))
        async with client("/v1/completions", ANSWERS[answer]) as http:
            server = canary.Server("http://dense", "m", prompts.load())
            found = await canary._send(http, server, server.canaries.prompts[0], "name")
            told.append(found.error)

    asyncio.run(run())
    assert not [text for text in told if WORD in text]
