"""Replays the canary set against an OpenAI-compatible vLLM server, in several batch compositions.

Temperature 0, a fixed seed and a fixed number of output tokens. A fresh ``cache_salt`` a request keeps the prefix cache
from answering for the router: cached positions are not routed again. The client marks the requests, so that neither
they nor the filler count as traffic.
"""

from __future__ import annotations

import asyncio
import random
import secrets
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import httpx
import numpy as np
from numpy.typing import NDArray
from pydantic import SecretStr

from moe_watch.canary import marks
from moe_watch.canary.prompts import CanarySet, Prompt
from moe_watch.canary.reference import token_digest
from moe_watch.servers.client import ServerError, connect, get, post, shaped
from moe_watch.servers.urls import shown

REQUEST_PREFIX = "moe-watch-canary-"
_PAUSE_S = 0.2


@dataclass(frozen=True)
class Load:
    """A batch composition: canaries in flight at a time, and requests of other shapes that run meanwhile."""

    name: str
    canaries: int
    filler: int = 0


LOADS = {load.name: load for load in (Load("1", 1), Load("4", 4), Load("16", 16), Load("mixed", 4, filler=12))}


@dataclass(frozen=True)
class Server:
    """Where the canaries go and what that server was found to accept."""

    url: str
    model: str
    canaries: CanarySet
    prompt_logprobs: bool = True


@dataclass(frozen=True)
class Answer:
    """What came back for one canary; ``error`` is empty when it was answered."""

    request_id: str
    prompt_tokens: int = 0
    prompt_digest: int = 0
    prompt_logprob: tuple[float, ...] = ()
    output: tuple[int, ...] = ()
    output_logprob: tuple[float, ...] = ()
    error: str = ""


def client(url: str, api_key: SecretStr | None, key: str, timeout_s: float = 120) -> httpx.AsyncClient:
    """Return an HTTP client for the server at ``url`` (with or without /v1) whose requests are marked with ``key``."""
    return connect(url, api_key, httpx.Timeout(timeout_s), connections=64, hooks=marks.signing(key))


async def probe(http: httpx.AsyncClient, canaries: CanarySet, model: str | None = None) -> Server:
    """Find out what the server serves and accepts, by sending the first prompt.

    A server without a chat template gets completions, one without prompt log-probabilities is not asked for them. One
    that answers only without log-probabilities is taken as it is: not a number is what a broken router gives, and JSON
    has no word for it. Raises ``ServerError`` when nothing works.
    """
    try:
        with shaped("/v1/models"):
            served = model or (await get(http, "/v1/models"))["data"][0]["id"]
    except ServerError as error:
        where = shown(str(http.base_url))
        raise ServerError(f"no OpenAI-compatible server answers at {where}: {error}") from error
    last = ""
    for endpoint in dict.fromkeys((canaries.endpoint, "completions")):
        for scored in (True, False):
            server = Server(str(http.base_url), served, replace(canaries, endpoint=endpoint), scored)
            answer = await _send(http, server, server.canaries.prompts[0], f"{_run_id()}-probe")
            if not answer.error:
                return server
            last = answer.error
    server = Server(str(http.base_url), served, canaries)
    if not (await _send_anyhow(http, server, canaries.prompts[0], f"{_run_id()}-probe")).error:
        return server
    raise ServerError(f"the server at {shown(str(http.base_url))} answers no canary: {last}")


async def replay(http: httpx.AsyncClient, server: Server, load: Load, seed: int) -> list[Answer]:
    """Send every canary once at ``load``, in an order drawn with ``seed``; return the answers in the set's order."""
    run = _run_id()
    order = list(range(len(server.canaries.prompts)))
    random.Random(seed).shuffle(order)  # noqa: S311 - another batch composition in each round, not a secret
    answers: dict[int, Answer] = {}
    queue = iter(order)

    async def worker() -> None:
        for index in queue:
            name = f"{run}-{load.name}-{index}"
            answers[index] = await _send_anyhow(http, server, server.canaries.prompts[index], name)

    fillers = [asyncio.create_task(_fill(http, server, seed + i, run)) for i in range(load.filler)]
    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(load.canaries):
                group.create_task(worker())
    finally:
        for filler in fillers:
            filler.cancel()
        await asyncio.gather(*fillers, return_exceptions=True)
    return [answers[index] for index in range(len(order))]


async def _fill(http: httpx.AsyncClient, server: Server, seed: int, run: str) -> None:
    """Keep one request of random length in flight until cancelled."""
    drawn = random.Random(seed)  # noqa: S311 - draws lengths, not a secret
    number = 0
    while True:
        pieces = drawn.sample(server.canaries.prompts, drawn.randint(1, 4))
        prompt = Prompt("filler", ({"role": "user", "content": " ".join(p.text for p in pieces)},))
        body = _body(server, prompt) | {"max_tokens": drawn.randint(1, 48), "temperature": 1.0}
        body.pop("prompt_logprobs", None)
        number += 1
        try:
            await post(http, _path(server), body, _headers(f"{run}-filler-{seed}-{number}"))
            pause = 0.0
        except ServerError:
            pause = _PAUSE_S  # a server that refuses must not be hammered
        await asyncio.sleep(pause)


async def _send_anyhow(http: httpx.AsyncClient, server: Server, prompt: Prompt, name: str) -> Answer:
    """Send a canary; where that fails, once more without log-probabilities, which are then not numbers."""
    answer = await _send(http, server, prompt, name)
    if not answer.error:
        return answer
    bare = await _send(http, server, prompt, f"{name}-bare", scored=False)
    return answer if bare.error else bare


async def _send(http: httpx.AsyncClient, server: Server, prompt: Prompt, name: str, *, scored: bool = True) -> Answer:
    prefix = "chatcmpl" if server.canaries.endpoint == "chat" else "cmpl"
    asked = f"{prefix}-{REQUEST_PREFIX}{name}"
    body = _body(server, prompt)
    if not scored:
        body = {key: value for key, value in body.items() if not key.endswith("logprobs")}
    try:
        reply = await post(http, _path(server), body, _headers(name))
        with shaped("an answer"):
            return _answer(reply, server)
    except ServerError as error:
        return Answer(asked, error=str(error))


def _run_id() -> str:
    return secrets.token_hex(4)


def _path(server: Server) -> str:
    return "/v1/chat/completions" if server.canaries.endpoint == "chat" else "/v1/completions"


def _headers(name: str) -> dict[str, str]:
    return {"X-Request-Id": f"{REQUEST_PREFIX}{name}"}


def _body(server: Server, prompt: Prompt) -> dict[str, Any]:
    chat = server.canaries.endpoint == "chat"
    body: dict[str, Any] = {
        "model": server.model,
        "temperature": 0,
        "seed": 0,
        "max_tokens": server.canaries.max_tokens,
        "ignore_eos": True,  # every canary decodes as many tokens as the others
        "return_token_ids": True,
        "cache_salt": secrets.token_urlsafe(32),
        "logprobs": True if chat else 0,
    }
    body |= {"messages": list(prompt.messages)} if chat else {"prompt": prompt.text}
    if server.prompt_logprobs:
        body["prompt_logprobs"] = 0
    return body


def _answer(reply: dict[str, Any], server: Server) -> Answer:
    choice = reply["choices"][0]
    asked = reply.get("prompt_token_ids") or choice.get("prompt_token_ids") or []
    scored = reply.get("prompt_logprobs") or choice.get("prompt_logprobs") or []
    texts, logprobs = _output(choice.get("logprobs"), server)
    ids = tuple(choice.get("token_ids") or (zlib.crc32(text.encode()) >> 1 for text in texts))
    return Answer(
        request_id=reply["id"],
        prompt_tokens=reply["usage"]["prompt_tokens"],
        prompt_digest=token_digest(asked) if asked else 0,
        prompt_logprob=tuple(_number(next(iter(one.values()))["logprob"]) if one else np.nan for one in scored),
        output=ids,
        output_logprob=tuple(_number(value) for value in logprobs) or (float("nan"),) * len(ids),
    )


def _output(logprobs: dict[str, Any] | None, server: Server) -> tuple[list[str], list[Any]]:
    """Return texts and log-probabilities of the output tokens; the two endpoints spell them differently."""
    if logprobs is None:
        return [], []
    if server.canaries.endpoint == "chat":
        return [t["token"] for t in logprobs["content"]], [t["logprob"] for t in logprobs["content"]]
    return logprobs["tokens"], logprobs["token_logprobs"]


def _number(value: float | None) -> float:
    return float("nan") if value is None else float(value)


def padded(rows: Sequence[Sequence[float]], fill: float, dtype: type) -> NDArray[Any]:
    """Return rows of different lengths as one array ``[n, longest]``.

    >>> padded([[1], [2, 3]], -1, np.int32).tolist()
    [[1, -1], [2, 3]]
    """
    out: NDArray[Any] = np.full((len(rows), max((len(row) for row in rows), default=0)), fill, dtype)
    for target, row in zip(out, rows, strict=True):
        target[: len(row)] = row
    return out
