"""``moe-watch db``: the schema of the store, and the deletion of rows past their retention."""

from __future__ import annotations

import time

import click

from moe_watch.cli import setup, terminal
from moe_watch.cli.open_store import open_store
from moe_watch.domain.amounts import plural
from moe_watch.store import engine, migrate
from moe_watch.store.engine import StoreError
from moe_watch.store.lifecycle.prune import prune as prune_store


@click.group()
def command() -> None:
    """Upgrade or prune the store."""


@command.command()
@click.option("--store", "url", type=setup.ADDRESS, help="SQLAlchemy URL; by default the one in the settings.")
def upgrade(url: str | None) -> None:
    """Upgrade the store to the schema of this version."""
    try:
        store = engine.connect(url or setup.settings().store.url)
        before = migrate.current(store)
        migrate.upgrade(store)
    except StoreError as error:
        raise click.ClickException(str(error)) from error
    terminal.line(
        f"schema {migrate.head()}" + (" already" if before == migrate.head() else f" (was {before or 'empty'})")
    )


@command.command()
def prune() -> None:
    """Delete rows past their retention and roll up old windows, as the sidecar does by itself."""
    settings = setup.settings()
    pruned = prune_store(open_store(settings), settings.store, time.time())
    counts = {"request": pruned.requests, "sample": pruned.samples, "window": pruned.windows}
    deleted = ", ".join(plural(number, kind) for kind, number in counts.items())
    terminal.line(f"deleted {deleted}; {plural(pruned.rolled_up, 'window')} became hours")
