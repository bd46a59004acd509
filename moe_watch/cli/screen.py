"""Tables and colours on a terminal, by the rule of ``terminal``; a module of its own: plain output needs no rich."""

from __future__ import annotations

import sys
from collections.abc import Iterable

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment

from moe_watch.domain.sanitise import neutralise


class Screen(Console):
    """A console for tables and colours that makes control and format characters of every text visible."""

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """Yield the segments of ``renderable``, each harmless; rich's own control codes pass."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else Segment(neutralise(segment.text, sys.maxsize), segment.style)
