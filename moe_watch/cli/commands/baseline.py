"""``moe-watch baseline``: versioned baselines of a model, fitted on requests in the store."""

from __future__ import annotations

import time
from datetime import UTC, datetime

import click
from rich.progress import track
from sqlalchemy import Engine
from sqlalchemy.orm import Session

from moe_watch.cli import setup, tables, terminal
from moe_watch.cli.open_store import open_store
from moe_watch.cli.screen import Screen
from moe_watch.cli.time_ranges import period
from moe_watch.detect.fit.baseline_fit import BaselineBuilder, TooFewRequests
from moe_watch.domain.amounts import plural
from moe_watch.domain.sanitise import one_line
from moe_watch.settings import Settings
from moe_watch.store.engine import StoreError
from moe_watch.store.read import requests
from moe_watch.store.records import baselines, quality_references, served_models
from moe_watch.store.schema import Baseline, Model

_BATCH = 512
_model = click.option("--model", "name", help="Name of the model; needed if the store has several.")


@click.group()
def command() -> None:
    """Fit, list, show and promote baselines of normal routing, or learn a new reference of normal quality."""


@command.command()
@_model
@click.option("--since", default="30d", show_default=True, help="Start of the period: 12h or 7d ago, or a date.")
@click.option("--until", help="End of the period; by default now.")
@click.option("--note", default="", help="A note that is kept with the baseline.")
@click.option("--promote", "and_promote", is_flag=True, help="Make it the active baseline at once.")
@click.option("--seed", default=0, show_default=True, help="Seed that divides the requests into fit and calibration.")
def fit(name: str | None, since: str, until: str | None, note: str, seed: int, *, and_promote: bool) -> None:
    """Fit a baseline on the stored requests of a period of normal traffic."""
    settings, now = setup.settings(), time.time()
    store = open_store(settings)
    model = choose(store, name)
    start, end = period(since, until, now)
    builder = _read(store, settings, model, start, end)
    try:
        made = builder.build(seed)
        row = baselines.save(store, model, made, now=now, note=note)
        if and_promote:
            baselines.promote(store, model, row.version, now=time.time())
    except TooFewRequests as error:
        raise click.ClickException(_too_few(error, settings)) from error
    except (StoreError, ValueError) as error:
        raise click.ClickException(str(error)) from error
    done = "active now" if and_promote else f"to use it: moe-watch baseline promote {row.version}"
    terminal.line(f"baseline {row.version} of {model.name}, fitted on {plural(row.requests, 'request')}; {done}")


def _read(store: Engine, settings: Settings, model: Model, start: float, end: float) -> BaselineBuilder:
    """Return a builder that has seen the fingerprints of the period."""
    builder = BaselineBuilder(minimum=settings.detect.baseline_min_requests)
    stored = requests.fingerprints(store, model, start, end, size=_BATCH)
    total = requests.count(store, model.id, start, end) / _BATCH
    console = Screen(stderr=True)
    bar = track(stored, "reading", total=total, console=console, transient=True, disable=not console.is_terminal)
    for found in bar:
        builder.add(found.batch)
    return builder


def _too_few(error: TooFewRequests, settings: Settings) -> str:
    rate = settings.store.fingerprint_rate
    sampled = f" (fingerprints are kept of {rate:.0%} of the requests: store.fingerprint_rate)" if rate < 1 else ""
    return f"{error}{sampled}: let more traffic pass, or choose a longer period with --since"


@command.command("list")
@_model
def list_(name: str | None) -> None:
    """List all baselines, newest first."""
    store = open_store(setup.settings())
    rows = []
    for row, model in baselines.listed(store):
        if name is not None and model.name != name:
            continue
        shape = f"{model.layers} x {model.experts}, top-{model.top_k}"
        promoted = "active" if row.active else _day(row.promoted_at)
        identity = f"{model.name} ({model.identity[:8]})"
        cells = (str(row.version), identity, shape, str(row.requests), _day(row.created_at), promoted, row.note)
        rows.append([one_line(cell) for cell in cells])
    columns = ("version", "model", "shape", "requests", "made", "promoted", "note")
    tables.show(tables.Grid(columns, rows) if rows else "no baseline yet: moe-watch baseline fit")


@command.command()
@click.argument("version", type=int)
@_model
def show(version: int, name: str | None) -> None:
    """Show one baseline."""
    store = open_store(setup.settings())
    model = choose(store, name)
    row = _version(store, model, version)
    try:
        fitted = baselines.load(store, row.id)
    except StoreError as error:
        raise click.ClickException(str(error)) from error
    fields = (
        ("baseline", f"{version}{', active' if row.active else ''}"),
        ("model", f"{model.name} ({model.identity[:8]}), revision {model.detail.get('revision') or 'unknown'}"),
        (
            "shape",
            f"{plural(fitted.layers, 'layer')} x {plural(fitted.experts, 'expert')}, top-{fitted.top_k}",
        ),
        ("requests", f"{fitted.requests}, of which {len(fitted.scores)} calibrate the p-values"),
        ("parts", ", ".join(fitted.parts)),
        ("made", _day(row.created_at)),
        ("promoted", _day(row.promoted_at)),
        ("note", row.note or "none"),
    )
    tables.show(tables.Fields([(key, one_line(value, 400)) for key, value in fields]))


@command.command()
@click.argument("version", type=int)
@_model
def promote(version: int, name: str | None) -> None:
    """Make one baseline the active one; a running sidecar loads it within seconds."""
    store = open_store(setup.settings())
    model = choose(store, name)
    try:
        row = baselines.promote(store, model, version, now=time.time())
    except StoreError as error:
        raise click.ClickException(str(error)) from error
    terminal.line(f"baseline {version} of {model.name} ({plural(row.requests, 'request')}) is active")


@command.command()
@_model
def relearn(name: str | None) -> None:
    """Make QualityGap and GarbledOutput learn a new reference, after an accepted change of the model.

    The reference consists of the replays from now on; a running sidecar starts it within seconds. Open alarms of both
    end, and neither raises an alarm until the reference is complete.
    """
    settings = setup.settings()
    store = open_store(settings)
    model = choose(store, name)
    with Session(store) as session, session.begin():
        gone = quality_references.relearn(session, model.name, time.time())
    wanted = settings.shadow.reference_requests
    forgotten = plural(gone, "reference")
    terminal.line(f"{forgotten} of {model.name} forgotten: the next {wanted} scored requests of a replica make one")


def choose(store: Engine, name: str | None) -> Model:
    """Return the model of this name that was first seen last; raise ``ClickException`` when that is not one model."""
    found = served_models.by_name(store, name)
    if not found:
        known = ", ".join(sorted({model.name for model in served_models.by_name(store)}))
        hint = f"the store has: {known}" if known else "no model was seen yet; `moe-watch doctor` says why"
        raise click.ClickException(f"no model {name or ''} in the store: {hint}".replace("  ", " "))
    names = sorted({model.name for model in found})
    if len(names) > 1:
        raise click.ClickException(f"the store has several models, choose one with --model: {', '.join(names)}")
    if not found[0].layers:
        raise click.ClickException(f"{found[0].name} is a dense model: it has no routing to fit a baseline on")
    return found[0]


def _version(store: Engine, model: Model, version: int) -> Baseline:
    for row, _ in baselines.listed(store, model):
        if row.version == version:
            return row
    raise click.ClickException(f"{model.name} has no baseline version {version}: see `moe-watch baseline list`")


def _day(at: float | None) -> str:
    return "never" if at is None else datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%d %H:%M UTC")
