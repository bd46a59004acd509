"""``moe-watch backtest``: which alarms today's detectors would have raised on stored requests."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import UTC, datetime

import click
from sqlalchemy import Engine

from moe_watch.cli import setup, terminal
from moe_watch.cli.open_store import open_store
from moe_watch.cli.time_ranges import period
from moe_watch.detect.fit.baseline_fit import Baseline
from moe_watch.domain.amounts import plural
from moe_watch.domain.sanitise import one_line
from moe_watch.ops import archive, backtest
from moe_watch.store.engine import StoreError
from moe_watch.store.read import history as rows
from moe_watch.store.read import requests
from moe_watch.store.records import baselines, served_models
from moe_watch.store.schema import Model


@click.command("backtest")
@click.option("--since", default="7d", show_default=True, help="Start: 12h or 7d ago, or a date.")
@click.option("--until", default=None, help="End; by default now.")
@click.option("--model", "name", help="Name of the model; by default the one seen last.")
@click.option("--from", "address", type=setup.ADDRESS, help="Read Parquet of `moe-watch export` instead of the store.")
@click.option(
    "--ray", "cluster", help="Run on the Ray cluster at this address ('local' starts one here); needs --from."
)
def command(since: str, until: str | None, name: str | None, address: str | None, cluster: str | None) -> None:
    """Run the detectors over stored fingerprints of each replica, and show when each drift alarm would have opened."""
    if cluster and not address:
        raise click.UsageError("--ray needs --from: the workers read Parquet, not the store")
    start, end = period(since, until, time.time())
    settings = setup.settings()
    engine = open_store(settings)
    model, baseline = _judge(engine, name)
    promise, alpha = settings.detect.average_run_length, settings.detect.ood_alpha
    try:
        if address is None:
            names = rows.replicas(engine, model)
            outcomes = backtest.run_here(names, _FromStore(engine, model, start, end), baseline, promise, alpha)
        else:
            source = _parquet(address, model, start, end)
            names = archive.replicas(address, model.identity)
            outcomes = (
                backtest.run_on_ray(names, source, baseline, promise, alpha, address=cluster)
                if cluster
                else backtest.run_here(names, source, baseline, promise, alpha)
            )
        _show(outcomes)
    except (archive.HistoryError, ImportError) as error:
        raise click.ClickException(str(error)) from error


class _FromStore:
    """Reads one replica's stream from the store."""

    def __init__(self, engine: Engine, model: Model, start: float, end: float) -> None:
        self._engine, self._model, self._start, self._end = engine, model, start, end

    def __call__(self, replica: str) -> Iterator[backtest.Recorded]:
        for found in requests.fingerprints(self._engine, self._model, self._start, self._end, replica=replica):
            yield backtest.Recorded(found.batch, list(found.request_ids))


def _judge(engine: Engine, name: str | None) -> tuple[Model, Baseline]:
    """Return the newest model of this name that has an active baseline, and the baseline."""
    active = baselines.active(engine)
    model = next((one for one in served_models.by_name(engine, name) if one.identity in active), None)
    if model is None:
        raise click.ClickException("no active baseline to judge by: `moe-watch baseline fit --promote` makes one")
    try:
        return model, baselines.load(engine, active[model.identity].id)
    except StoreError as error:
        raise click.ClickException(str(error)) from error


def _parquet(address: str, model: Model, start: float, end: float) -> archive.ParquetSource:
    shape = archive.shapes(address).get(model.identity)
    if shape is None:
        raise click.ClickException(f"{address} has nothing of {model.name} ({model.identity[:8]})")
    return archive.ParquetSource(address, shape, start, end)


def _show(outcomes: Iterator[backtest.Outcome]) -> None:
    for outcome in outcomes:
        share = outcome.unusual / outcome.requests if outcome.requests else 0.0
        requests, drifts = plural(outcome.requests, "request"), plural(len(outcome.fired), "drift")
        terminal.line(f"{one_line(outcome.replica)}: {requests}, {share:.2%} unusual, {drifts}")
        for one in outcome.fired:
            where = one.channel if one.layer is None else f"{one.channel} {one.layer}"
            end = _clock(one.ended_at) if one.ended_at is not None else "still open at the end"
            terminal.line(
                f"  flagged {_clock(one.flagged_at)} at request {one.request} ({one_line(one.request_id)}), "
                f"began about {_clock(one.began_at)}, ended {end}; seen in: {where}"
            )


def _clock(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%d %H:%M:%S")
