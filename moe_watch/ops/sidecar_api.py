"""Asks a running sidecar what it sees."""

from __future__ import annotations

import ssl

import httpx
import msgspec

from moe_watch.domain.status import Status
from moe_watch.servers.urls import bearer, shown, why
from moe_watch.settings import HttpSettings

_TIMEOUT_S = 10.0


class SidecarError(RuntimeError):
    """The sidecar does not answer as it should; the message says what to do."""


def address(http: HttpSettings) -> str:
    """Return where the sidecar of these settings is reached from this machine.

    >>> address(HttpSettings(host="0.0.0.0"))
    'http://127.0.0.1:9465'
    """
    scheme = "https" if http.tls_cert else "http"
    host = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(http.host, http.host)  # noqa: S104 - an address to reach
    return f"{scheme}://{f'[{host}]' if ':' in host and not host.startswith('[') else host}:{http.port}"


def _trust(http: HttpSettings, base: str) -> ssl.SSLContext | bool:
    """Return what is trusted: the sidecar's own certificate, whatever name it is for, where it has one."""
    if not base.startswith("https:"):
        return ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # nobody: to read all authorities takes longer than to ask
    if http.tls_cert is None:
        return True
    try:
        context = ssl.create_default_context(cafile=str(http.tls_cert))
    except OSError as error:
        raise SidecarError(f"{http.tls_cert} cannot be read as a certificate: {error.strerror or error}") from error
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    context.check_hostname = False
    return context


def fetch_status(http: HttpSettings, url: str | None = None) -> tuple[str, Status]:
    """Return the status as JSON and decoded; raise ``SidecarError``."""
    base = (url or address(http)).rstrip("/")
    told = shown(base)
    try:
        trusted = _trust(http, base)
        answer = httpx.get(f"{base}/api/v1/status", headers=bearer(http.token), timeout=_TIMEOUT_S, verify=trusted)
    except httpx.HTTPError as error:
        raise SidecarError(f"no sidecar answers at {told} ({why(error)}): start one with `moe-watch serve`") from error
    if answer.status_code == httpx.codes.UNAUTHORIZED:
        raise SidecarError(f"{told} wants its token: set MOE_WATCH_HTTP__TOKEN to the sidecar's")
    try:
        answer.raise_for_status()
        return answer.text, msgspec.json.decode(answer.content, type=Status)
    except httpx.HTTPError as error:
        raise SidecarError(f"{told} is no moe-watch sidecar of this version: {why(error)}") from error
    except msgspec.MsgspecError as error:
        raise SidecarError(f"{told} is no moe-watch sidecar of this version: {error}") from error
