"""``moe-watch shadow``: replay sampled requests to the dense model, in its own process."""

from __future__ import annotations

import asyncio
import signal
from contextlib import suppress

import click

from moe_watch.cli import log, setup
from moe_watch.cli.open_store import open_store
from moe_watch.settings import Settings
from moe_watch.shadow import worker


@click.command()
@click.option("--url", type=setup.ADDRESS, help="OpenAI-compatible base URL of the dense model.")
@click.option("--model", help="Model name at that server; by default the first that it lists.")
@click.option("--store", "store_url", type=setup.ADDRESS, help="SQLAlchemy URL of the store.")
def command(url: str | None, model: str | None, store_url: str | None) -> None:
    """Replay sampled requests to the dense model until stopped.

    The sidecar does the same by itself if shadow.url is set; a separate process can run near the dense model and needs
    only the store. In that case set shadow.inside to false for the sidecar, or it processes the samples first.
    """
    settings = setup.settings()
    settings.shadow.url = url or settings.shadow.url
    settings.shadow.model = model or settings.shadow.model
    if store_url is not None:
        settings.store.url = store_url
    if settings.shadow.url is None:
        raise click.ClickException("no dense model: give --url, or set MOE_WATCH_SHADOW__URL to its base URL")
    log.configure(settings.log_format)
    asyncio.run(_run(settings))


async def _run(settings: Settings) -> None:
    work = asyncio.create_task(worker.run(settings, open_store(settings)))
    for end in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(end, work.cancel)
    with suppress(asyncio.CancelledError):
        await work
