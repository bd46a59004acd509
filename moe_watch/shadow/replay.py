"""One sampled request through the dense model: its own output, and how likely it finds the MoE's."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from moe_watch.servers.client import RefusedError
from moe_watch.servers.dense import Abilities, DenseClient, Generated, Scored
from moe_watch.shadow import signals
from moe_watch.shadow.likelihood import agreement, nll, top1
from moe_watch.store.records.shadows import Pending
from moe_watch.store.schema import Shadow

_SAMPLING = ("temperature", "top_p", "top_k", "min_p", "seed", "presence_penalty", "frequency_penalty")
_JSON_TYPES = ("json_object", "json_schema")
_ENDPOINTS = ("/v1/chat/completions", "/v1/completions")


@dataclass(frozen=True)
class Replay:
    """What the dense model said of one request; ``tokens`` is what it cost, for the budget."""

    row: Shadow
    tokens: int
    dense_text: str = ""


def unsupported(request: Pending, abilities: Abilities) -> str:
    """Return why ``request`` cannot be replayed fairly, or nothing."""
    if request.endpoint not in _ENDPOINTS:
        return "endpoint"
    if request.images:
        return "images"  # only text is sampled: the dense model would not see them
    if request.prompt_truncated or request.output_truncated:
        return "truncated"
    if request.params.get("response_format") == "json_schema":
        return "schema"  # only its kind is sampled: the dense model would be free where the MoE was held to a schema
    if not request.output.strip():
        return "empty"
    longest = abilities.max_model_len
    return "too long" if longest and request.prompt_tokens + request.output_tokens >= longest else ""


def cost(request: Pending) -> int:
    """Return the tokens that a replay is expected to take: the prompt twice, both outputs."""
    return 2 * (request.prompt_tokens + request.output_tokens)


def asked(request: Pending) -> str:
    """Return what was written to the model: the texts of a chat's messages without JSON's own words around them."""
    if not request.endpoint.endswith("/chat/completions"):
        return request.prompt
    try:
        told = [str(message["content"]) for message in json.loads(request.prompt)]
    except (ValueError, KeyError, TypeError, RecursionError):
        return request.prompt
    return "\n".join(told).replace("[image]", "")  # as the tap writes an image


def garbled(request: Pending, length_factor: float = 1.0) -> list[str]:
    """Return the defects of the MoE's output."""
    return signals.defects(
        request.output,
        prompt=asked(request),
        wants_json=_wants_json(request),
        cut=request.finish_reason == "length" or request.output_truncated,
        corrupted=request.corrupted,
        length_factor=length_factor,
    )


def unreplayed(request: Pending, outcome: str, *, at: float, weight: float) -> Shadow:
    """Return the row of a request that only the reference-free signals looked at."""
    row = _row(request, outcome, at=at, weight=weight)
    row.defects = {"moe": garbled(request)}
    return row


async def replay(client: DenseClient, abilities: Abilities, request: Pending, *, at: float, weight: float) -> Replay:
    """Replay ``request``; raise ``ServerError`` when the server is in trouble, ``RefusedError`` when it will not."""
    body = _body(request, abilities)
    running = await client.running()
    own = await client.generate(request.endpoint, body)
    row = _row(request, "unscored", at=at, weight=weight)
    row.dense_model = abilities.model
    row.dense_ttft_s, row.dense_tpot_s = own.ttft_s, own.tpot_s
    row.dense_concurrency = None if running is None else running + 1
    row.dense_tokens, row.nll_dense_output = own.tokens, nll(own.logprobs or [])
    tokens = request.prompt_tokens + own.tokens
    if abilities.scores:
        tokens += await _score(client, request, body, own, row)
    _compare_texts(request, own, row)
    return Replay(row, tokens, own.text)


async def _score(client: DenseClient, request: Pending, body: dict[str, Any], own: Generated, row: Shadow) -> int:
    """Fill in the likelihood measures; return the tokens it took."""
    prompt = own.prompt_ids or await client.prompt_ids(request.endpoint, body)
    output = await client.tokenize(request.output)
    if not output:
        return 0
    scored = await client.score(prompt, output)
    dense = await _own(client, prompt, own)
    row.outcome = "scored"
    row.moe_tokens, row.nll_moe_output, row.top1 = len(output), nll(scored.logprobs), top1(scored)
    row.nll_dense_output = nll(dense.logprobs)
    if request.params.get("temperature") == 0:
        row.agreement = agreement(output, await client.tokenize(own.text))
    return len(prompt) + len(output)


async def _own(client: DenseClient, prompt: list[int], own: Generated) -> Scored:
    """Return the scores of the dense model's output split as the MoE's was.

    A model may sample tokens that its tokenizer would not have chosen for the same text, and those are less likely:
    only the same splitting on both sides makes the gap fair. Mostly they are the same and nothing is asked.
    """
    ids = await client.tokenize(own.text)
    if ids == own.token_ids and own.logprobs is not None:
        return Scored(own.logprobs, [])
    return await client.score(prompt, ids) if ids else Scored([], [])


def _compare_texts(request: Pending, own: Generated, row: Shadow) -> None:
    cut = own.finish_reason == "length"
    both_ended = not cut and request.finish_reason == "stop"
    moe_tokens = row.moe_tokens or request.output_tokens
    factor = max(moe_tokens, 1) / max(own.tokens, 1) if both_ended and max(moe_tokens, own.tokens) >= 32 else 1.0
    dense = signals.defects(own.text, prompt=asked(request), wants_json=_wants_json(request), cut=cut)
    row.defects = {"moe": garbled(request, factor), "dense": dense}


def _body(request: Pending, abilities: Abilities) -> dict[str, Any]:
    """Return the request as the client made it, as far as it was sampled, with room to answer four times longer."""
    body = {name: request.params[name] for name in _SAMPLING if request.params.get(name) is not None}
    most = 4 * request.output_tokens + 64
    asked = request.params.get("max_tokens")
    if isinstance(asked, int) and not isinstance(asked, bool):
        most = min(most, asked)
    if abilities.max_model_len:
        most = min(most, abilities.max_model_len - request.prompt_tokens - 1)
    body["max_tokens"] = max(most, 1)
    if request.params.get("response_format") == "json_object":
        body["response_format"] = {"type": "json_object"}
    if request.endpoint == "/v1/completions":
        return {**body, "prompt": request.prompt}
    try:
        messages = json.loads(request.prompt)
    except ValueError as error:
        raise RefusedError("the sampled messages are not JSON") from error
    return {**body, "messages": messages}


def _wants_json(request: Pending) -> bool:
    return request.params.get("response_format") in _JSON_TYPES


def _row(request: Pending, outcome: str, *, at: float, weight: float) -> Shadow:
    return Shadow(
        request_pk=request.request_pk,
        at=at,
        outcome=outcome,
        sample_weight=1 / request.sample_rate,
        weight=weight,
        dense_model="",
        defects={},
    )
