"""A canary verdict in one line for a pager, and what carries it as plain values for the store."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from moe_watch.detect.canary.comparison import Effect, Judgement
from moe_watch.domain.amounts import plural, significant

_BLIND = {
    "no_answer": "the server answered no canary",
    "no_routing": "no routing came with the canaries",
    "no_requests": "the server answered no canary",
    "all_zero": "the routing record is all zeros",
    "coverage": "most canaries came without routing",
    "not_comparable": "too few canaries were wholly routed in this round and in the reference",
    "no_common_load": "this round and the reference share no batch composition",
    "record": "the routing record moved far and the text not at all, so the record is wrong",
}
_DEPLOYMENT = {
    "another_model": "another model is served: its layers or experts are not those of the reference",
}
_MOST_EFFECTS = 40


def summary(judgement: Judgement, layer_ids: Sequence[int] = ()) -> str:
    """Return one line; ``layer_ids`` are the indices in the whole model of the layers with experts."""
    verdict, reason = judgement.verdict, judgement.reason
    if verdict == "blind":
        return f"blind: {_BLIND.get(reason, reason)}"
    if verdict == "deployment":
        return f"deployment: {_DEPLOYMENT.get(reason) or _tokens(judgement)}"
    if verdict == "healthy":
        compared = plural(judgement.compared, "canary is", "canaries are")
        return f"healthy: {compared} routed as in {plural(judgement.rounds, 'reference round')}"
    parts = [f"{verdict}: {_what(judgement, layer_ids)}", _likelihood(judgement), _nan(judgement), _loads(judgement)]
    return "; ".join(part for part in parts if part)


def _tokens(judgement: Judgement) -> str:
    are = "is" if judgement.changed_prompts == 1 else "are"
    count = f"{judgement.changed_prompts} of {judgement.prompts} canaries {are} other tokens than before"
    if not judgement.added_tokens:
        return f"{count}, of the same number: template or tokenizer changed (a date in the template does this daily)"
    added = f"{judgement.added_tokens:+.0f}"
    more = "token" if added in {"+1", "-1"} else "tokens"
    return f"{count}, {added} {more} each: template, BOS or tokenizer changed"


def _what(judgement: Judgement, layer_ids: Sequence[int]) -> str:
    first = judgement.first_layer
    together = next((e for e in judgement.effects if e.feature.kind in {"prompt", "decode"}), None)
    if first is None and together is not None:
        return (
            f"routers choose otherwise over all layers together ({together.value:.1%} of the choices, "
            f"{together.floor:.1%} when healthy), in no single one for certain; more rounds in the reference would tell"
        )
    if first is None:
        return "every router chooses as before, but the text is less likely: the fault is behind the last router"
    shown = layer_ids[first] if first < len(layer_ids) else first
    shift = _strongest_at(judgement, first)
    moved = f"layer {shown} is the first that moved"
    if shift is not None:
        moved += f" ({shift.value:.1%} of its choices, {shift.floor:.1%} when healthy)"
    if judgement.reason == "top_k":
        return f"another number of experts a token; {moved}"
    if judgement.verdict == "benign":
        return f"{moved}, no more than changed numerics do"
    if first == 0:
        return f"{moved}, so the fault is in its router or before it"
    before = layer_ids[first - 1] if first < len(layer_ids) else first - 1
    return f"{moved}, so the fault is in its router or in layer {before} behind the router"


def _strongest_at(judgement: Judgement, layer: int) -> Effect | None:
    return next((effect for effect in judgement.effects if effect.feature.layer == layer), None)


def _nan(judgement: Judgement) -> str:
    """Warn of NaN, which the key-value cache hands on from one request to another, to layers before the fault too."""
    if not judgement.not_numbers:
        return ""
    share = f"{judgement.not_numbers:.0%}" if judgement.not_numbers >= 0.01 else "some"
    return f"{share} of the log-probabilities are not numbers (NaN), so the fault may also be in a later layer"


def _likelihood(judgement: Judgement) -> str:
    loss = judgement.loss
    if loss is None or math.isnan(loss.nats):
        return ""
    change = next((e.value for e in judgement.effects if e.feature.kind == "likelihood"), None)
    text = "" if change is None else f"log-probabilities changed by {significant(change)} nats a token"
    if loss.lower > 0:
        return ", ".join(filter(None, (text, f"{significant(loss.nats)} of them lost")))
    return text


def _loads(judgement: Judgement) -> str:
    """Say at which loads it was seen when it was not at all of them."""
    if not judgement.loads or judgement.loads == judgement.tested:
        return ""
    spared = [load for load in judgement.tested if load not in judgement.loads]
    return f"only at load {', '.join(judgement.loads)}, not at {', '.join(spared)}"


def evidence(judgement: Judgement) -> dict[str, Any]:
    """Return the judgement as values that JSON can hold, the strongest effects only."""
    loss = judgement.loss
    return {
        "reason": judgement.reason,
        "loads": list(judgement.loads),
        "tested": list(judgement.tested),
        "by_load": dict(judgement.by_load),
        "effects": [
            {
                "load": e.feature.load,
                "kind": e.feature.kind,
                "layer": e.feature.layer,
                "floor": e.floor,
                "value": e.value,
                "ratio": e.ratio,
                "p": e.p,
            }
            for e in judgement.effects[:_MOST_EFFECTS]
        ],
        "loss": None if loss is None or math.isnan(loss.nats) else [loss.nats, loss.lower, loss.upper],
        "not_numbers": judgement.not_numbers,
        "changed_prompts": judgement.changed_prompts,
        "prompts": judgement.prompts,
        "compared": judgement.compared,
        "rounds": judgement.rounds,
    }
