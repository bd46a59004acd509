"""KV-cache memory from a config: by hand, against vLLM's own grouping, and what fits."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moe_watch.servers import kv_cache
from moe_watch.servers.kv_cache import ConfigError, Layer

GIB = 2**30
FIVE_TO_ONE = ["sliding_attention"] * 5 + ["full_attention"]
# Shapes of the published Gemma 4 checkpoints, as in transformers' convert_gemma4_weights.py.
MOE_26B: dict[str, Any] = {
    "num_hidden_layers": 30,
    "layer_types": FIVE_TO_ONE * 5,
    "hidden_size": 2816,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 256,
    "num_global_key_value_heads": 2,
    "global_head_dim": 512,
    "sliding_window": 1024,
}
DENSE_31B = {
    **MOE_26B,
    "num_hidden_layers": 60,
    "layer_types": FIVE_TO_ONE * 10,
    "hidden_size": 5376,
    "num_attention_heads": 32,
    "num_key_value_heads": 16,
    "num_global_key_value_heads": 4,
}
MIXTRAL = {
    "num_hidden_layers": 32,
    "hidden_size": 4096,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "sliding_window": None,
}
DEEPSEEK = {"num_hidden_layers": 61, "kv_lora_rank": 512, "qk_rope_head_dim": 64, "num_attention_heads": 128}


def needed(config: dict[str, Any], tokens: int, **how: int) -> int:
    return kv_cache.needed_bytes(kv_cache.layers(config), tokens, **how)


def test_gemma_26b_by_hand() -> None:
    """5 full layers x 2 x 2 heads x 512 x 2 bytes x 131,072 tokens, and 25 sliding ones x 8,192 bytes x 1,024."""
    assert needed(MOE_26B, 131_072) == 5 * 4096 * 131_072 + 25 * 8192 * 1024


def test_gemma_31b_by_hand() -> None:
    """At 128K the 31B keeps 10.8 GiB; were all of its layers full it would be 110 GiB."""
    assert needed(DENSE_31B, 131_072) == 10 * 8192 * 131_072 + 50 * 16_384 * 1024
    all_full = {**DENSE_31B, "layer_types": None, "sliding_window": None}
    assert needed(all_full, 131_072) == 60 * 16_384 * 131_072


def test_other_families_by_hand() -> None:
    """Mixtral keeps 128 KiB a token, DeepSeek's latent cache 70 KB; the image model's text config is looked into."""
    assert needed(MIXTRAL, 1) == 32 * 2 * 8 * 128 * 2
    assert needed(DEEPSEEK, 1000) == 61 * (512 + 64) * 2 * 1000
    assert needed({"text_config": MIXTRAL, "vision_config": {}}, 1) == needed(MIXTRAL, 1)


def test_dtype_ranks_and_sharing() -> None:
    """An FP8 cache halves it, four ranks quarter it until heads run out, layers that share another's keep none."""
    assert needed(MIXTRAL, 10, dtype_bytes=kv_cache.dtype_bytes("fp8")) * 2 == needed(MIXTRAL, 10)
    assert needed(MIXTRAL, 10, ranks=4) * 4 == needed(MIXTRAL, 10)
    assert needed(MIXTRAL, 10, ranks=16) == needed(MIXTRAL, 10, ranks=8)
    assert len(kv_cache.layers({**MOE_26B, "num_kv_shared_layers": 12})) == 18


def test_single_layers_may_differ() -> None:
    """Odd layers are named by zero-padded number, as transformers 5 writes them."""
    config = {**MIXTRAL, "head_dim": 32, "per_layer_config": {"05": {"head_dim": 64, "num_key_value_heads": 4}}}
    assert kv_cache.layers(config)[5] == Layer(4, 64)
    assert kv_cache.layers(config)[4] == Layer(8, 32)


@pytest.mark.parametrize(
    ("change", "said"),
    [({"layer_types": ["linear_attention"] * 30}, "linear_attention"), ({"hidden_size": None}, "hidden")],
)
def test_what_cannot_be_predicted_is_said(change: dict[str, Any], said: str) -> None:
    """State-space layers and missing fields are errors with a name, not a wrong number."""
    with pytest.raises(ConfigError, match=said):
        kv_cache.layers({**MOE_26B, "head_dim": None, **change})
    with pytest.raises(ConfigError, match="nf4"):
        kv_cache.dtype_bytes("nf4")


@given(st.sampled_from([MOE_26B, DENSE_31B, MIXTRAL]), st.integers(1, 262_144), st.sampled_from([0, 2048, 16_384]))
def test_vllm_takes_at_least_what_is_needed(config: dict[str, Any], tokens: int, in_flight: int) -> None:
    """Whole blocks are never smaller than their contents, and longer requests never take fewer."""
    of = kv_cache.layers(config)
    laid = kv_cache.plan(of, in_flight=in_flight)
    assert laid.bytes(tokens) >= kv_cache.needed_bytes(of, tokens)
    assert laid.blocks(tokens + 1) >= laid.blocks(tokens)


@given(st.integers(0, 100_000))
def test_admissible_is_the_longest_that_fits(free: int) -> None:
    """The answer fits and one token more does not, unless it is the model's own limit."""
    laid = kv_cache.plan(kv_cache.layers(DENSE_31B), in_flight=2048)
    longest = laid.admissible(free, 262_144)
    assert longest == 0 or laid.blocks(longest) <= free
    assert longest == 262_144 or laid.blocks(longest + 1) > free


@pytest.mark.parametrize("config", [MOE_26B, DENSE_31B], ids=["26B-A4B", "31B"])
def test_groups_are_vllms_own(config: dict[str, Any]) -> None:
    """Given the same layers, vLLM's grouping code makes the same groups with the same blocks."""
    utils = pytest.importorskip("vllm.v1.core.kv_cache_utils")
    interface = pytest.importorskip("vllm.v1.kv_cache_interface")
    torch = pytest.importorskip("torch")
    of = kv_cache.layers(config)
    specs = {}
    for index, layer in enumerate(of):
        shape = {"block_size": 16, "num_kv_heads": layer.heads, "head_size": layer.size, "dtype": torch.bfloat16}
        specs[f"layers.{index}"] = (
            interface.FullAttentionSpec(**shape)
            if layer.window is None
            else interface.SlidingWindowSpec(**shape, sliding_window=layer.window)
        )
    theirs = utils._get_kv_cache_groups_uniform_page_size(utils.unify_kv_cache_spec_page_size(specs))
    ours = kv_cache.plan(of)
    assert sorted(group.block_tokens for group in ours.groups) == sorted(
        group.kv_cache_spec.block_size for group in theirs
    )
    assert ours.block_bytes == max(len(group.layer_names) * group.kv_cache_spec.page_size_bytes for group in theirs)
