"""Asks a running sidecar what it sees."""

from __future__ import annotations

import httpx
import msgspec

from moe_watch.settings import HttpSettings
from moe_watch.status import Status

_TIMEOUT_S = 10.0


class SidecarError(RuntimeError):
    """The sidecar does not answer as it should; the message says what to do."""


def address(http: HttpSettings) -> str:
    """Return where the sidecar of these settings is reached from this machine.

    >>> address(HttpSettings(host="0.0.0.0"))
    'http://127.0.0.1:9465'
    """
    host = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(http.host, http.host)  # noqa: S104 - an address to reach
    return f"http://{f'[{host}]' if ':' in host and not host.startswith('[') else host}:{http.port}"


def fetch_status(http: HttpSettings, url: str | None = None) -> tuple[str, Status]:
    """Return the status as JSON and decoded; raise ``SidecarError``."""
    base = (url or address(http)).rstrip("/")
    headers = {"Authorization": f"Bearer {http.token}"} if http.token else {}
    try:
        answer = httpx.get(f"{base}/api/v1/status", headers=headers, timeout=_TIMEOUT_S)
    except httpx.HTTPError as error:
        raise SidecarError(f"no sidecar answers at {base} ({error}): start one with `moe-watch serve`") from error
    if answer.status_code == httpx.codes.UNAUTHORIZED:
        raise SidecarError(f"{base} wants its token: set MOE_WATCH_HTTP__TOKEN to the sidecar's")
    try:
        answer.raise_for_status()
        return answer.text, msgspec.json.decode(answer.content, type=Status)
    except (httpx.HTTPError, msgspec.MsgspecError) as error:
        raise SidecarError(f"{base} is no moe-watch sidecar of this version: {error}") from error
