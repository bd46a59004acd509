"""What is worse: the one order of alarms and of tones, for the sidecar's verdict and for the report alike."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, Literal

Tone = Literal["bad", "warn", "unknown", "calm"]
_TONES: Final[tuple[Tone, ...]] = ("bad", "warn", "unknown", "calm")

_VERDICTS: Final = {
    "garbled": "quality",  # people read it, and it is seen without any routing
    "blind": "blind",  # of routing nothing is known any more
    "routing": "routing",  # the same prompts: a fault of the model, of which worse output is an effect
    "quality": "quality",
    "replica": "deployment",
    "traffic": "traffic",
    "dead_experts": "deployment",  # after traffic: when a whole domain leaves, its experts fall silent as well
}  # kind of alarm -> verdict, worst first


def rank(kind: str) -> int:
    """Return the place of a kind of alarm, 0 for the worst; an unknown kind comes last.

    >>> sorted(["traffic", "one to come", "garbled"], key=rank)
    ['garbled', 'traffic', 'one to come']
    """
    return list(_VERDICTS).index(kind) if kind in _VERDICTS else len(_VERDICTS)


def verdict_of(kind: str) -> str:
    """Return the verdict that an alarm of ``kind`` leads to; of an unknown kind, something is wrong with it all."""
    return _VERDICTS.get(kind, "deployment")


def worst(tones: Iterable[Tone]) -> Tone:
    """Return the worst of ``tones``; "unknown" where there is none.

    >>> worst(["calm", "bad", "unknown"])
    'bad'
    """
    return min(tones, key=_TONES.index, default="unknown")
