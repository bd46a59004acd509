"""Numbers as people read them: shares, seconds, counts, times. Thin spaces keep a number and its unit together."""

from __future__ import annotations

import math
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Final, TypeGuard

Form = Callable[[float], str]
UNKNOWN: Final = "\u2013"
_GAP: Final = "\u202f"  # narrow and unbreakable


def share(value: float | None) -> str:
    r"""Return a share of 1 in per cent with two significant digits, or fewer where there is nothing after the point.

    >>> share(0.0241), share(0.254), share(0.00032), share(1.0)
    ('2.4\u202f%', '25\u202f%', '0.032\u202f%', '100\u202f%')
    """
    if not _known(value):
        return UNKNOWN
    return f"{significant(100 * value)}{_GAP}%"


def change(value: float | None) -> str:
    r"""Return a relative change in per cent with its sign.

    >>> change(0.213), change(-0.004)
    ('+21\u202f%', '\u22120.4\u202f%')
    """
    if not _known(value):
        return UNKNOWN
    sign = "+" if value > 0 else "\u2212" if value < 0 else ""
    return f"{sign}{significant(abs(100 * value), 2 if abs(value) >= 0.01 else 1)}{_GAP}%"


def points(difference: float) -> str:
    r"""Return a difference of two shares in percentage points.

    >>> points(0.047)
    '+4.7 points'
    """
    sign = "+" if difference > 0 else "\u2212" if difference < 0 else ""
    return f"{sign}{significant(abs(100 * difference))} points"


def significant(value: float, digits: int = 2) -> str:
    r"""Return ``value`` with at least so many significant digits, never in powers of ten; a dash for what is none.

    >>> significant(1234.6), significant(0.8), significant(0.0123), significant(0), significant(99.97)
    ('1,235', '0.80', '0.012', '0', '100')
    >>> significant(float("nan"))
    '\u2013'
    """
    if not math.isfinite(value):
        return UNKNOWN
    if value == 0:
        return "0"
    rounded = float(f"{value:.{digits}g}")
    places = max(0, digits - 1 - math.floor(math.log10(abs(rounded))))
    return f"{value:,.{min(places, 6)}f}"


def seconds(value: float | None) -> str:
    r"""Return a duration below minutes: "340 ms", "1.2 s", "14 s".

    >>> seconds(0.34), seconds(1.234), seconds(0.0042), seconds(14.2)
    ('340\u202fms', '1.2\u202fs', '4.2\u202fms', '14\u202fs')
    """
    if not _known(value):
        return UNKNOWN
    if abs(value) < 0.9995:
        return f"{significant(1000 * value)}{_GAP}ms"
    return f"{significant(value)}{_GAP}s"


def duration(value: float | None) -> str:
    r"""Return a stretch of time in its two largest units.

    >>> duration(45), duration(3720), duration(90_000), duration(604_800)
    ('45\u202fs', '1\u202fh 2\u202fmin', '25\u202fh', '7\u202fdays')
    """
    if not _known(value):
        return UNKNOWN
    whole = round(value)
    if whole < 60:
        return f"{whole}{_GAP}s"
    if whole < 3600:
        return f"{whole // 60}{_GAP}min"
    hours, minutes = whole // 3600, whole % 3600 // 60
    if hours < 48:
        return f"{hours}{_GAP}h" + (f" {minutes}{_GAP}min" if minutes else "")
    days, rest = hours // 24, hours % 24
    return f"{days}{_GAP}days" + (f" {rest}{_GAP}h" if rest else "")


def count(value: float | None) -> str:
    r"""Return a whole number with separators: "12,345"; from ten million on "12.3 million".

    >>> count(12345), count(12_345_678)
    ('12,345', '12.3\u202fmillion')
    """
    if not _known(value):
        return UNKNOWN
    if value < 1e7:
        return f"{round(value):,}"
    return f"{value / 1e6:.1f}{_GAP}million" if value < 1e9 else f"{value / 1e9:.1f}{_GAP}billion"


def plural(number: int, one: str, many: str = "") -> str:
    """Return "1 request" or "12 requests".

    >>> plural(1, "request"), plural(12_000, "request"), plural(2, "loss", "losses")
    ('1 request', '12,000 requests', '2 losses')
    """
    return f"{count(number)} {one if number == 1 else many or one + 's'}"


def moment(at: float | None) -> str:
    """Return "Thu 19 Nov 14:20" (UTC).

    >>> moment(0)
    'Thu 1 Jan 00:00'
    """
    return f"{_utc(at):%a} {_utc(at).day} {_utc(at):%b %H:%M}" if _known(at) else UNKNOWN


def day(at: float) -> str:
    """Return "Thu 1 Jan 1970" (UTC).

    >>> day(0)
    'Thu 1 Jan 1970'
    """
    return f"{_utc(at):%a} {_utc(at).day} {_utc(at):%b %Y}"


def stamp(at: float) -> str:
    """Return the time by ISO 8601 for machines.

    >>> stamp(0)
    '1970-01-01T00:00:00Z'
    """
    return f"{_utc(at):%Y-%m-%dT%H:%M:%SZ}"


def size(effect: float) -> str:
    """Return Cohen's word for a standardised difference (Cohen 1988: 0.2, 0.5, 0.8).

    >>> size(-0.1), size(0.3), size(-0.6), size(2)
    ('negligible', 'small', 'medium', 'large')
    """
    steps = ((0.2, "negligible"), (0.5, "small"), (0.8, "medium"))
    return next((word for bound, word in steps if abs(effect) < bound), "large")


def joined(items: list[str]) -> str:
    """Return "a, b and c".

    >>> joined(["a"]), joined(["a", "b", "c"])
    ('a', 'a, b and c')
    """
    return items[0] if len(items) == 1 else ", ".join(items[:-1]) + " and " + items[-1] if items else ""


def _utc(at: float) -> datetime:
    return datetime.fromtimestamp(at, UTC)


def _known(value: float | None) -> TypeGuard[float]:
    return value is not None and not math.isnan(value)
