"""What is being served: the ``Model`` frame."""

from __future__ import annotations

from typing import Any

from moe_watch import __version__, wire
from moe_watch.tap.counts import Shape
from moe_watch.tap.sender import Build, Header


def served_name(config: Any) -> str:
    """Return the name that clients use for the model."""
    name = config.model_config.served_model_name or config.model_config.model
    return str(name if isinstance(name, str) else name[0])


def announce(config: Any, shape: Shape | None, layer_ids: list[int], runner: str, backend: str) -> Build:
    """Return the making of the ``Model`` frame of a loaded model; ``shape`` is None for a dense one."""
    import vllm

    parallel = config.parallel_config
    model = config.model_config
    fields: dict[str, Any] = {
        "model": served_name(config),
        "revision": model.revision or "",
        "architecture": (model.architectures or [""])[0],
        "layer_ids": layer_ids,
        "vllm_version": vllm.__version__,
        "tap_version": __version__,
        "runner": runner,
        "moe_backend": backend,
        "quantization": model.quantization or "",
        "dtype": str(model.dtype).removeprefix("torch."),
        "parallel": {
            "tp": parallel.tensor_parallel_size,
            "pp": parallel.pipeline_parallel_size,
            "dp": parallel.data_parallel_size,
        },
        "eplb": parallel.enable_eplb,
        "max_model_len": model.max_model_len,
        "max_num_batched_tokens": config.scheduler_config.max_num_batched_tokens,
    }
    if shape is not None:
        fields |= {"layers": shape.layers, "experts": shape.experts, "top_k": shape.top_k}

    def build(header: Header) -> wire.Model:
        return wire.Model(**header, **fields)

    return build
