"""``moe-watch forget``: delete a request, or all requests of a person, everywhere."""

from __future__ import annotations

import click

from moe_watch import commands, history, wire
from moe_watch.store import history as rows


@click.command("forget")
@click.option("--request", "request_id", help="The request's id, as the client got it.")
@click.option("--user", help='The person, as in the "user" field of the requests.')
@click.option("--export", "addresses", multiple=True, help="Also delete from the Parquet at this address; repeatable.")
def command(request_id: str | None, user: str | None, addresses: tuple[str, ...]) -> None:
    """Delete every stored row of one request or one person; sums over many requests stay, they name nobody."""
    if (request_id is None) == (user is None):
        raise click.UsageError("say what to forget: --request ID or --user NAME")
    what = {"request_id": request_id, "user_hash": None if user is None else wire.user_hash(user)}
    gone = rows.forget(commands.store(commands.settings()), **what)
    click.echo(
        f"Deleted from the store: {gone.requests} requests, {gone.fingerprints} fingerprints, {gone.samples} samples, "
        f"{gone.shadows} shadow results"
    )
    try:
        for address in addresses:
            click.echo(f"Deleted from {address}: {history.forget(address, **what)} rows")
    except history.HistoryError as error:
        raise click.ClickException(str(error)) from error
    if not gone.requests and not addresses:
        raise click.ClickException("the store has no such request; were its exports named with --export?")
