"""The one client of OpenAI-compatible servers: whole and streamed answers, and errors that quote nothing of either."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final

import httpx
from pydantic import SecretStr

from moe_watch.servers import stream as event_stream
from moe_watch.servers.urls import bearer, refused, why

Hooks = Mapping[str, list[Callable[[httpx.Request], Awaitable[None]]]]
UNKNOWN_SHAPE: Final = (AttributeError, IndexError, KeyError, OverflowError, TypeError, ValueError)
_BUSY: Final = frozenset({httpx.codes.REQUEST_TIMEOUT, httpx.codes.TOO_MANY_REQUESTS})


class ServerError(RuntimeError):
    """A server failed or answered something that cannot be used; the message quotes nothing of request or answer."""


class RefusedError(ServerError):
    """The server is well and refuses this one request (too long, unknown role, ...); trying again is pointless."""


def connect(
    url: str,
    api_key: SecretStr | None,
    timeout: httpx.Timeout,
    *,
    connections: int | None = 100,
    hooks: Hooks | None = None,
) -> httpx.AsyncClient:
    """Return a client of the server at ``url`` (with or without /v1); ``hooks`` see each request before it is sent."""
    return httpx.AsyncClient(
        base_url=url.rstrip("/").removesuffix("/v1"),
        headers=bearer(api_key),
        timeout=timeout,
        limits=httpx.Limits(max_connections=connections),
        event_hooks=hooks,
    )


async def get(http: httpx.AsyncClient, path: str) -> dict[str, Any]:
    """Return the JSON object at ``path``, an empty one where the answer is other JSON; raise ``ServerError``."""
    return await _whole(http, http.build_request("GET", path))


async def post(
    http: httpx.AsyncClient, path: str, body: Mapping[str, Any], headers: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """Return the JSON object that answers ``body``, an empty one for other JSON; raise ``ServerError``."""
    return await _whole(http, _request(http, path, body, headers))


async def stream(http: httpx.AsyncClient, path: str, body: Mapping[str, Any]) -> AsyncIterator[dict[str, Any]]:
    """Yield the events that answer ``body`` as they come; raise ``ServerError``."""
    request = _request(http, path, body)
    with _told(path):
        reply = await http.send(request, stream=True)
        try:
            if not reply.is_success:
                await reply.aread()
            _check(reply)
            async for event in event_stream.events(reply.aiter_bytes()):
                yield event
        finally:
            await reply.aclose()


@contextmanager
def shaped(what: str) -> Iterator[None]:
    """Raise ``ServerError`` where an answer that is taken apart is not as vLLM's."""
    try:
        yield
    except UNKNOWN_SHAPE as error:
        raise ServerError(f"{what} is of an unknown shape: {why(error)}") from error


def _request(
    http: httpx.AsyncClient, path: str, body: Mapping[str, Any], headers: Mapping[str, str] | None = None
) -> httpx.Request:
    """Return the request; what cannot be written (half a surrogate pair, say) is no fault of the server."""
    try:
        content = json.dumps(body, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()
    except (RecursionError, TypeError, ValueError) as error:
        raise RefusedError(f"{path}: the request cannot be written as JSON: {why(error)}") from error
    return http.build_request(
        "POST", path, content=content, headers={"Content-Type": "application/json", **(headers or {})}
    )


async def _whole(http: httpx.AsyncClient, request: httpx.Request) -> dict[str, Any]:
    with _told(request.url.path):
        reply = await http.send(request)
        _check(reply)
        found = reply.json()
    return found if isinstance(found, dict) else {}


def _check(reply: httpx.Response) -> None:
    """Tell a server in trouble (5xx, 408, 429, a redirect) from one that refuses this request."""
    if reply.is_success:
        return
    refuses = reply.is_client_error and reply.status_code not in _BUSY
    raise (RefusedError if refuses else ServerError)(f"{reply.request.url.path}: {refused(reply)}")


@contextmanager
def _told(path: str) -> Iterator[None]:
    try:
        yield
    except (httpx.HTTPError, RecursionError, ValueError) as error:
        raise ServerError(f"{path}: {why(error)}") from error
