"""Static buffers that the forward pass writes every layer's chosen experts into, eager, compiled or in a CUDA graph."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

NOTHING = -1  # an id that no router gives: a row that no layer wrote in this step


def _store(topk_ids: torch.Tensor, ids: torch.Tensor, layer: int) -> None:
    """Copy ``topk_ids`` [tokens, top_k] into ``ids`` [layers, most tokens, top_k]."""
    ids[layer, : topk_ids.shape[0]].copy_(topk_ids)


def _store_fake(topk_ids: torch.Tensor, ids: torch.Tensor, layer: int) -> None:
    """Shapes only, for tracing."""


_LIBRARY = torch.library.Library("moe_watch", "FRAGMENT")
if not hasattr(torch.ops.moe_watch, "store"):
    _LIBRARY.define("store(Tensor topk_ids, Tensor(a!) ids, int layer) -> ()")
    _LIBRARY.impl("store", _store, dispatch_key="CompositeExplicitAutograd")
    _LIBRARY._register_fake("store", _store_fake)  # noqa: SLF001 - the only way for a Library op


class Capturer:
    """What ``bind_routed_experts_capturer`` binds; ``ids`` [layers, most tokens, top_k] is what the last step chose.

    ``device_buffer``, ``dp_rank`` and ``tp_size`` are what vLLM's own ``RoutedExpertsCapturer.capture`` works on: under
    data parallelism it finds this rank's rows.
    """

    def __init__(self, layer_ids: Sequence[int], tokens: int, top_k: int, device: torch.device) -> None:
        self.ids = torch.full((len(layer_ids), tokens, top_k), NOTHING, dtype=torch.int32, device=device)
        self.row_of = {layer: row for row, layer in enumerate(layer_ids)}

    def capture(self, layer_id: int, topk_ids: torch.Tensor) -> None:
        """Keep the expert ids [tokens, top_k] that layer ``layer_id`` chose; part of the traced graph."""
        if torch.compiler.is_compiling():
            torch.ops.moe_watch.store(topk_ids, self.ids, self.row_of[layer_id])
        else:
            _store(topk_ids, self.ids, self.row_of[layer_id])

    def reset(self, tokens: int) -> None:
        """Forget the last step, so that a layer that is not captured in the next one shows."""
        self.ids[:, :tokens].fill_(NOTHING)


def bind(model: torch.nn.Module, capturer: Capturer) -> None:
    """Attach ``capturer`` to the routers of ``model`` in vLLM's own way; raise ``ValueError`` where there is none."""
    from vllm.model_executor.layers.fused_moe.routed_experts_capturer import bind_routed_experts_capturer

    bind_routed_experts_capturer(model, capturer)


def unbind(model: torch.nn.Module) -> None:
    """Detach from every router, as far as eager code is concerned."""
    clear: Callable[[None], None] | None
    for module in model.modules():
        if hasattr(module, "capture_fn"):
            module.capture_fn = None
        clear = getattr(getattr(module, "router", None), "set_capture_fn", None)
        if clear is not None:
            clear(None)
