"""Which layers and experts moved, in a sentence; ``moe-watch status`` says it too, so it needs no arrays."""

from __future__ import annotations

from typing import Final

from moe_watch.detect.drift import naming_limits
from moe_watch.domain import amounts, status

NAMED_LAYERS: Final = 3
_EXPERTS: Final = 4


def expert(layer: int, number: int, before: float, now: float, effect: float) -> str:
    """Return "layer 12: share of expert 87 from 0.8 % to 2.4 % (large, d = 1.1)"."""
    return (
        f"layer {layer}: share of expert {number} from {amounts.share(before)} to "
        f"{amounts.share(now)} ({amounts.size(effect)}, d\u202f=\u202f{effect:+.1f})"
    )


def where(found: status.Where, kind: str) -> tuple[str, ...]:
    """Say which layers and experts moved in the requests after an alarm, or of a replica against its siblings."""
    ranked = f"Most moved: layers {amounts.joined([str(layer) for layer in found.layers[:NAMED_LAYERS]])}"
    since = "of this replica against its siblings'" if kind == "replica" else "after the alarm"
    over = f"over the {amounts.plural(found.requests, 'request')} {since}"
    if found.experts is None:
        needed = f"to name experts with few false ones it takes {naming_limits.FEWEST}"
        return (f"{ranked}, {over}; {needed}.",)
    if not found.experts:
        return (f"{ranked}, {over}; no single expert moved for certain.",)
    surest = [expert(m.layer, m.expert, m.before, m.now, m.effect) for m in found.experts[:_EXPERTS]]
    false = amounts.share(naming_limits.FALSE_DISCOVERIES)
    named = f"{amounts.plural(found.named or 0, 'expert')} moved for certain (at most {false} of them named falsely)"
    return (f"{ranked}, {over}. {named}; the surest: {'; '.join(surest)}.",)
