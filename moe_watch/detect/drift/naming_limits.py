"""When experts that moved are named, and how many of them may be named falsely; texts and detectors read it alike."""

from __future__ import annotations

from typing import Final

FEWEST: Final = 500  # requests below which no expert is named
FEWEST_RANKED: Final = 50  # requests below which layers are not ranked either
FALSE_DISCOVERIES: Final = 0.1
