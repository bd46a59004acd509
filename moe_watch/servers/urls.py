"""How other servers are addressed, and what of it may be printed: errors repeat addresses, and those hold passwords."""

from __future__ import annotations

import ipaddress
import re

import httpx
from pydantic import SecretStr

_WITHIN = re.compile(r"^([^:/?#]+://)(?:.*@)?([^?#]*).*$", re.DOTALL)


def shown(address: str) -> str:
    """Return ``address`` without user, password and query, whether or not it is well formed.

    >>> shown("postgresql+psycopg://ann:pa/s@s@db/moe?password=x"), shown("sqlite:///a.db"), shown("/folder")
    ('postgresql+psycopg://***@db/moe', 'sqlite:///a.db', '/folder')
    """
    found = _WITHIN.match(address)
    if found is None:
        return address if "@" not in address else "***"
    scheme, rest = found.groups()
    user = "***@" if "@" in address and not address.startswith(f"{scheme}/") else ""
    return f"{scheme}{user}{rest}"


def why(error: Exception) -> str:
    """Return what went wrong, quoting nothing of what was asked or answered: an answer may hold a user's text.

    >>> request = httpx.Request("GET", "http://ann:secret@vllm/version")
    >>> why(httpx.HTTPStatusError("", request=request, response=httpx.Response(401)))
    'status 401'
    """
    if isinstance(error, httpx.HTTPStatusError):
        return f"status {error.response.status_code}"
    quotes_nothing = isinstance(error, httpx.ConnectError | httpx.TimeoutException)
    return (str(error) if quotes_nothing else "") or type(error).__name__


def refused(reply: httpx.Response) -> str:
    """Return what is told of an answer that is an error: never its words, which may repeat the request.

    >>> refused(httpx.Response(400, text="the prompt 'my secret' is too long"))
    'status 400, 34 bytes'
    """
    return f"status {reply.status_code}, {len(reply.content)} bytes"


def bearer(secret: SecretStr | None) -> dict[str, str]:
    """Return the header that shows ``secret`` to a server; nothing without one.

    >>> bearer(SecretStr("x")), bearer(None)
    ({'Authorization': 'Bearer x'}, {})
    """
    return {"Authorization": f"Bearer {secret.get_secret_value()}"} if secret else {}


def is_loopback(host: str) -> bool:
    """Say whether ``host`` is reached from this machine alone.

    >>> [is_loopback(host) for host in ("127.0.0.1", "::1", "localhost", "0.0.0.0", "*", "10.0.0.7")]
    [True, True, True, False, False, False]
    """
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
