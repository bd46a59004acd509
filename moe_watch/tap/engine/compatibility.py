"""What the tap cannot watch exactly, and so refuses, with the reason that the operator reads."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

TESTED = "0.32"


def refusal(config: Any, device: str, version: str) -> str:
    """Return why a vLLM so configured is refused, or ""."""
    parallel, cache = config.parallel_config, config.cache_config
    reasons = {
        f"vLLM {version}: this moe-watch knows {TESTED}": not version.startswith(f"{TESTED}."),
        f"device {device}": device not in {"cpu", "cuda"},
        "speculative decoding: rejected positions cannot be told apart": config.speculative_config is not None,
        "a diffusion model: positions are computed many times": config.model_config.is_diffusion,
        "pipeline parallelism: a stage sees only its own layers": parallel.pipeline_parallel_size > 1,
        "prefill context parallelism: a rank sees only its part of a prompt": (
            parallel.prefill_context_parallel_size > 1
        ),
        "micro-batches (DBO): a layer runs twice a step": parallel.use_ubatching,
        "KV-sharing fast prefill: late layers skip prompt tokens": cache.kv_sharing_fast_prefill,
        "vLLM's own --enable-return-routed-experts holds the capture slot": (
            config.aux_output_config.enable_return_routed_experts
        ),
        "data parallelism on a CPU needs --enforce-eager": (
            device == "cpu" and parallel.data_parallel_size > 1 and config.compilation_config.mode != 0
        ),
    }
    return next((reason for reason, holds in reasons.items() if holds), "")


def layers_refusal(layers: Sequence[Any]) -> str:
    """Return why a model with these MoE layers is refused, or ""."""
    numbers = [layer.layer_id for layer in layers]
    if len(set(numbers)) < len(numbers):
        return "one layer has more than one set of experts"
    for layer in layers:
        if getattr(getattr(layer, "moe_config", None), "is_sequence_parallel", False):
            return "sequence-parallel MoE: a rank sees only its part of the tokens"
        router = type(getattr(layer, "router", None)).__name__
        if router == "ZeroExpertRouter":
            return f"{router} shows a token without expert as one of expert 0"
    return ""
