"""The one way to a terminal: what others wrote can neither move the cursor, hide text nor look like another line.

Others are vLLM, its clients and every server that is asked. ``pyproject.toml`` bans the other ways.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from typing import Any, Final

import click
from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment

from moe_watch.domain.sanitise import neutralise

_WHOLE: Final = sys.maxsize


def line(text: str, *, err: bool = False) -> None:
    """Print ``text`` on one line."""
    click.echo(flat(text), err=err)


def block(text: str) -> None:
    """Print ``text``, whose line breaks are meant."""
    click.echo(neutralise(text, _WHOLE))


def data(found: Any) -> None:
    """Print JSON, for programs; every character beyond ASCII is escaped."""
    click.echo(json.dumps(found, indent=1))


def flat(text: str) -> str:
    r"""Return ``text`` whole on one line, with control and format characters made visible.

    >>> flat("  a name\nof two lines\x1b[2J")
    '  a name of two lines␛[2J'
    """
    return neutralise(" ".join(text.splitlines()), _WHOLE)


class Screen(Console):
    """A console for tables and colours that makes control and format characters of every text visible."""

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """Yield the segments of ``renderable``, each harmless; rich's own control codes pass."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else Segment(neutralise(segment.text, _WHOLE), segment.style)
