"""An OpenAI-compatible server in this process that answers as vLLM does; a fake, held to the real one's shape.

Its tokens are characters. The model prefers the letter after the one before ("a" then "b"): log-probability -0.5 and
rank 1 for that, -3 and rank 7 for anything else. ``tests/real/test_shadow.py`` compares its answers with vLLM's.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import httpx
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

LIKELY, UNLIKELY = -0.5, -3.0
MAX_MODEL_LEN = 4096


@dataclass
class FakeOpenAI:
    """What the server is told to do, and what it was asked."""

    lacks: frozenset[str] = frozenset()  # of "tokenize", "prompt_logprobs", "logprobs", "usage"
    fail: int = 0  # how many of the next requests answer 503
    refuses: bool = False  # whether it knows the key of nobody
    answers: dict[str, str] = field(default_factory=dict)  # last message or prompt -> output
    verdicts: list[str] = field(default_factory=list)  # what it says as a judge, in turn
    asked: list[tuple[str, dict[str, Any]]] = field(default_factory=list)

    def client(self) -> httpx.AsyncClient:
        """Return a client of this server that opens no socket."""
        return httpx.AsyncClient(transport=httpx.ASGITransport(app=self.app()), base_url="http://dense")

    def app(self) -> Starlette:
        """Return the ASGI application."""
        return Starlette(
            routes=[
                Route("/v1/models", self._models),
                Route("/metrics", self._metrics),
                Route("/tokenize", self._tokenize, methods=["POST"]),
                Route("/v1/completions", self._generate, methods=["POST"]),
                Route("/v1/chat/completions", self._generate, methods=["POST"]),
            ]
        )

    async def _models(self, _: Request) -> Response:
        if self.refuses:
            return JSONResponse({"error": "Unauthorized"}, 401)
        if self._failing():
            return Response(status_code=503)
        return JSONResponse({"object": "list", "data": [{"id": "dense", "max_model_len": MAX_MODEL_LEN}]})

    async def _metrics(self, _: Request) -> Response:
        return PlainTextResponse('vllm:num_requests_running{engine="0",model_name="dense"} 2.0\n')

    async def _tokenize(self, request: Request) -> Response:
        body = await self._read(request)
        if "tokenize" in self.lacks:
            return Response(status_code=404)
        tokens = _ids(_rendered(body["messages"]) if "messages" in body else body["prompt"])
        return JSONResponse(
            {"count": len(tokens), "max_model_len": MAX_MODEL_LEN, "tokens": tokens, "token_strs": None}
        )

    async def _generate(self, request: Request) -> Response:
        body = await self._read(request)
        if self._failing():
            return Response(status_code=503)
        chat = request.url.path.endswith("/chat/completions")
        prompt = _rendered(body["messages"]) if chat else body["prompt"]
        ids = prompt if isinstance(prompt, list) else _ids(prompt)
        if len(ids) >= MAX_MODEL_LEN:
            return JSONResponse({"error": {"message": "too long", "type": "BadRequestError"}}, 400)
        if body.get("stream"):
            return StreamingResponse(self._events(body, ids, chat=chat), media_type="text/event-stream")
        return JSONResponse(self._whole(body, ids, chat=chat))

    def _whole(self, body: dict[str, Any], ids: list[int], *, chat: bool) -> dict[str, Any]:
        if chat:
            said = self.verdicts.pop(0) if self.verdicts else "TIE"
            return {"choices": [{"index": 0, "message": {"role": "assistant", "content": said}}]}
        choice: dict[str, Any] = {"index": 0, "text": "x", "finish_reason": "length"}
        if "prompt_logprobs" in body and "prompt_logprobs" not in self.lacks:
            choice["prompt_logprobs"] = [None, *({str(b): _entry(a, b)} for a, b in itertools.pairwise(ids))]
        return {"object": "text_completion", "model": "dense", "choices": [choice]}

    async def _events(self, body: dict[str, Any], ids: list[int], *, chat: bool) -> AsyncIterator[str]:
        asked = body["messages"][-1]["content"] if chat else body["prompt"]
        text = self.answers.get(asked, "abcdefgh")[: body.get("max_tokens", 16)]
        before = ids[-1]
        for place, letter in enumerate(text):
            entry = _entry(before, ord(letter))
            logprobs = {"content": [{"token": letter, "logprob": entry["logprob"]}]}
            if not chat:
                logprobs = {"tokens": [letter], "token_logprobs": [entry["logprob"]]}
            last = place == len(text) - 1
            choice = {
                "index": 0,
                "logprobs": None if "logprobs" in self.lacks else logprobs,
                "finish_reason": "length" if last else None,
                "token_ids": [ord(letter)],
                **({"delta": {"content": letter}} if chat else {"text": letter}),
            }
            event: dict[str, Any] = {"object": "chunk", "choices": [choice]}
            if place == 0:
                (event if chat else choice)["prompt_token_ids"] = ids
            yield f"data: {json.dumps(event)}\n\n"
            before = ord(letter)
        if "usage" not in self.lacks:
            yield f"data: {json.dumps({'choices': [], 'usage': {'completion_tokens': len(text)}})}\n\n"
        yield "data: [DONE]\n\n"

    async def _read(self, request: Request) -> dict[str, Any]:
        body: dict[str, Any] = json.loads(await request.body())
        self.asked.append((request.url.path, body))
        return body

    def _failing(self) -> bool:
        self.fail -= 1
        return self.fail >= 0


def _ids(text: str) -> list[int]:
    return [ord(letter) for letter in text]


def _rendered(messages: list[dict[str, str]]) -> str:
    return "".join(f"<{message['role']}>{message['content']}\n" for message in messages) + "<assistant>"


def _entry(before: int, now: int) -> dict[str, Any]:
    likely = now == before + 1
    return {"logprob": LIKELY if likely else UNLIKELY, "rank": 1 if likely else 7, "decoded_token": chr(now)}
