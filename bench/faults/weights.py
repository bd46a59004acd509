"""Faults of weights: experts that are not where the router thinks, missing, low in bits, not a number."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from faults.worker import Layer, Undo

NAMES = ("w13_weight", "w2_weight")
GROUP = 32


def _rotated(which: Callable[[int], int], layers: list[Layer], undo: Undo) -> None:
    """Rotate the experts of one layer by one place: a rebalance that forgot the map."""
    layer = layers[which(len(layers))]
    for name in NAMES:
        undo.experts(layer, name, layer.plain[name].roll(1, 0))


def _two_swapped(layers: list[Layer], undo: Undo) -> None:
    layer = layers[_third(len(layers))]
    for name in NAMES:
        swapped = layer.plain[name].clone()
        swapped[[0, 1]] = swapped[[1, 0]]
        undo.experts(layer, name, swapped)


def _rebalanced_with_map(layers: list[Layer], undo: Undo) -> None:
    """Move all experts by one place and tell the router: harmless, and the tap sees logical ids."""
    for layer in layers:
        experts = layer.router.global_num_experts
        for name in NAMES:
            undo.experts(layer, name, layer.plain[name].roll(1, 0))
        undo.attribute(layer.router, "_apply_eplb_mapping", lambda ids, e=experts: (ids + 1) % e)


def _zeroed(layers: list[Layer], undo: Undo) -> None:
    layer = layers[1]
    values = layer.plain["w2_weight"].clone()
    values[values.shape[0] // 3] = 0
    undo.experts(layer, "w2_weight", values)


def _scale_lost(layers: list[Layer], undo: Undo) -> None:
    """Leave the scale of the upper half of one layer's experts at 1.0: their output is four times too large."""
    layer = layers[_third(len(layers))]
    values = layer.plain["w2_weight"].clone()
    values[values.shape[0] // 2 :] *= 4
    undo.experts(layer, "w2_weight", values)


def _low_bits(bits: int, layers: list[Layer], undo: Undo) -> None:
    """Round all experts to ``bits``, symmetrically, with one scale for each group of 32 weights."""
    for layer in layers:
        for name in NAMES:
            undo.experts(layer, name, _quantised(layer.plain[name], bits))


def _low_bit_router(layers: list[Layer], undo: Undo) -> None:
    for layer in layers:
        _gate(layer, _quantised(layer.gate_weight, 4), undo)


def _gate(layer: Layer, weight: torch.Tensor, undo: Undo) -> None:
    """Let a router multiply by ``weight``; vLLM keeps a packed copy of its own, so the parameter alone does nothing."""

    def forward(x: torch.Tensor) -> tuple[torch.Tensor, None]:
        return torch.nn.functional.linear(x, weight).float(), None

    undo.attribute(layer.gate, "forward", forward)


def _quantised(weight: torch.Tensor, bits: int) -> torch.Tensor:
    groups = weight.float().reshape(*weight.shape[:-1], -1, GROUP)
    scale = groups.abs().amax(-1, keepdim=True).clamp(min=1e-12) / (2 ** (bits - 1) - 1)
    return ((groups / scale).round() * scale).reshape(weight.shape).to(weight.dtype)


def _nan_router(layers: list[Layer], undo: Undo) -> None:
    layer = layers[_third(len(layers))]
    _gate(layer, torch.full_like(layer.gate_weight, float("nan")), undo)


def _shared_wrong(layers: list[Layer], undo: Undo) -> None:
    """Lose the network beside the experts of one layer."""
    mlp = layers[_third(len(layers))].mlp
    healthy = mlp.forward
    undo.attribute(mlp, "forward", lambda x: torch.zeros_like(healthy(x)))


def _first(_layers: int) -> int:
    return 0


def _third(layers: int) -> int:
    return layers // 3


def _last(layers: int) -> int:
    return layers - 1


FAULTS: dict[str, Callable[[list[Layer], Undo], None]] = {
    "first_layer_rotated": partial(_rotated, _first),
    "third_layer_rotated": partial(_rotated, _third),
    "last_layer_rotated": partial(_rotated, _last),
    "two_experts_swapped": _two_swapped,
    "rebalanced_with_map": _rebalanced_with_map,
    "one_expert_zeroed": _zeroed,
    "scale_lost": _scale_lost,
    "experts_8_bits": partial(_low_bits, 8),
    "experts_4_bits": partial(_low_bits, 4),
    "experts_2_bits": partial(_low_bits, 2),
    "router_4_bits": _low_bit_router,
    "nan_router": _nan_router,
    "shared_expert_lost": _shared_wrong,
}
