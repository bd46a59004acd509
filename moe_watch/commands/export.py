"""``moe-watch export``: the history as Parquet, for long memories and many machines."""

from __future__ import annotations

import time

import click

from moe_watch import commands, history
from moe_watch.periods import period
from moe_watch.store import history as rows
from moe_watch.store import served
from moe_watch.store.forget import note_export


@click.command("export")
@click.option(
    "--to", "address", required=True, type=commands.ADDRESS, help="Folder or fsspec address, such as s3://bucket/a."
)
@click.option("--since", default="7d", show_default=True, help="How far back: 12h, 7d, or a date.")
@click.option("--until", default=None, help="Up to when; now by default.")
@click.option("--model", "name", help="Only the model of this name.")
def command(address: str, since: str, until: str | None, name: str | None) -> None:
    """Write stored fingerprints to Parquet, partitioned by model and day; days that are there are replaced whole."""
    start, end = period(since, until, time.time())
    engine = commands.store(commands.settings())
    models = served.by_name(engine, name)
    if not models:
        raise click.ClickException("the store has no such model: see `moe-watch status`")
    try:
        note_export(engine, history.absolute(address))
        for model in models:
            written = history.write(rows.rows(engine, model, start, end), model, address)
            click.echo(f"{model.name} ({model.identity[:8]}): {written} requests to {address}")
    except history.HistoryError as error:
        raise click.ClickException(str(error)) from error
