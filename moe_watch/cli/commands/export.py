"""``moe-watch export``: stored fingerprints as Parquet, for an archive and for Ray."""

from __future__ import annotations

import time

import click

from moe_watch.cli import setup, terminal
from moe_watch.cli.open_store import open_store
from moe_watch.cli.time_ranges import period
from moe_watch.domain.amounts import plural
from moe_watch.ops import archive
from moe_watch.store.lifecycle.forget import note_export
from moe_watch.store.lifecycle.prune import DAY_S
from moe_watch.store.read import history as rows
from moe_watch.store.records import served_models


@click.command("export")
@click.option(
    "--to", "address", required=True, type=setup.ADDRESS, help="Folder or fsspec address, such as s3://bucket/a."
)
@click.option("--since", default="7d", show_default=True, help="Start: 12h or 7d ago, or a date.")
@click.option("--until", default=None, help="End; by default now.")
@click.option("--model", "name", help="Only the model of this name.")
def command(address: str, since: str, until: str | None, name: str | None) -> None:
    """Write stored fingerprints to Parquet, partitioned by model and day.

    It writes whole days (UTC), from the day of --since to the day of --until, and replaces days that exist. It leaves
    a day that retention has begun to delete as it was exported before.
    """
    settings, now = setup.settings(), time.time()
    start, end = period(since, until, now)
    start, end = archive.whole_days(start, end, oldest=now - settings.store.keep_requests_days * DAY_S)
    engine = open_store(settings)
    models = served_models.by_name(engine, name)
    if not models:
        raise click.ClickException("the store has no such model: see `moe-watch status`")
    try:
        note_export(engine, archive.absolute(address))
        for model in models:
            written = archive.write(rows.rows(engine, model, start, end), model, address)
            terminal.line(f"{model.name} ({model.identity[:8]}): {plural(written, 'request')} to {address}")
    except (archive.HistoryError, OSError) as error:
        raise click.ClickException(str(error)) from error
