"""The same exactness for other model families, for compiled code, and for models with more experts than a byte."""

from __future__ import annotations

from typing import Any

import pytest

from moe_watch import wire
from tests.real.support.exactness import (
    MOST_DIFFERENT,
    assert_adds_up,
    assert_counted_for_requests,
    random_prompts,
    serve,
    share_different,
)
from tests.real.support.families import Mixtral, Others
from tests.real.support.routing_reference import Reference
from tests.real.support.vllm_server import Tapped

pytestmark = pytest.mark.real


def assert_exact(tapped: Tapped, reference: Reference, record_property: Any) -> None:
    """Check counts at concurrency 1 and 32 against transformers."""
    for concurrency, requests in ((1, 8), (32, 48)):
        served = serve(tapped, random_prompts(requests, concurrency), concurrency)
        for one in served:
            assert_adds_up(one)
        share = share_different(reference, served)
        record_property(f"share_different_{concurrency}", share)
        assert share <= MOST_DIFFERENT


def assert_shape(tapped: Tapped, shape: tuple[int, int, int]) -> None:
    """Check layers, experts and top-k of the announced model."""
    model = tapped.collector.of(wire.Model)[0]
    assert (model.layers, model.experts, model.top_k) == shape


def test_counts_of_mixtral_are_those_of_transformers(mixtral: Mixtral, record_property: Any) -> None:
    """Nothing in the tap knows the family: layers, experts and top-k are the model's, counts exact."""
    assert_exact(mixtral.tapped, Reference(mixtral.path), record_property)
    assert_shape(mixtral.tapped, (2, 8, 2))


def test_counts_of_320_experts_are_those_of_transformers(others: Others, record_property: Any) -> None:
    """Qwen3-MoE with more experts than a byte can name."""
    assert_exact(others.qwen3, Reference(others.path), record_property)
    assert_shape(others.qwen3, (2, 320, 8))


def test_counts_of_compiled_code_are_those_of_transformers(
    others: Others, reference: Reference, record_property: Any
) -> None:
    """torch.compile changes nothing: not the counts, and not that its own warm-up is nobody's."""
    assert others.compiled.server.rpc("tap_state")["buffer"] == "StepBuffer"
    assert_exact(others.compiled, reference, record_property)
    (served,) = serve(others.compiled, [[2, *range(500, 899)]], 1)
    assert_adds_up(served)
    assert share_different(reference, [served]) <= MOST_DIFFERENT
    assert "Warming up model for the compilation" in others.compiled.server.log.read_text()
    assert_counted_for_requests(others.compiled)


def test_confidence_of_compiled_code_is_that_of_the_router(others: Others, reference: Reference) -> None:
    """The logits are heard in compiled code too."""
    (served,) = serve(others.compiled, [[2, *range(2000, 2080)]], 1)
    entropy, margin = reference.confidence(served.prompt, served.frame.cached_tokens)
    assert served.frame.entropy == pytest.approx(entropy.tolist(), rel=1e-3)
    assert served.frame.margin == pytest.approx(margin.tolist(), rel=1e-2)


def test_a_dense_model_is_recognised_as_having_no_experts(vllm_dense: Tapped) -> None:
    """It is said to be dense, not blind, and its requests have latencies and no routing."""
    reply = vllm_dense.server.chat("hello", max_tokens=4)
    vllm_dense.collector.wait(lambda: bool(vllm_dense.collector.by_id(wire.Latency, reply["id"])), "its latency")
    assert vllm_dense.collector.engine_health().state == "dense"
    assert vllm_dense.collector.of(wire.Model)[-1].layers == 0
    assert vllm_dense.collector.of(wire.Routing) == []
