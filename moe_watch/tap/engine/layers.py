"""The MoE layers of a loaded model, whatever its family, and vLLM's own way to listen to them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

import torch

from moe_watch.tap.engine.capture import Capturer, keep_for_good
from moe_watch.tap.engine.counts import Shape

_MOST_LOGITS: Final = 256 * 1024 * 1024  # bytes of device memory


def find(model: torch.nn.Module) -> list[Any]:
    """Return the modules that route tokens to experts, in their order."""
    from vllm.model_executor.layers.fused_moe.layer import MoERunner
    from vllm.model_executor.layers.fused_moe.routed_experts_capturer import (
        RoutedExpertsCaptureSource,
    )

    return [module for module in model.modules() if isinstance(module, (MoERunner, RoutedExpertsCaptureSource))]


def shape(layers: Sequence[Any], config: Any) -> Shape:
    """Return layers, experts and top-k; raise ``ValueError`` when the layers differ."""
    model = config.model_config
    kinds = {
        (moe.num_logical_experts, moe.experts_per_token)
        if (moe := getattr(layer, "moe_config", None)) is not None
        else (model.get_num_experts(), model.get_num_experts_per_tok())
        for layer in layers
    }
    if len(kinds) > 1:
        raise ValueError(f"layers of different shapes (experts, top-k): {sorted(kinds)}")
    experts, top_k = kinds.pop()
    return Shape(len(layers), experts, top_k)


def bind(model: torch.nn.Module, capturer: Capturer, config: Any) -> None:
    """Have every router of ``model`` tell ``capturer``; raise ``ValueError`` where one cannot."""
    from vllm.model_executor.layers.fused_moe.routed_experts_capturer import (
        bind_routed_experts_capturer,
    )

    parallel = config.parallel_config
    one_rank = parallel.data_parallel_size == 1
    listener = capturer if one_rank else _OfRank(capturer, parallel)
    bind_routed_experts_capturer(model, _Unfelt(capturer, listener))
    for layer in find(model):
        if (sink := _sink(layer)) is not None:
            keep_for_good(sink)


def bind_logits(layers: Sequence[Any], capturer: Capturer, shape: Shape, config: Any) -> bool:
    """Have every router show ``capturer`` its logits; return False where one cannot, or they would be too large."""
    from vllm.model_executor.layers.fused_moe.router.base_router import BaseRouter

    dtype = getattr(getattr(layers[0], "moe_config", None), "router_logits_dtype", None) or config.model_config.dtype
    size = shape.layers * capturer.rows * shape.experts * dtype.itemsize
    routers = [getattr(layer, "router", None) for layer in layers]
    plain = all(isinstance(router, BaseRouter) for router in routers)
    monolithic = any(getattr(layer, "is_monolithic", True) for layer in layers)
    if not plain or monolithic or size > _MOST_LOGITS or config.parallel_config.data_parallel_size > 1:
        return False
    capturer.keep_logits(shape.experts, dtype)
    for layer, router in zip(layers, routers, strict=True):
        _show_logits(router, capturer, capturer.row_of[layer.layer_id])
    return True


def release(model: torch.nn.Module) -> None:
    """Let go of every router, as far as eager code is concerned."""
    for module in find(model):
        router = getattr(module, "router", None)
        if hasattr(module, "capture_fn"):
            module.capture_fn = None
        if _sink(module) is not None:
            module.routed_experts.routing_sink = None
        if router is not None:
            router.set_capture_fn(None)
            router.__dict__.pop("_compute_routing", None)


def _sink(layer: Any) -> Any:
    """Return what a monolithic kernel of ``layer`` writes its choices to, None where it has none."""
    return getattr(getattr(layer, "routed_experts", None), "routing_sink", None)


def _show_logits(router: Any, capturer: Capturer, row: int) -> None:
    logits: Any = capturer.logits
    compute: Callable[..., Any] = router._compute_routing  # noqa: SLF001 - the one place that all routers pass

    def compute_and_show(hidden_states: Any, router_logits: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            logits.write(router_logits, row)
        except Exception:  # noqa: BLE001 - inside the forward pass: whatever it is, serving goes on
            capturer.failed = True
        return compute(hidden_states, router_logits, *args, **kwargs)

    router._compute_routing = compute_and_show  # noqa: SLF001


class _Unfelt:
    """What is bound: a failure to listen is noted for the tap, and not felt by the forward pass."""

    def __init__(self, capturer: Capturer, listener: Any) -> None:
        self._capturer = capturer
        self._listener = listener

    def capture(self, layer_id: int, topk_ids: torch.Tensor) -> None:
        """Pass it on; part of the traced graph."""
        try:
            self._listener.capture(layer_id, topk_ids)
        except Exception:  # noqa: BLE001 - whatever it is, serving goes on
            self._capturer.failed = True


class _OfRank:
    """Under data parallelism: vLLM's own code finds this rank's rows in any of the layouts that it documents."""

    def __init__(self, capturer: Capturer, parallel: Any) -> None:
        self.row_of = capturer.row_of
        self.device_buffer: torch.Tensor = capturer.ids.all.transpose(0, 1)  # type: ignore[union-attr]
        self.dp_rank = parallel.data_parallel_rank
        self.tp_size = parallel.tensor_parallel_size

    def capture(self, layer_id: int, topk_ids: torch.Tensor) -> None:
        """Keep this rank's rows of ``topk_ids``."""
        from vllm.model_executor.layers.fused_moe.routed_experts_capturer import (
            RoutedExpertsCapturer,
        )

        RoutedExpertsCapturer.capture(self, self.row_of[layer_id], topk_ids)
