"""An API server like vLLM's behind the middleware, with the statistics that vLLM hands to its loggers."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from types import SimpleNamespace

import httpx
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from vllm.v1.metrics.stats import FinishedRequestStats

from moe_watch.tap.api.latency import LatencyLogger
from moe_watch.tap.middleware import Middleware

CHAT = "/v1/chat/completions"


async def chat(request: Request) -> Response:
    """Answer whole or in pieces, once for each of n."""
    asked = await request.json()
    texts = [f"answer {index} to ann@example.org" for index in range(asked.get("n", 1))]
    if asked.get("stream"):
        return StreamingResponse(events(texts), media_type="text/event-stream")
    return JSONResponse({"choices": [{"index": i, "message": {"content": text}} for i, text in enumerate(texts)]})


async def events(texts: list[str]) -> AsyncIterator[bytes]:
    """Yield ``texts`` word by word as server-sent events."""
    for index, text in enumerate(texts):
        for word in text.split(" "):
            delta = {"choices": [{"index": index, "delta": {"content": word + " "}}]}
            yield b"data: " + json.dumps(delta).encode() + b"\n\n"
    yield b"data: [DONE]\n\n"


async def serve(requests: int) -> list[tuple[int, str]]:
    """Return status and body of so many answers, every second one streamed."""
    app = Middleware(Starlette(routes=[Route(CHAT, chat, methods=["POST"])]))
    statistics = LatencyLogger(None)
    answers = []
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://vllm") as client:
        for number in range(requests):
            content = [
                {"type": "text", "text": f"hello {number}, my card is 4111-1111-1111-1111"},
                {"type": "image_url"},
            ]
            asked = {"model": "m", "messages": [{"role": "user", "content": content}], "stream": number % 2 > 0}
            answer = await client.post(CHAT, json=asked | {"n": 2})
            answers.append((answer.status_code, answer.text))
            finished = FinishedRequestStats("stop", f"chatcmpl-{number}")  # type: ignore[arg-type]
            statistics.record(None, SimpleNamespace(finished_requests=[finished]))
    statistics.log_engine_initialized()
    return answers
