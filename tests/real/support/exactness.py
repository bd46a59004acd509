"""Requests to a real server with the routing that the tap counted, and how that compares with transformers."""

from __future__ import annotations

import random
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np

from moe_watch import wire
from tests.real.support.routing_reference import Reference
from tests.real.support.vllm_server import Tapped

MOST_DIFFERENT = 0.001  # share of expert choices that may differ in float32: ties and the order of additions


@dataclass
class Served:
    """One text that the server completed, and the routing frame of it."""

    prompt: list[int]
    output: list[int]
    frame: wire.Routing

    @property
    def counts(self) -> tuple[Any, Any]:
        """Return the counts of the prompt and of decoding."""
        frame = self.frame
        return tuple(wire.unpack_counts(part, frame.layers, frame.experts) for part in (frame.prompt, frame.decode))


def serve(tapped: Tapped, prompts: list[list[int]], concurrency: int, *, tokens: int = 24, **body: Any) -> list[Served]:
    """Complete ``prompts`` and return them with their routing."""

    def one(prompt: list[int]) -> tuple[list[int], list[int], str]:
        reply = tapped.server.complete(prompt, max_tokens=tokens, return_token_ids=True, **body)
        return prompt, reply["choices"][0]["token_ids"], reply["id"]

    with ThreadPoolExecutor(concurrency) as pool:
        done = list(pool.map(one, prompts))
    return [Served(prompt, output, tapped.collector.routing(name)[0]) for prompt, output, name in done]


def random_prompts(n: int, seed: int, longest: int = 150) -> list[list[int]]:
    """Return ``n`` prompts of random token ids, some longer than a step may be."""
    generator = random.Random(seed)  # noqa: S311
    return [[2, *generator.choices(range(300, 4000), k=generator.randint(1, longest))] for _ in range(n)]


def assert_adds_up(served: Served) -> None:
    """Check that every layer counted each routed position top-k times, and that all positions are accounted for."""
    frame = served.frame
    prompt, decode = served.counts
    assert (prompt.sum(1) == frame.prompt_routed * frame.top_k).all()
    assert (decode.sum(1) == frame.decode_routed * frame.top_k).all()
    assert frame.prompt_tokens == len(served.prompt)
    assert frame.prompt_routed + frame.cached_tokens == len(served.prompt)
    assert frame.decode_routed == len(served.output) - 1, "the last sampled token is never routed"


def assert_counted_for_requests(tapped: Tapped) -> None:
    """Check that all tokens that were ever counted are in a frame: warm-up and profiling are not."""

    def total() -> int:
        return sum(frame.prompt_routed + frame.decode_routed for frame in tapped.collector.of(wire.Routing))

    tapped.collector.wait(
        lambda: tapped.collector.engine_health().routed_tokens == total(), "a health that agrees with the frames"
    )


def share_different(reference: Reference, served: list[Served]) -> float:
    """Return the share of expert choices that transformers makes otherwise."""
    different = total = 0
    for one in served:
        text, end = one.prompt + one.output, len(one.prompt)
        cached = one.frame.cached_tokens
        expected = reference.counts(text, cached, end), reference.counts(text, end, len(text) - 1)
        for ours, theirs in zip(one.counts, expected, strict=True):
            different += int(np.abs(ours.astype(int) - theirs.astype(int)).sum()) // 2
            total += int(theirs.sum())
    return different / total
