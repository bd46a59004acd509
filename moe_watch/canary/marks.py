"""The mark of requests that moe-watch itself sends, so that they are no traffic: signed, short-lived and used once.

Whoever may sign could hide requests from every alarm, so a mark is a proof and not a word. The key lies in the store,
which the commands and the sidecar share; the tap passes marks on and knows nothing of it.
"""

from __future__ import annotations

import hmac
import re
import secrets
import time
from collections import OrderedDict
from collections.abc import Iterable
from typing import Final

import httpx
import msgspec
from sqlalchemy import Engine

from moe_watch import wire
from moe_watch.servers.client import Hooks
from moe_watch.settings import CanarySettings
from moe_watch.store.records import canaries

HEADER: Final = "X-Moe-Watch-Canary"
_VALID_S: Final = 300.0  # around the time of signing: clocks of two machines, and a queue in front of vLLM
_MOST_USED: Final = 100_000
_MARK: Final = re.compile(r"([0-9a-f]{8})-[0-9a-f]{16}-[0-9a-f]{32}")


def secret(settings: CanarySettings, engine: Engine) -> str:
    """Return what marks are signed with: as set, else what the store keeps; raises what the store raises."""
    return settings.secret.get_secret_value() if settings.secret is not None else canaries.secret(engine)


def sign(key: str, now: float) -> str:
    """Return a new mark; ``now`` is in seconds since the epoch."""
    signed = f"{int(now) & 0xFFFFFFFF:08x}-{secrets.token_hex(8)}"
    return f"{signed}-{_digest(key, signed)}"


def signing(key: str) -> Hooks:
    """Return hooks for an HTTP client that mark each of its requests."""

    async def mark(request: httpx.Request) -> None:
        request.headers[HEADER] = sign(key, time.time())

    return {"request": [mark]}


class Checker:
    """Finds out which of the requests that have a mark are moe-watch's own; without a ``key`` none is."""

    def __init__(self) -> None:
        self.key = ""
        self._used: OrderedDict[str, None] = OrderedDict()

    def check(self, frames: Iterable[wire.AnyFrame]) -> list[wire.AnyFrame]:
        """Return ``frames``, with ``canary`` of each request as it is found; the text of canaries is known anyway."""
        return [
            self._checked(frame) if isinstance(frame, wire.Request) and (frame.canary or frame.mark) else frame
            for frame in frames
        ]

    def _checked(self, request: wire.Request) -> wire.Request:
        ours = self._is_ours(request.mark, request.started_at)
        return msgspec.structs.replace(request, canary=ours, sample=None if ours else request.sample)

    def _is_ours(self, mark: str, at: float) -> bool:
        found = _MARK.fullmatch(mark)
        if found is None or not self.key or abs(at - int(found[1], 16)) > _VALID_S:
            return False
        signed, _, digest = mark.rpartition("-")
        if mark in self._used or not hmac.compare_digest(digest, _digest(self.key, signed)):
            return False
        self._used[mark] = None
        if len(self._used) > _MOST_USED:
            self._used.popitem(last=False)
        return True


def _digest(key: str, signed: str) -> str:
    return hmac.digest(key.encode(), signed.encode(), "sha256").hex()[:32]
