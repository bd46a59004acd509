"""Faults of routers: which experts are chosen, with which weights, and what the tap is told of it."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from bench.incidents.faults.catalogue import Place, index

if TYPE_CHECKING:
    from bench.incidents.faults.undo import Undo
    from bench.incidents.faults.worker import Layer

Route = Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]]  # logits to weights and ids, both [tokens, k]
Break = Callable[[Route, torch.Tensor, Any], tuple[torch.Tensor, torch.Tensor]]
SMALL_BATCH = 8  # tokens in a step


def _reroute(broken: Break, only: Callable[[int, int], bool], layers: list[Layer], undo: Undo) -> None:
    """Put ``broken`` in place of the routing of the layers that ``only(number, layers)`` chooses."""
    for number, layer in enumerate(layers):
        if not only(number, len(layers)):
            continue
        healthy = layer.router._compute_routing  # noqa: SLF001 - what every router of vLLM overrides

        def route(
            hidden_states: torch.Tensor,
            router_logits: torch.Tensor,
            indices_type: Any,
            *,
            input_ids: Any = None,
            healthy: Any = healthy,
            router: Any = layer.router,
        ) -> tuple[torch.Tensor, torch.Tensor]:
            def of(logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
                return healthy(hidden_states, logits, indices_type, input_ids=input_ids)

            return broken(of, router_logits, router)

        undo.attribute(layer.router, "_compute_routing", route)


def _all(_number: int, _layers: int) -> bool:
    return True


def _at(place: Place, number: int, layers: int) -> bool:
    return number == index(place, layers)


def _negative_logits(route: Route, logits: torch.Tensor, _: Any) -> Any:
    """Start the top-k from zero: it finds nothing among negative logits and returns the first ids."""
    negative = logits - logits.amax(-1, keepdim=True) - 1
    weights, ids = route(negative)
    first = torch.arange(ids.shape[1], dtype=ids.dtype).expand_as(ids).contiguous()
    return torch.full_like(weights, 1 / weights.shape[1]), first


def _read_as_fp32(route: Route, logits: torch.Tensor, _: Any) -> Any:
    """Read half-width logits at full width: two numbers make one, and half of the rows are past the end."""
    raw = logits.to(torch.bfloat16).contiguous().view(torch.int16).flatten()
    raw = torch.cat([raw, torch.zeros_like(raw)])
    read = raw.view(torch.float32).reshape(logits.shape)
    return route(torch.nan_to_num(read, nan=0.0).clamp(-1e4, 1e4))


def _not_renormalised(route: Route, logits: torch.Tensor, _: Any) -> Any:
    """Take the softmax over all experts and do not renormalise: right ids, weights that do not sum to one."""
    _, ids = route(logits)
    return logits.float().softmax(-1).gather(1, ids.long()), ids


def _equal_weights(route: Route, logits: torch.Tensor, _: Any) -> Any:
    weights, ids = route(logits)
    return torch.full_like(weights, 1 / weights.shape[1]), ids


def _reversed_weights(route: Route, logits: torch.Tensor, _: Any) -> Any:
    """Return the weights in the order of another sort than the ids."""
    weights, ids = route(logits)
    return weights.sort(-1).values.gather(1, weights.argsort(-1, descending=True).argsort(-1)).contiguous(), ids


def _without(experts: Callable[[int], list[int]], route: Route, logits: torch.Tensor, _: Any) -> Any:
    masked = logits.clone()
    masked[:, experts(logits.shape[1])] = -1e9
    return route(masked)


def _approximate(share: float, rank: int, route: Route, logits: torch.Tensor, _: Any) -> Any:
    """Miss the expert of ``rank`` (0 is the best) of a ``share`` of the tokens, as an approximate top-k may."""
    missed = torch.rand(len(logits), 1) < share
    expert = logits.topk(rank + 1).indices[:, rank:]
    return route(torch.where(missed, logits.scatter(1, expert, -1e9), logits))


def _past_the_bound(bound: int, route: Route, logits: torch.Tensor, _: Any) -> Any:
    """Give rows beyond the size that the kernel was built for the ids of stale memory."""
    weights, ids = route(logits)
    if len(ids) > bound:
        ids[bound:] = torch.arange(ids.shape[1], dtype=ids.dtype)
    return weights, ids


def _coarse_gate(bits: int, steps: Callable[[int], bool], layers: list[Layer], undo: Undo) -> None:
    """Compute the router's product from inputs with ``bits`` of mantissa, in steps of the sizes that ``steps`` says."""
    for layer in layers:
        healthy = layer.gate.forward

        def forward(x: torch.Tensor, healthy: Any = healthy) -> Any:
            return healthy(_rounded(x, bits) if steps(len(x)) else x)

        undo.attribute(layer.gate, "forward", forward)


def _rounded(x: torch.Tensor, bits: int) -> torch.Tensor:
    mantissa, exponent = torch.frexp(x.float())
    return torch.ldexp((mantissa * 2 ** (bits + 1)).round() / 2 ** (bits + 1), exponent).to(x.dtype)


def _zero_record(layers: list[Layer], undo: Undo) -> None:
    """Never fill the record of routing; the text is right."""
    for layer in layers:
        tell = layer.router.capture_fn
        undo.attribute(layer.router, "capture_fn", lambda ids, tell=tell: tell(torch.zeros_like(ids)))


def _physical_record(layers: list[Layer], undo: Undo) -> None:
    """Tell the tap physical ids, which a rebalance moved; the text is right."""
    for layer in layers:
        tell, experts = layer.router.capture_fn, layer.router.global_num_experts
        undo.attribute(layer.router, "capture_fn", lambda ids, tell=tell, e=experts: tell((ids + 1) % e))


def _half(experts: int) -> list[int]:
    return list(range(experts // 2, experts))


def _some(experts: int) -> list[int]:
    return [experts // 3]


def _none(_layers: list[Layer], _undo: Undo) -> None:
    """Change nothing."""


def _every(_tokens: int) -> bool:
    return True


def _small(tokens: int) -> bool:
    return tokens <= SMALL_BATCH


def _not_small(tokens: int) -> bool:
    return tokens > 2 * SMALL_BATCH


FAULTS: dict[str, Callable[[list[Layer], Undo], None]] = {
    "none": _none,
    "negative_logits": partial(_reroute, _negative_logits, _all),
    "read_as_fp32": partial(_reroute, _read_as_fp32, _all),
    "not_renormalised": partial(_reroute, _not_renormalised, _all),
    "equal_weights": partial(_reroute, _equal_weights, _all),
    "reversed_weights": partial(_reroute, _reversed_weights, partial(_at, "middle")),
    "upper_half_ignored": partial(_reroute, partial(_without, _half), _all),
    "one_expert_disabled": partial(_reroute, partial(_without, _some), _all),
    "approximate_top_k": partial(_reroute, partial(_approximate, 0.05, 0), _all),
    "past_the_bound": partial(_reroute, partial(_past_the_bound, 256), _all),
    "coarse_router": partial(_coarse_gate, 3, _every),
    "coarse_router_small_batch": partial(_coarse_gate, 3, _small),
    "zero_record": _zero_record,
    "physical_record": _physical_record,
    "held_reversed": partial(_reroute, _reversed_weights, partial(_at, "second")),
    "held_coarse_router": partial(_coarse_gate, 4, _every),
    "held_coarse_large": partial(_coarse_gate, 3, _not_small),
    "held_approximate": partial(_reroute, partial(_approximate, 0.02, 0), _all),
    "held_second_best": partial(_reroute, partial(_approximate, 0.10, 1), partial(_at, "middle")),
    "held_disabled": partial(_reroute, partial(_without, _some), partial(_at, "middle")),
    "held_past_the_bound": partial(_reroute, partial(_past_the_bound, 384), _all),
}
