"""Servers in this process that answer as TGI and Ollama do on their OpenAI routes: what they lack, and how they differ.

Written from their sources: text-generation-inference at db931fc (router/src/server.rs, chat.rs, lib.rs) and ollama at
fb30760 (openai/openai.go, middleware/openai.go). Neither server itself is run.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse

from tests.support.fake_openai import LIKELY, UNLIKELY, FakeOpenAI

END_OF_TURN = -9.0  # log-probability of the token that ends an answer


@dataclass
class FakeTGI(FakeOpenAI):
    """TGI: a ``/tokenize`` of its own, log-probabilities of chats alone, the end-of-turn token among them.

    Its client reads events without a space behind the colon, so none is sent here.
    """

    async def _models(self, _: Request) -> Response:
        return JSONResponse({"object": "list", "data": [{"id": "dense", "object": "model", "owned_by": "dense"}]})

    async def _metrics(self, _: Request) -> Response:
        return PlainTextResponse("tgi_queue_size 0\n")

    async def _tokenize(self, request: Request) -> Response:
        body = await self._read(request)
        if "inputs" not in body:
            return PlainTextResponse("missing field `inputs`", 422)
        return JSONResponse([{"id": ord(letter), "text": letter, "start": 0, "stop": 1} for letter in body["inputs"]])

    async def _generate(self, request: Request) -> Response:
        body = await self._read(request)
        if "messages" in body:
            grammar = body.get("response_format")
            if grammar is not None and "value" not in grammar:
                return PlainTextResponse("missing field `value`", 422)
        elif not isinstance(body["prompt"], str):
            return PlainTextResponse("data did not match any variant of untagged enum PromptDeserializer", 422)
        return _answer(self, body)

    async def _stream(self, body: dict[str, Any], text: str) -> AsyncIterator[str]:
        events = _tgi_chat(text) if "messages" in body else _tgi_text(text)
        for event in events:
            yield f"data:{json.dumps(event)}\n\n"
        yield "data: [DONE]\n\n"


def _answer(server: FakeTGI | FakeOllama, body: dict[str, Any]) -> Response:
    """Return the answer to an accepted request, whole or as a stream."""
    if not body.get("stream"):
        return JSONResponse(server._whole(body, [], chat="messages" in body))
    asked = body["messages"][-1]["content"] if "messages" in body else body["prompt"]
    return StreamingResponse(
        server._stream(body, server.answers.get(asked, "abcdefgh")), media_type="text/event-stream"
    )


def _tgi_chat(text: str) -> Iterator[dict[str, Any]]:
    for letter in [*text, None]:
        logprob = END_OF_TURN if letter is None else LIKELY
        delta = {"role": "assistant", "content": letter or ""}
        logprobs = {"content": [{"token": letter or "</s>", "logprob": logprob, "top_logprobs": []}]}
        choice = {"index": 0, "delta": delta, "logprobs": logprobs, "finish_reason": None if letter else "stop"}
        yield {"object": "chat.completion.chunk", "choices": [choice], "usage": None}
    yield {"object": "chat.completion.chunk", "choices": [], "usage": {"completion_tokens": len(text) + 1}}


def _tgi_text(text: str) -> Iterator[dict[str, Any]]:
    for letter in text:
        choice = {"index": 0, "text": letter, "logprobs": None, "finish_reason": ""}
        yield {"object": "text_completion", "choices": [choice]}
    choice = {"index": 0, "text": "</s>", "logprobs": None, "finish_reason": "eos_token"}
    yield {"object": "text_completion", "choices": [choice], "usage": {"completion_tokens": len(text) + 1}}


@dataclass
class FakeOllama(FakeOpenAI):
    """Ollama: no ``/tokenize``, no ``/metrics``, log-probabilities of chats alone and only since late 2025."""

    async def _models(self, _: Request) -> Response:
        return JSONResponse({"object": "list", "data": [{"id": "dense", "object": "model", "owned_by": "library"}]})

    async def _metrics(self, _: Request) -> Response:
        return PlainTextResponse("404 page not found", 404)

    async def _tokenize(self, request: Request) -> Response:
        await self._read(request)
        return PlainTextResponse("404 page not found", 404)

    async def _generate(self, request: Request) -> Response:
        body = await self._read(request)
        if "messages" not in body and not isinstance(body["prompt"], str):
            return JSONResponse({"error": {"message": "cannot unmarshal array into prompt of type string"}}, 400)
        return _answer(self, body)

    async def _stream(self, body: dict[str, Any], text: str) -> AsyncIterator[str]:
        chat = "messages" in body
        told = chat and body.get("logprobs") and "logprobs" not in self.lacks
        for event in _ollama_chat(text, told=bool(told)) if chat else _ollama_text(text):
            yield f"data: {json.dumps(event)}\n\n"
        yield "data: [DONE]\n\n"


def _ollama_chat(text: str, *, told: bool) -> Iterator[dict[str, Any]]:
    for letter in text:
        choice: dict[str, Any] = {"index": 0, "delta": {"content": letter}, "finish_reason": None}
        if told:
            choice["logprobs"] = {"content": [{"token": letter, "logprob": UNLIKELY, "bytes": [ord(letter)]}]}
        yield {"object": "chat.completion.chunk", "choices": [choice]}
    yield {"object": "chat.completion.chunk", "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}
    yield {"object": "chat.completion.chunk", "choices": [], "usage": {"completion_tokens": len(text)}}


def _ollama_text(text: str) -> Iterator[dict[str, Any]]:
    for place, letter in enumerate(text):
        reason = "stop" if place == len(text) - 1 else None
        choice = {"index": 0, "text": letter, "finish_reason": reason}
        yield {"object": "text_completion", "choices": [choice], "usage": {"completion_tokens": 0}}
    yield {"object": "text_completion", "choices": [], "usage": {"completion_tokens": len(text)}}
