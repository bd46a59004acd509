"""Plain output to a terminal: what others wrote can neither move the cursor, hide text nor look like another line.

Others are vLLM, its clients and every server that is asked. Tables and colours go through ``screen``;
``pyproject.toml`` bans every other way.
"""

from __future__ import annotations

import json
import sys
from typing import Any, Final

import click

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
