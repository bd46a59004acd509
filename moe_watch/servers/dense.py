"""The dense model behind any OpenAI-compatible server: generate, and score a given text where the server can.

vLLM does everything. What others lack is found by asking once, and said: Ollama and TGI have no prompt
log-probabilities on their OpenAI routes and no ``/tokenize`` like vLLM's, so the likelihood gap, the share of tokens
ranked first and the agreement are not known there; the dense model's own output, defects, latency and the judge are.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx

from moe_watch.servers import client
from moe_watch.servers.client import UNKNOWN_SHAPE, RefusedError, ServerError, shaped
from moe_watch.servers.prometheus_text import samples
from moe_watch.servers.urls import why

_RUNNING = "vllm:num_requests_running"
_RUNNING_EVERY_S = 1.0
_PROBE = "The quick brown fox"


@dataclass(frozen=True)
class Abilities:
    """What the server can do, as found by ``probe``; ``lacks`` says in words what the shadow goes without."""

    model: str
    max_model_len: int | None
    scores: bool
    lacks: str = ""


@dataclass(frozen=True)
class Generated:
    """One output of the dense model; ``token_ids`` and ``logprobs`` (nats) without the stop token, where known."""

    text: str
    finish_reason: str
    prompt_ids: list[int] | None
    token_ids: list[int] | None
    logprobs: list[float] | None
    tokens: int
    ttft_s: float
    tpot_s: float | None


@dataclass(frozen=True)
class Scored:
    """Log-probability (nats) and rank (1: first choice) of each token of a given text."""

    logprobs: list[float]
    ranks: list[int]


@dataclass
class DenseClient:
    """Talks to one server; ``http`` has its base URL, bearer token and time limits."""

    http: httpx.AsyncClient
    model: str | None = None
    _anchor: list[int] = field(default_factory=list)
    _running: tuple[float, float | None] = (-_RUNNING_EVERY_S, None)

    async def probe(self) -> Abilities:
        """Ask the server what it serves and whether it can score; raise ``ServerError`` when it does not answer."""
        self.model, longest = await self.served()
        lacks = await self._lacks()
        return Abilities(self.model, longest, not lacks, lacks)

    async def served(self) -> tuple[str, int | None]:
        """Return the model that is asked for, or the first that the server lists, and its longest context if told."""
        try:
            with shaped("/v1/models"):
                listed = (await client.get(self.http, "/v1/models")).get("data") or [{}]
                named = next((entry for entry in listed if entry.get("id") == self.model), listed[0])
        except RefusedError as error:  # a wrong key or a wrong address: no request is to blame
            raise ServerError(f"the server does not say what it serves: {error}") from error
        model = self.model or named.get("id")
        if not model:
            raise ServerError("the server lists no model: name one in the settings")
        return model, named.get("max_model_len")

    async def _lacks(self) -> str:
        try:
            ids = await self.tokenize(_PROBE)
        except RefusedError:
            return "/tokenize"
        try:
            await self.score(ids[:1], ids[1:])
        except RefusedError:
            return "prompt_logprobs"
        return ""

    async def generate(self, endpoint: str, body: dict[str, Any]) -> Generated:
        """Return the model's own output for ``body`` (messages or prompt, and sampling parameters), timed here."""
        chat = endpoint.endswith("/chat/completions")
        extra = {"logprobs": True if chat else 0, "stream": True, "stream_options": {"include_usage": True}}
        parts = _Parts(chat=chat)
        started = time.perf_counter()
        wanted = {**body, **extra, "model": self.model, "return_token_ids": True}
        with shaped("an answer"):
            async for event in client.stream(self.http, endpoint, wanted):
                parts.add(event, time.perf_counter() - started)
        return parts.generated()

    async def tokenize(self, text: str) -> list[int]:
        """Return the ids of ``text`` as a continuation, without special tokens.

        Some tokenizers put a space before any text. The text is split behind a newline, whose own ids are taken away;
        where the newline would melt into it the text is split alone.
        """
        if not self._anchor:
            self._anchor = await self._ids({"prompt": "\n", "add_special_tokens": False})
        ids = await self._ids({"prompt": "\n" + text, "add_special_tokens": False})
        if ids[: len(self._anchor)] == self._anchor:
            return ids[len(self._anchor) :]
        return await self._ids({"prompt": text, "add_special_tokens": False})

    async def prompt_ids(self, endpoint: str, body: dict[str, Any]) -> list[int]:
        """Return the ids that the model sees before its first output token: the rendered chat, or the whole prompt."""
        if endpoint.endswith("/chat/completions"):
            return await self._ids({"messages": body["messages"], "add_generation_prompt": True})
        return await self._ids({"prompt": body["prompt"], "add_special_tokens": True})

    async def score(self, prompt_ids: Sequence[int], output_ids: Sequence[int]) -> Scored:
        """Return the model's log-probability and rank of each of ``output_ids`` after ``prompt_ids``."""
        ids = [*prompt_ids, *output_ids]
        body = {"model": self.model, "prompt": ids, "max_tokens": 1, "temperature": 0, "prompt_logprobs": 0}
        reply = await client.post(self.http, "/v1/completions", body)
        try:
            return _scored(reply["choices"][0].get("prompt_logprobs"), ids, len(prompt_ids))
        except UNKNOWN_SHAPE as error:
            raise RefusedError(f"prompt_logprobs of an unknown shape: {why(error)}") from error

    async def running(self) -> float | None:
        """Return how many requests the server runs, at most a second old; None where it does not tell."""
        now = time.monotonic()
        if now - self._running[0] >= _RUNNING_EVERY_S:
            self._running = (now, await self._read_running())
        return self._running[1]

    async def _read_running(self) -> float | None:
        try:
            found = samples((await self.http.get("/metrics")).text, _RUNNING)
        except (httpx.HTTPError, ValueError):
            return None
        running = sum(one.value for one in found)
        return running if found and math.isfinite(running) else None

    async def _ids(self, body: dict[str, Any]) -> list[int]:
        reply = await client.post(self.http, "/tokenize", {"model": self.model, **body})
        tokens = reply.get("tokens")
        if not isinstance(tokens, list):
            raise RefusedError("/tokenize answers without tokens")  # another server's route of the same name
        return tokens


def _scored(rows: Any, ids: Sequence[int], start: int) -> Scored:
    if rows is None or len(rows) != len(ids):
        raise RefusedError("the server gives no prompt_logprobs")
    tokens = [rows[i][str(ids[i])] for i in range(start, len(ids))]
    return Scored([float(t["logprob"]) for t in tokens], [int(t["rank"]) for t in tokens])


@dataclass
class _Parts:
    """Puts a streamed answer together."""

    chat: bool
    text: str = ""
    finish_reason: str = ""
    prompt_ids: list[int] | None = None
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    usage_tokens: int | None = None
    first_s: float | None = None
    last_s: float = 0.0

    def add(self, event: dict[str, Any], at_s: float) -> None:
        if "error" in event:
            raise ServerError("the stream broke with an error")
        self.prompt_ids = event.get("prompt_token_ids") or self.prompt_ids
        self.usage_tokens = (event.get("usage") or {}).get("completion_tokens", self.usage_tokens)
        for choice in event.get("choices") or ():
            self._choice(choice, at_s)

    def _choice(self, choice: dict[str, Any], at_s: float) -> None:
        self.prompt_ids = choice.get("prompt_token_ids") or self.prompt_ids  # completions say it here
        text = ((choice.get("delta") or {}).get("content") if self.chat else choice.get("text")) or ""
        logprobs = choice.get("logprobs") or {}
        found = [t["logprob"] for t in logprobs.get("content") or ()] if self.chat else logprobs.get("token_logprobs")
        ids = choice.get("token_ids") or []
        if text or found or ids:
            self.first_s = at_s if self.first_s is None else self.first_s
            self.last_s = at_s
        self.text += text
        self.token_ids += ids
        self.finish_reason = choice.get("finish_reason") or self.finish_reason
        ended = self.finish_reason == "stop" and not text and not ids  # the end-of-turn token is no part of the text
        self.logprobs += [] if ended else [float(logprob) for logprob in found or ()]

    def generated(self) -> Generated:
        if self.first_s is None and not self.finish_reason:
            raise ServerError("the stream ended without an answer")
        tokens = len(self.token_ids) or self.usage_tokens or len(self.logprobs)
        whole = tokens - (self.finish_reason == "stop" and len(self.token_ids) > 0)
        first = self.last_s if self.first_s is None else self.first_s
        return Generated(
            text=self.text,
            finish_reason=self.finish_reason,
            prompt_ids=self.prompt_ids,
            token_ids=self.token_ids[:whole] or None,
            logprobs=self.logprobs[:whole] or None,
            tokens=tokens,
            ttft_s=first,
            tpot_s=(self.last_s - first) / (tokens - 1) if tokens > 1 else None,
        )
