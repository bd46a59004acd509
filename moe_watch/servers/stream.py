"""Reads an answer that is streamed as server-sent events (WHATWG HTML, section 9.2.6)."""

from __future__ import annotations

import json
from collections.abc import AsyncIterable, AsyncIterator
from typing import Any


async def events(chunks: AsyncIterable[bytes]) -> AsyncIterator[dict[str, Any]]:
    """Yield the JSON object of each event of a stream that arrives in pieces; raise ``ValueError`` as ``event``.

    CR and LF alone end a line: what else Unicode takes for an end of line may stand in a generated text.
    """
    rest = b""
    async for chunk in chunks:
        lines = (rest + chunk).splitlines(keepends=True)
        rest = b"" if not lines or lines[-1].endswith((b"\n", b"\r")) else lines.pop()
        for line in lines:
            if (found := event(line)) is not None:
                yield found
    if (found := event(rest)) is not None:
        yield found


def event(line: bytes) -> dict[str, Any] | None:
    """Return the JSON object of one line; None for the end mark and for lines that carry no data.

    The space behind the colon is optional: some servers leave it out. Raises ``ValueError`` for anything but an object.

    >>> event(b'data:{"a": 1}'), event(b'data: {"a": 1}'), event(b"data: [DONE]"), event(b": still here")
    ({'a': 1}, {'a': 1}, None, None)
    """
    if not line.startswith(b"data:"):
        return None
    told = line.removeprefix(b"data:").strip()
    if told in {b"", b"[DONE]"}:
        return None
    found = json.loads(told)
    if not isinstance(found, dict):
        raise ValueError("an event that is no object")  # noqa: TRY004 - as for JSON that is none
    return found
