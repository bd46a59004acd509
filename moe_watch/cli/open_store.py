"""The store as the commands open it; apart from ``setup``, so that the other commands need no SQLAlchemy."""

from __future__ import annotations

import click
from sqlalchemy import Engine

from moe_watch.settings import Settings
from moe_watch.store import engine, migrate
from moe_watch.store.engine import StoreError


def open_store(of: Settings) -> Engine:
    """Return the store at the newest schema; raise ``ClickException`` with the remedy."""
    try:
        opened = engine.connect(of.store.url)
        engine.check(opened)
        if migrate.is_current(opened):
            return opened
    except StoreError as error:
        raise click.ClickException(str(error)) from error
    raise click.ClickException("the store is empty or has an older schema: run `moe-watch db upgrade`")
