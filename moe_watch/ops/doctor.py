"""Everything that has to be right between vLLM and a verdict, checked one by one, each with what to do about it."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal
from urllib.parse import urlsplit

import httpx

from moe_watch import ipc
from moe_watch.domain.status import Replica, Status
from moe_watch.ops.sidecar_api import SidecarError, fetch_status
from moe_watch.servers.urls import bearer, is_loopback, shown, why
from moe_watch.settings import Settings
from moe_watch.store import engine, migrate
from moe_watch.store.engine import StoreError
from moe_watch.store.records import baselines, served_models

State = Literal["ok", "warn", "fail"]
_MOST_SKEW_S: Final = 2.0
_TIMEOUT_S: Final = 5.0
_SUPPORTED: Final = "0.32."
_LOST: Final = "lost: see FramesDropped in alerts/runbooks"
_REFUSED: Final = {  # reason -> what to do
    "unknown_version": "install one version on both sides",
    "late": "one request id was used again, or parts took longer than MOE_WATCH_JOIN_TIMEOUT_S; see FramesRefused",
    "duplicate": "one request id was used again, or two vLLM servers have one MOE_WATCH_REPLICA; see FramesRefused",
    "unannounced": "the tap of the engine announces its model within a minute; see FramesRefused",
    "too_many_replicas": "use another sidecar, or wait until replicas that are gone expire",
    "memory": "raise MOE_WATCH_MEMORY_BYTES, or find out who sends so much; see FramesRefused",
}


@dataclass(frozen=True)
class Check:
    """One thing that was looked at; ``remedy`` says what to do unless it is ok."""

    subject: str
    state: State
    finding: str
    remedy: str = ""


def checkup(settings: Settings) -> Iterator[Check]:
    """Yield every check in the order of the flow; what depends on something that failed is left out."""
    yield from _vllm(settings)
    yield from _socket(settings.endpoint)
    try:
        seen: Status | None = fetch_status(settings.http)[1]
        yield Check("sidecar", "ok", "answers")
    except SidecarError as error:
        seen = None
        yield Check("sidecar", "fail", str(error), "run `moe-watch serve`, and doctor with the same settings")
    if seen is not None:
        yield from _frames(seen)
        for replica in seen.replicas:
            yield from _tap(replica)
    yield from _store(settings)
    yield from _http(settings)


def _vllm(settings: Settings) -> Iterator[Check]:
    if settings.vllm_url is None:
        remedy = "set MOE_WATCH_VLLM_URL, which canaries need too"
        yield Check("vLLM", "warn", "not checked: its address is not set", remedy)
        return
    base = settings.vllm_url.rstrip("/").removesuffix("/v1")
    try:
        with httpx.Client(base_url=base, headers=bearer(settings.vllm_api_key), timeout=_TIMEOUT_S) as client:
            version = str(_json(client, "/version").get("version", "unknown"))
            models = [str(model.get("id")) for model in _json(client, "/v1/models").get("data", [])]
    except (httpx.HTTPError, ValueError) as error:
        remedy = "start it, or correct MOE_WATCH_VLLM_URL and MOE_WATCH_VLLM_API_KEY"
        yield Check("vLLM", "fail", f"{shown(base)} does not answer: {why(error)}", remedy)
        return
    if version.startswith(_SUPPORTED):
        yield Check("vLLM", "ok", f"version {version} serves {', '.join(models)}")
    else:
        remedy = f"use vLLM {_SUPPORTED}x, or a moe-watch made for {version}"
        yield Check("vLLM", "warn", f"version {version}; the tap is made for {_SUPPORTED}x", remedy)


def _json(client: httpx.Client, path: str) -> dict[str, Any]:
    answer = client.get(path)
    answer.raise_for_status()
    found = answer.json()
    if not isinstance(found, dict):
        raise ValueError(f"{path} is no JSON object")  # noqa: TRY004 - it is the answer that is wrong
    return found


def _socket(endpoint: str) -> Iterator[Check]:
    if not endpoint.startswith("ipc://"):
        if is_loopback(urlsplit(endpoint).hostname or ""):
            yield Check("socket", "ok", f"{endpoint}: reached from this machine alone, by every user of it")
            return
        remedy = "use ipc:// where vLLM and the sidecar share a machine; else let a network policy admit the taps alone"
        wide = f"{endpoint} takes frames from other machines, neither encrypted nor authenticated"
        yield Check("socket", "warn", wide, remedy)
        return
    path = Path(endpoint.removeprefix("ipc://"))
    if why := ipc.planted(ipc.folder_of(endpoint)):
        yield Check("socket", "fail", why, ipc.REMEDY)
        return
    if why := ipc.shared(ipc.folder_of(endpoint)):
        yield Check("socket", "warn", why, ipc.REMEDY)
    try:
        found = path.stat()
    except FileNotFoundError:
        yield Check("socket", "fail", f"{path} is not there", "start the sidecar: `moe-watch serve` makes it")
        return
    except PermissionError:
        remedy = "run vLLM, the sidecar and doctor as one user, or share the directory"
        yield Check("socket", "fail", f"{path} is not readable for this user", remedy)
        return
    mode = stat.S_IMODE(found.st_mode)
    if found.st_uid != os.getuid() and os.getuid() != 0:
        remedy = "run vLLM and the sidecar as one user: a tap of another user cannot connect"
        yield Check("socket", "fail", f"{path} belongs to user {found.st_uid}", remedy)
    elif mode & 0o077:
        yield Check("socket", "warn", f"{path} is open to other users (mode {mode:o})", f"chmod 600 {path}")
    else:
        yield Check("socket", "ok", f"{path}, mode {mode:o}")


def _frames(seen: Status) -> Iterator[Check]:
    if not seen.replicas:
        yield Check(
            "tap",
            "fail",
            "no tap has announced a model",
            f"start vLLM with MOE_WATCH_ENDPOINT={seen.endpoint} where moe-watch is installed, as the same user; its "
            "log names moe_watch.tap",
        )
    refused = {reason: count for reason, count in seen.frames_refused.items() if count}
    lost = sum(seen.frames_lost.values())
    if refused or lost:
        parts = [*(f"{count} {reason}" for reason, count in refused.items()), *([f"{lost} lost"] if lost else [])]
        known = [f"{reason}: {what}" for reason, what in _REFUSED.items() if reason in refused]
        remedies = [*known, *([_LOST] if lost else [])] or ["see FramesRefused in alerts/runbooks"]
        yield Check("frames", "warn", ", ".join(parts), "; ".join(remedies))
    else:
        yield Check("frames", "ok", f"{sum(seen.frames_received.values())} received, none refused or lost")
    for replica, reason in seen.impossible.items():
        finding = f"it is not watched: {reason}"
        yield Check(f"model of {replica}", "fail", finding, "see FramesRefused in alerts/runbooks")


def _tap(replica: Replica) -> Iterator[Check]:
    where = f"tap of {replica.replica}"
    tap = replica.tap
    if tap.up:
        yield Check(
            where, "ok", f"on, {replica.model}, vLLM {tap.vllm_version}, model runner {tap.runner or 'unknown'}"
        )
    elif tap.state == "dense":
        yield Check(where, "warn", f"{replica.model} is dense: it has no routing", "serve a Mixture-of-Experts model")
    else:
        yield Check(where, "fail", f"{tap.state}: {tap.reason}", "see TapDown in alerts/runbooks")
    if tap.clock_skew_s is not None and abs(tap.clock_skew_s) > _MOST_SKEW_S:
        remedy = "run NTP on both machines: times in the history come from the tap"
        yield Check(where, "warn", f"its clock is {tap.clock_skew_s:+.1f} s off the sidecar's", remedy)
    if replica.coverage is not None and tap.up and replica.coverage < 1:
        state: State = "ok" if replica.coverage > 0.9 else "warn"
        yield Check(
            where, state, f"{replica.coverage:.1%} of the requests have routing", "see TapDown in alerts/runbooks"
        )
    if replica.layers and replica.baseline is None:
        remedy = "after some hours of normal traffic: `moe-watch baseline fit --promote`"
        yield Check("baseline", "warn", f"none for {replica.model} ({replica.identity[:8]}): learning", remedy)
    elif replica.baseline is not None:
        yield Check("baseline", "ok", f"version {replica.baseline.version} is of the served model")


def _store(settings: Settings) -> Iterator[Check]:
    try:
        opened = engine.connect(settings.store.url)
        engine.check(opened)
        current = migrate.current(opened)
        if not migrate.is_current(opened):
            found = f"schema {current or 'empty'}, this version needs {migrate.head()}"
            yield Check("store", "fail", found, "run `moe-watch db upgrade`")
            return
        yield Check("store", "ok", f"{opened.dialect.name}, schema {current}, {engine.size_bytes(opened) / 1e6:.1f} MB")
        path = engine.sqlite_path(settings.store.url)
        if path is not None and (mode := stat.S_IMODE(path.stat().st_mode)) & 0o077:
            yield Check("store", "warn", f"{path} is open to other users (mode {mode:o})", f"chmod 600 {path}*")
        yield from _foreign_baselines(
            lambda: baselines.active(opened), lambda: served_models.announced(opened, settings.sidecar)
        )
    except StoreError as error:
        remedy = "correct MOE_WATCH_STORE__URL, or start the database"
        yield Check("store", "fail", str(error), remedy)


def _foreign_baselines(
    active: Callable[[], dict[str, baselines.Active]], announced: Callable[[], list[Any]]
) -> Iterator[Check]:
    """Yield a check when baselines are active, but none of a model that is served."""
    known = active()
    serving = {served_models.identity(model): model.model for model in announced() if model.layers}
    if known and serving and not set(known) & set(serving):
        names = ", ".join(sorted(set(serving.values())))
        remedy = "fit one on the traffic of the model that is served now: a baseline of another model says nothing"
        yield Check("baseline", "warn", f"the active ones are of other models than {names}", remedy)


def _http(settings: Settings) -> Iterator[Check]:
    if is_loopback(settings.http.host):
        yield Check("http", "ok", f"{settings.http.host}: reached from this machine alone")
        return
    if not settings.http.token:
        remedy = "set MOE_WATCH_HTTP__TOKEN, or bind 127.0.0.1"
        yield Check("http", "fail", f"{settings.http.host} is open to other machines without a token", remedy)
        return
    opened = ", /metrics is open" if settings.http.metrics_open else ""
    needs = f"{settings.http.host}: needs the token{opened}"
    if settings.http.tls_cert is None:
        remedy = "set MOE_WATCH_HTTP__TLS_CERT and MOE_WATCH_HTTP__TLS_KEY, or keep that network closed"
        yield Check("http", "warn", f"{needs}; without TLS it crosses the network readable", remedy)
    else:
        yield Check("http", "ok", f"{needs}, by TLS")
