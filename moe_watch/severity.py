"""How good or bad news is, and which is worse."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, Literal

Tone = Literal["bad", "warn", "unknown", "calm"]
_TONES: Final[tuple[Tone, ...]] = ("bad", "warn", "unknown", "calm")


def worst(tones: Iterable[Tone]) -> Tone:
    """Return the worst of ``tones``; "unknown" where there is none.

    >>> worst(["calm", "bad", "unknown"])
    'bad'
    """
    return min(tones, key=_TONES.index, default="unknown")
