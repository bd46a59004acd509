"""How alarms end. Only one of the ways says that what the alarm was about is over."""

from __future__ import annotations

from typing import Final, Literal

Ending = Literal[
    "recovered",  # the detector saw that it is over
    "configuration_changed",  # the replica serves another model or another shape of it
    "baseline_replaced",  # it was held against a baseline that is no longer in force
    "reference_replaced",  # the same of what quality or canaries are held against
    "tap_silent",  # a blind tap stopped speaking: vLLM ended or restarts
    "sidecar_stopped",  # nobody watched any more
]

_RECOVERED: Final = "recovered"
# What ended an alarm that nobody saw to its end.
_CAUSES: Final[dict[str, str]] = {
    "configuration_changed": "another configuration was served",
    "baseline_replaced": "the baseline was replaced",
    "reference_replaced": "what it was compared with was replaced",
    "tap_silent": "the tap fell silent",
    "sidecar_stopped": "the sidecar stopped",
}


def is_settled(ended_at: float | None, ending: str | None) -> bool:
    """Say whether an alarm is known to be over, and not just no longer watched."""
    return ended_at is not None and ending == _RECOVERED


def because(ending: str | None) -> str:
    """Return in words why an alarm ended.

    >>> because("recovered"), because(None)
    ('it recovered', 'how it ended was not recorded')
    """
    if ending == _RECOVERED:
        return "it recovered"
    cause = _CAUSES.get(ending or "")
    return "how it ended was not recorded" if cause is None else f"{cause}, which does not say that it recovered"


def until(ending: str | None) -> str:
    """Return the end of a sentence on how long an alarm lasted; nothing where it recovered.

    >>> until("sidecar_stopped")
    ', until the sidecar stopped'
    """
    cause = _CAUSES.get(ending or "")
    return "" if cause is None else f", until {cause}"
