"""Reads an answer that is streamed as server-sent events (WHATWG HTML, section 9.2.6)."""

from __future__ import annotations

import json
from typing import Any


def event(line: str) -> dict[str, Any] | None:
    """Return the JSON object of one line; None for the end mark and for lines that carry no data.

    The space behind the colon is optional: some servers leave it out. Raises ``ValueError`` for anything but an object.

    >>> event('data:{"a": 1}'), event('data: {"a": 1}'), event("data: [DONE]"), event(": still here")
    ({'a': 1}, {'a': 1}, None, None)
    """
    if not line.startswith("data:"):
        return None
    told = line.removeprefix("data:").strip()
    if told in {"", "[DONE]"}:
        return None
    found = json.loads(told)
    if not isinstance(found, dict):
        raise ValueError("an event that is no object")  # noqa: TRY004 - as for JSON that is none
    return found
