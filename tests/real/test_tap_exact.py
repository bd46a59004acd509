"""On a real server every routed token is counted, once, where transformers counts it."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
import pytest

from moe_watch import wire
from moe_watch.sidecar.join import Join
from tests.real.support.exactness import (
    MOST_DIFFERENT,
    Served,
    assert_adds_up,
    assert_counted_for_requests,
    random_prompts,
    serve,
    share_different,
)
from tests.real.support.routing_reference import Reference
from tests.real.support.vllm_server import Tapped

pytestmark = pytest.mark.real


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
    entropy, margin = reference.confidence(served.prompt, served.frame.cached_tokens)
    np.testing.assert_allclose(served.frame.entropy, entropy, rtol=1e-3)
    np.testing.assert_allclose(served.frame.margin, margin, rtol=1e-2)


def test_a_stop_token_is_not_routed(vllm_strict: Tapped) -> None:
    """A text that ends by a stop token has one routed token less than it has tokens, as any other."""
    probe = vllm_strict.server.complete([2, 600, 601, 602], max_tokens=8, return_token_ids=True)
    stop = probe["choices"][0]["token_ids"][3]
    served = serve(vllm_strict, [[2, 600, 601, 602]], 1, stop_token_ids=[stop])[0]
    assert len(served.output) <= 4
    assert_adds_up(served)


def continuation(vllm: Tapped, prompt: list[int], tokens: int) -> tuple[list[int], str]:
    """Return the greedy continuation of ``prompt`` as token ids and text."""
    choice = vllm.server.complete(prompt, max_tokens=tokens, return_token_ids=True, ignore_eos=True)["choices"][0]
    return choice["token_ids"], choice["text"]


def assert_counts_of_what_was_computed(
    vllm: Tapped, reference: Reference, prompt: list[int], frame: wire.Routing
) -> None:
    """Check an ended text by the continuation that nobody ended: as far as it was routed the two are one."""
    output, _ = continuation(vllm, prompt, frame.decode_routed + 1)
    served = Served(prompt, output, frame)
    assert_adds_up(served)
    assert share_different(reference, [served]) <= MOST_DIFFERENT


def test_a_stream_is_counted_like_a_whole_answer(vllm_strict: Tapped, reference: Reference) -> None:
    """Server-sent events change nothing."""
    prompt = [2, *range(700, 730)]
    events = list(vllm_strict.server.stream({"prompt": prompt, "max_tokens": 12, "return_token_ids": True}))
    output = [token for event in events for choice in event["choices"] for token in choice.get("token_ids") or []]
    (frame,) = vllm_strict.collector.routing(events[0]["id"])
    served = Served(prompt, output, frame)
    assert_adds_up(served)
    assert share_different(reference, [served]) <= MOST_DIFFERENT


def abandoned(vllm: Tapped) -> tuple[list[int], wire.Routing]:
    """Go away after five tokens of 450; again where a busy machine had computed them all before it saw that."""
    for first in range(800, 1200, 40):
        prompt = [2, *range(first, first + 40)]
        stream = vllm.server.stream({"prompt": prompt, "max_tokens": 450, "ignore_eos": True})
        events = [next(stream) for _ in range(5)]
        stream.close()
        (frame,) = vllm.collector.routing(events[0]["id"])
        if frame.outcome != "finished":
            return prompt, frame
    pytest.fail("ten clients went away, and all ten texts were computed to their end")


def test_a_client_that_goes_away_leaves_what_was_computed(vllm_strict: Tapped, reference: Reference) -> None:
    """The request is aborted; all positions that were computed until then are counted, none besides."""
    prompt, frame = abandoned(vllm_strict)
    assert frame.outcome == "aborted"
    assert 4 <= frame.decode_routed < 449
    assert_counts_of_what_was_computed(vllm_strict, reference, prompt, frame)
    name = frame.request_id
    vllm_strict.collector.wait(lambda: bool(vllm_strict.collector.by_id(wire.Request, name)), "the request's end")
    assert vllm_strict.collector.by_id(wire.Request, name)[0].disconnected


def test_a_stop_string_ends_a_text_as_a_client_does(vllm_strict: Tapped, reference: Reference) -> None:
    """The API server of vLLM sees it, and aborts in the engine what is computed no further."""
    prompt = [2, *range(900, 940)]
    _, text = continuation(vllm_strict, prompt, 40)
    stop = next(text[at : at + 4] for at in range(len(text) // 2, len(text) - 4) if text[at : at + 4].isascii())
    reply = vllm_strict.server.complete(prompt, max_tokens=60, ignore_eos=True, stop=[stop])
    assert reply["choices"][0]["finish_reason"] == "stop"
    (frame,) = vllm_strict.collector.routing(reply["id"])
    assert frame.outcome == "aborted"
    assert_counts_of_what_was_computed(vllm_strict, reference, prompt, frame)


def test_each_of_several_prompts_and_outputs_has_a_record(vllm_strict: Tapped, reference: Reference) -> None:
    """Three prompts with two outputs each are six choices, and join as six."""
    prompts = [[2, *range(first, first + 20)] for first in (1500, 1600, 1700)]
    asked = {"max_tokens": 8, "temperature": 0.9, "seed": 1, "n": 2, "return_token_ids": True}
    reply = vllm_strict.server.complete(prompts, **asked)
    frames = vllm_strict.collector.routing(reply["id"], choices=6)
    assert [frame.choice for frame in frames] == [0, 1, 128, 129, 256, 257]
    served = []
    for frame in frames:
        prompt, place = wire.place(frame.choice, 3, 6)
        served.append(Served(prompts[prompt], reply["choices"][place]["token_ids"], frame))
        assert_adds_up(served[-1])
    assert share_different(reference, served) <= MOST_DIFFERENT

    def parts() -> list[wire.AnyFrame]:
        return [f for f in vllm_strict.collector.frames if getattr(f, "request_id", "") == reply["id"]]

    vllm_strict.collector.wait(lambda: len(parts()) == 13, "six routings, six latencies, one request")
    assert vllm_strict.collector.by_id(wire.Request, reply["id"])[0].choices == 6
    joined = Join(60.0).add(parts(), 0.0)
    assert [(one.choice, one.complete) for one in joined] == [(frame.choice, True) for frame in frames]


def test_idle_steps_are_nobodys(vllm_strict: Tapped, reference: Reference) -> None:
    """What an idle data-parallel rank runs between the steps of requests is not counted."""
    stream = vllm_strict.server.stream({"prompt": [2, *range(40, 80)], "max_tokens": 60, "ignore_eos": True})
    name = next(stream)["id"]
    for _ in range(5):
        vllm_strict.server.rpc("execute_dummy_batch")
    left = list(stream)
    (frame,) = vllm_strict.collector.routing(name)
    assert len(left) > 1
    assert_counts_of_what_was_computed(vllm_strict, reference, [2, *range(40, 80)], frame)


def test_no_frame_has_anything_per_token(vllm_strict: Tapped) -> None:
    """Counts are one number per layer and expert, whatever the length of the text."""
    served = serve(vllm_strict, [[2, *range(3000, 3000 + length)] for length in (1, 300)], 1)
    for one in served:
        frame = one.frame
        fields = msgspec.to_builtins(frame, builtin_types=(bytes,))
        assert {key for key, value in fields.items() if isinstance(value, (list, dict, bytes))} == {
            *("prompt", "decode", "entropy", "margin"),
        }
        for counts in (frame.prompt, frame.decode):
            assert len(counts.data) == frame.layers * frame.experts * int(counts.dtype[1])
        assert len(frame.entropy or []) == len(frame.margin or []) == frame.layers
    assert {type(frame) for frame in vllm_strict.collector.frames} <= {
        *(wire.Model, wire.Routing, wire.Latency, wire.Request, wire.Event, wire.Health),
    }


def test_all_that_was_counted_belongs_to_a_request(vllm_strict: Tapped) -> None:
    """Nothing besides requests is in any sum."""
    assert_counted_for_requests(vllm_strict)


def test_memory_of_open_requests_is_given_back(vllm_strict: Tapped) -> None:
    """When all requests are over the tap holds none."""
    vllm_strict.collector.wait(lambda: vllm_strict.collector.engine_health().requests_open == 0, "no open requests")
    health = vllm_strict.collector.engine_health()
    assert health.state == "on"
    assert health.requests_unrouted == 0
    assert health.errors == 0
