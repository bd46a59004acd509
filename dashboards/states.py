"""The sidecar's state sets as numbers with names and colours: Grafana draws a state only from one series."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from moe_watch.metrics.series import CANARY_VERDICTS, VERDICTS

from .panels import GREEN, GREY, MOE_WATCH, RED, mapping

_COLORS: Final = {
    "healthy": GREEN,
    "benign": GREEN,
    "idle": GREY,
    "learning": "blue",
    "blind": "purple",
    "traffic": "orange",
}


def coded(metric: str, states: Sequence[str]) -> str:
    """Return the index in ``states`` of the state that is 1 now, by model and replica."""
    parts = (f'{metric}{{{MOE_WATCH}, verdict="{name}"}} * {index}' for index, name in enumerate(states))
    return f"sum by (model, replica) ({' or '.join(parts)})"


def named(states: Sequence[str]) -> list[Any]:
    """Return the mappings that turn ``coded`` back into words; a state without a colour of its own is a fault."""
    return mapping({index: (name, _COLORS.get(name, RED)) for index, name in enumerate(states)})


VERDICT: Final = coded("moe_watch_verdict", VERDICTS)
VERDICT_NAMES: Final = named(VERDICTS)
CANARY: Final = coded("moe_watch_canary_verdict", CANARY_VERDICTS)
CANARY_NAMES: Final = named(CANARY_VERDICTS)
YES_NO: Final = mapping({0: ("no", GREEN), 1: ("yes", RED)})
UP_DOWN: Final = mapping({0: ("down", RED), 1: ("up", GREEN)})
