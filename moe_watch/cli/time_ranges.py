"""Periods on the command line, as several commands read them."""

from __future__ import annotations

import re
from datetime import UTC, datetime

import click

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}


def moment(text: str, now: float) -> float:
    """Return seconds since the epoch of ``text``: so long ago (``12h``, ``7d``) or a date with or without time (UTC).

    Raises ``click.BadParameter``.

    >>> moment("2h", 10_000.0)
    2800.0
    """
    if found := re.fullmatch(r"(\d+(?:\.\d+)?)([smhdw])", text.strip()):
        return now - float(found[1]) * _UNITS[found[2]]
    try:
        parsed = datetime.fromisoformat(text)
    except ValueError as error:
        raise click.BadParameter(
            f"{text!r} is neither a time ago such as 12h or 7d nor a date such as 2026-11-24"
        ) from error
    return (parsed if parsed.tzinfo else parsed.replace(tzinfo=UTC)).timestamp()


def period(since: str, until: str | None, now: float) -> tuple[float, float]:
    """Return start and end, seconds since the epoch; raises ``click.UsageError`` when the start is not the earlier."""
    start, end = max(moment(since, now), 0.0), now if until is None else moment(until, now)
    if start >= end:
        raise click.UsageError(f"--since {since} is not before --until {until or 'now'}")
    return start, end
