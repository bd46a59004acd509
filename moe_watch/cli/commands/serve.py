"""``moe-watch serve``: run the sidecar."""

from __future__ import annotations

import click

from moe_watch.cli import log, setup
from moe_watch.sidecar import serve
from moe_watch.sidecar.http import BindError, EndedError
from moe_watch.sidecar.intake import EndpointError
from moe_watch.store.engine import StoreError


@click.command()
@click.option("--endpoint", help="ZMQ address to bind for the taps.")
@click.option("--store", "url", type=setup.ADDRESS, help="SQLAlchemy URL of the store.")
@click.option("--port", type=click.IntRange(0, 65535), help="HTTP port.")
def command(endpoint: str | None, url: str | None, port: int | None) -> None:
    """Run the sidecar until it is stopped."""
    settings = setup.settings(endpoint=endpoint)
    if url is not None:
        settings.store.url = url
    if port is not None:
        settings.http.port = port
    log.configure(settings.log_format)
    try:
        serve.serve(settings)
    except (BindError, EndedError, EndpointError, StoreError) as error:
        raise click.ClickException(str(error)) from error
