"""On a real server every routed token is counted, once, where transformers counts it."""

from __future__ import annotations

import random
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from moe_watch import wire
from tests.real.routing_reference import Reference
from tests.real.vllm_server import Tapped

pytestmark = pytest.mark.real

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


@pytest.mark.parametrize("concurrency", [1, 32])
def test_counts_are_those_of_transformers(
    vllm_strict: Tapped, reference: Reference, concurrency: int, record_property: Any
) -> None:
    """One at a time and 32 at once, every layer counts what transformers chooses, position by position."""
    served = serve(vllm_strict, random_prompts(12 if concurrency == 1 else 64, concurrency), concurrency)
    for one in served:
        assert_adds_up(one)
    share = share_different(reference, served)
    record_property("share_different", share)
    assert share <= MOST_DIFFERENT


def test_preempted_requests_count_each_position_once(vllm_strict: Tapped) -> None:
    """When memory runs out vLLM computes texts again; the second time is told apart and not counted."""
    served = serve(vllm_strict, random_prompts(32, 7, longest=20), 32, tokens=100, ignore_eos=True)
    for one in served:
        assert_adds_up(one)
    assert sum(one.frame.recomputed_tokens for one in served) > 0, "no request was preempted: the test proves nothing"


def test_a_prompt_longer_than_a_step_is_all_counted(vllm_strict: Tapped, reference: Reference) -> None:
    """A prompt of 400 tokens is computed 64 at a time."""
    (served,) = serve(vllm_strict, [[2, *range(500, 899)]], 1)
    assert_adds_up(served)
    assert served.frame.prompt_routed == 400
    assert share_different(reference, [served]) <= MOST_DIFFERENT


def test_cached_positions_are_not_routed_and_said_to_be_cached(vllm_strict: Tapped, reference: Reference) -> None:
    """The same prompt again is routed only from where the prefix cache ends."""
    prompt = [2, *range(1000, 1099)]
    first, second = serve(vllm_strict, [prompt], 1)[0], serve(vllm_strict, [prompt], 1)[0]
    assert first.frame.cached_tokens == 0
    assert second.frame.cached_tokens >= 32
    assert_adds_up(second)
    assert share_different(reference, [second]) <= MOST_DIFFERENT


def test_confidence_is_that_of_the_router(vllm_strict: Tapped, reference: Reference) -> None:
    """Mean entropy and margin over the prompt are those of the softmax that transformers computes."""
    (served,) = serve(vllm_strict, [[2, *range(2000, 2080)]], 1)
    entropy, margin = reference.confidence(served.prompt, served.frame.cached_tokens, len(served.prompt))
    np.testing.assert_allclose(served.frame.entropy, entropy, rtol=1e-3)
    np.testing.assert_allclose(served.frame.margin, margin, rtol=1e-2)


def test_a_stop_token_is_not_routed(vllm_strict: Tapped) -> None:
    """A text that ends by a stop token has one routed token less than it has tokens, as any other."""
    probe = vllm_strict.server.complete([2, 600, 601, 602], max_tokens=8, return_token_ids=True)
    stop = probe["choices"][0]["token_ids"][3]
    served = serve(vllm_strict, [[2, 600, 601, 602]], 1, stop_token_ids=[stop])[0]
    assert len(served.output) <= 4
    assert_adds_up(served)


def test_memory_of_open_requests_is_given_back(vllm_strict: Tapped) -> None:
    """When all requests are over the tap holds none."""
    vllm_strict.collector.wait(
        lambda: vllm_strict.collector.engine_health().requests_open == 0, "no open requests", timeout_s=20
    )
    health = vllm_strict.collector.engine_health()
    assert health.state == "on"
    assert health.requests_unrouted == 0
    assert health.errors == 0
