"""Checkpoints with random weights of other shapes and families, made on demand for tests and for size and speed."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import torch
from transformers import (
    Gemma4ForCausalLM,
    Gemma4TextConfig,
    MixtralConfig,
    MixtralForCausalLM,
    PreTrainedModel,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

TOKENIZER = Path(__file__).parent / "models" / "moe"
VOCABULARY = 4096
COMMON = {
    "vocab_size": VOCABULARY,
    "max_position_embeddings": 2048,
    "pad_token_id": 0,
    "bos_token_id": 2,
    "eos_token_id": [1, 5],
    "num_key_value_heads": 2,
    "head_dim": 32,
}
TINY = {**COMMON, "hidden_size": 64, "num_attention_heads": 2, "num_hidden_layers": 2}


def make(kind: str, path: Path, seed: int = 0) -> Path:
    """Write the checkpoint ``kind`` with the demo's tokenizer to ``path``; raise ``KeyError`` for an unknown kind.

    Router weights get a spread, so that tokens prefer experts as in a trained model and ties are rare.
    """
    torch.manual_seed(seed)
    model = KINDS[kind]()
    for name, parameter in model.named_parameters():
        if name.endswith(("router.proj.weight", "mlp.gate.weight", "block_sparse_moe.gate.weight")):
            torch.nn.init.normal_(parameter)
    model.to(torch.bfloat16).save_pretrained(path)
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(TOKENIZER / file, path / file)
    return path


def _gemma4(**shape: object) -> PreTrainedModel:
    small = {"global_head_dim": 32, "hidden_size_per_layer_input": 0, "num_kv_shared_layers": 0}
    return Gemma4ForCausalLM(Gemma4TextConfig(**{**TINY, **small, **shape}))


def gemma4_30x128() -> PreTrainedModel:
    """30 layers of 128 experts, top-8: the routing shape of gemma-4-26B-A4B, with few parameters."""
    return _gemma4(
        num_hidden_layers=30,
        intermediate_size=64,
        enable_moe_block=True,
        num_experts=128,
        top_k_experts=8,
        moe_intermediate_size=32,
    )


def gemma4_dense() -> PreTrainedModel:
    """Gemma-4 without experts."""
    return _gemma4(intermediate_size=128, layer_types=["sliding_attention", "full_attention"])


def mixtral() -> PreTrainedModel:
    """Mixtral's 8 experts, top-2."""
    return MixtralForCausalLM(MixtralConfig(**TINY, intermediate_size=64, num_local_experts=8, num_experts_per_tok=2))


def qwen3_moe(experts: int = 24, top_k: int = 6) -> PreTrainedModel:
    """Qwen3-MoE, which normalises the weights of the chosen experts."""
    sparse = {"num_experts": experts, "num_experts_per_tok": top_k, "moe_intermediate_size": 32, "norm_topk_prob": True}
    return Qwen3MoeForCausalLM(Qwen3MoeConfig(**TINY, **sparse, intermediate_size=64))


def many_experts() -> PreTrainedModel:
    """More experts than a byte can name."""
    return qwen3_moe(experts=320, top_k=8)


KINDS: dict[str, Callable[[], PreTrainedModel]] = {
    "gemma4-30x128": gemma4_30x128,
    "gemma4-dense": gemma4_dense,
    "mixtral": mixtral,
    "qwen3-moe": qwen3_moe,
    "many-experts": many_experts,
}
