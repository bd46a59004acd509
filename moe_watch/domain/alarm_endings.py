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

_BECAUSE: Final[dict[str, str]] = {
    "recovered": "it recovered",
    "configuration_changed": "another configuration was served, which does not say that it recovered",
    "baseline_replaced": "the baseline was replaced, which does not say that it recovered",
    "reference_replaced": "what it was compared with was replaced, which does not say that it recovered",
    "tap_silent": "the tap fell silent, which does not say that it recovered",
    "sidecar_stopped": "the sidecar stopped, which does not say that it recovered",
}


_UNTIL: Final[dict[str, str]] = {
    "configuration_changed": ", until another configuration was served",
    "baseline_replaced": ", until the baseline was replaced",
    "reference_replaced": ", until what it was compared with was replaced",
    "tap_silent": ", until the tap fell silent",
    "sidecar_stopped": ", until the sidecar stopped",
}


def is_settled(ended_at: float | None, ending: str | None) -> bool:
    """Say whether an alarm is known to be over, and not just no longer watched."""
    return ended_at is not None and ending == "recovered"


def because(ending: str | None) -> str:
    """Return in words why an alarm ended.

    >>> because("recovered"), because(None)
    ('it recovered', 'how it ended was not recorded')
    """
    return _BECAUSE.get(ending or "", "how it ended was not recorded")


def until(ending: str | None) -> str:
    """Return the end of a sentence on how long an alarm lasted; nothing where it recovered.

    >>> until("sidecar_stopped")
    ', until the sidecar stopped'
    """
    return _UNTIL.get(ending or "", "")
