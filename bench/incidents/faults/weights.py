"""Faults of weights: experts that are not where the router thinks, missing, low in bits, not a number."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Literal

import torch

from bench.incidents.faults.catalogue import Place, index

if TYPE_CHECKING:
    from bench.incidents.faults.undo import Undo
    from bench.incidents.faults.worker import Layer

NAMES = ("w13_weight", "w2_weight")
GROUP = 32


def _rotated(place: Place | Literal["last"], layers: list[Layer], undo: Undo) -> None:
    """Rotate the experts of one layer by one place: a rebalance that forgot the map."""
    layer = layers[-1] if place == "last" else layers[index(place, len(layers))]
    for name in NAMES:
        undo.experts(layer, name, layer.plain[name].roll(1, 0))


def _two_swapped(place: Place, pair: tuple[int, int], layers: list[Layer], undo: Undo) -> None:
    layer = layers[index(place, len(layers))]
    for name in NAMES:
        swapped = layer.plain[name].clone()
        swapped[list(pair)] = swapped[list(reversed(pair))]
        undo.experts(layer, name, swapped)


def _rebalanced_with_map(layers: list[Layer], undo: Undo) -> None:
    """Move all experts by one place and tell the router: harmless, and the tap sees logical ids."""
    for layer in layers:
        experts = layer.router.global_num_experts
        for name in NAMES:
            undo.experts(layer, name, layer.plain[name].roll(1, 0))
        undo.attribute(layer.router, "_apply_eplb_mapping", lambda ids, e=experts: (ids + 1) % e)


def _zeroed(place: Place, layers: list[Layer], undo: Undo) -> None:
    layer = layers[index(place, len(layers))]
    values = layer.plain["w2_weight"].clone()
    values[values.shape[0] // 3] = 0
    undo.experts(layer, "w2_weight", values)


def _scale_lost(place: Place, times: float, layers: list[Layer], undo: Undo) -> None:
    """Leave the scale of the upper half of one layer's experts at 1.0: their output is too large."""
    layer = layers[index(place, len(layers))]
    values = layer.plain["w2_weight"].clone()
    values[values.shape[0] // 2 :] *= times
    undo.experts(layer, "w2_weight", values)


def _low_bits(bits: int, layers: list[Layer], undo: Undo) -> None:
    """Round all experts to ``bits``, symmetrically, with one scale for each group of 32 weights."""
    for layer in layers:
        for name in NAMES:
            undo.experts(layer, name, _quantised(layer.plain[name], bits))


def _low_bit_router(bits: int, layers: list[Layer], undo: Undo) -> None:
    for layer in layers:
        _gate(layer, _quantised(layer.gate_weight, bits), undo)


def _gate(layer: Layer, weight: torch.Tensor, undo: Undo) -> None:
    """Let a router multiply by ``weight``; vLLM keeps a packed copy of its own, so the parameter alone does nothing."""

    def forward(x: torch.Tensor) -> tuple[torch.Tensor, None]:
        return torch.nn.functional.linear(x, weight).float(), None

    undo.attribute(layer.gate, "forward", forward)


def _quantised(weight: torch.Tensor, bits: int) -> torch.Tensor:
    groups = weight.float().reshape(*weight.shape[:-1], -1, GROUP)
    scale = groups.abs().amax(-1, keepdim=True).clamp(min=1e-12) / (2 ** (bits - 1) - 1)
    return ((groups / scale).round() * scale).reshape(weight.shape).to(weight.dtype)


def _nan_router(place: Place, layers: list[Layer], undo: Undo) -> None:
    layer = layers[index(place, len(layers))]
    _gate(layer, torch.full_like(layer.gate_weight, float("nan")), undo)


def _beside_lost(place: Place, layers: list[Layer], undo: Undo) -> None:
    """Lose the network beside the experts of one layer."""
    mlp = layers[index(place, len(layers))].mlp
    healthy = mlp.forward
    undo.attribute(mlp, "forward", lambda x: torch.zeros_like(healthy(x)))


def _kernels(_layers: list[Layer], undo: Undo) -> None:
    """Let all matrix products sum in another order, as other kernels do."""
    from bench.incidents.faults import noise  # noqa: PLC0415 - it imports vLLM, which not all that import this module need

    before = noise.is_on()
    noise.switch(on=True)
    undo.steps.append(lambda: noise.switch(on=before))


FAULTS: dict[str, Callable[[list[Layer], Undo], None]] = {
    "first_layer_rotated": partial(_rotated, "first"),
    "third_layer_rotated": partial(_rotated, "third"),
    "last_layer_rotated": partial(_rotated, "last"),
    "two_experts_swapped": partial(_two_swapped, "third", (0, 1)),
    "rebalanced_with_map": _rebalanced_with_map,
    "one_expert_zeroed": partial(_zeroed, "second"),
    "scale_lost": partial(_scale_lost, "third", 4.0),
    "experts_8_bits": partial(_low_bits, 8),
    "experts_4_bits": partial(_low_bits, 4),
    "experts_2_bits": partial(_low_bits, 2),
    "router_4_bits": partial(_low_bit_router, 4),
    "nan_router": partial(_nan_router, "third"),
    "shared_expert_lost": partial(_beside_lost, "third"),
    "held_rotated": partial(_rotated, "last but one"),
    "held_swapped_first": partial(_two_swapped, "first", (5, 11)),
    "held_swapped_late": partial(_two_swapped, "last but one", (2, 9)),
    "held_zeroed": partial(_zeroed, "middle"),
    "held_scale": partial(_scale_lost, "middle", 2.0),
    "held_router_5_bits": partial(_low_bit_router, 5),
    "held_nan": partial(_nan_router, "last but one"),
    "held_3_bits": partial(_low_bits, 3),
    "held_6_bits": partial(_low_bits, 6),
    "held_5_bits": partial(_low_bits, 5),
    "held_kernels": _kernels,
}
