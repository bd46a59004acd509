"""Numerics that depend on the batch, as on a GPU: every matrix product is summed in two parts, split at random.

vLLM on a CPU is deterministic to the bit in nearly all steps, so it has next to no noise floor; GPU kernels choose
tiles and split-K by the shape of the batch. Adding two bfloat16 partial sums has the same rounding error.
"""

from __future__ import annotations

from typing import Any

import torch
from vllm.model_executor.layers.linear import UnquantizedLinearMethod

_WEIGHTS: dict[int, torch.Tensor] = {}
_STEP = 16
_state = {"on": False}

_apply = UnquantizedLinearMethod.apply
_process = UnquantizedLinearMethod.process_weights_after_loading


def _process_and_keep(self: Any, layer: Any) -> None:
    _WEIGHTS[id(layer)] = layer.weight.detach().clone()
    _process(self, layer)


def _split_apply(self: Any, layer: Any, x: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    weight = _WEIGHTS.get(id(layer))
    if not _state["on"] or weight is None or x.shape[-1] < 2 * _STEP:
        return _apply(self, layer, x, bias)
    cut = _STEP * int(torch.randint(1, x.shape[-1] // _STEP, (1,)))
    first = torch.nn.functional.linear(x[..., :cut], weight[:, :cut], bias)
    return first + torch.nn.functional.linear(x[..., cut:], weight[:, cut:])


UnquantizedLinearMethod.apply = _split_apply
UnquantizedLinearMethod.process_weights_after_loading = _process_and_keep


def plain_weight(layer: torch.nn.Module) -> torch.Tensor:
    """Return the weight ``[out, in]`` of a linear layer as it was loaded."""
    return _WEIGHTS[id(layer)]


def switch(*, on: bool) -> None:
    """Switch the noise of all linear layers."""
    _state["on"] = on


def is_on() -> bool:
    """Say whether matrix products sum in a random order."""
    return _state["on"]
