"""``moe-watch forget``: delete a request or all requests of a person from all places, and verify the deletion."""

from __future__ import annotations

import click

from moe_watch import wire
from moe_watch.cli import setup, terminal
from moe_watch.cli.open_store import open_store
from moe_watch.domain.amounts import plural
from moe_watch.ops import archive, erase
from moe_watch.ops.erase import Place
from moe_watch.store.lifecycle.forget import Who


@click.command("forget")
@click.option("--request", "request_id", help="Id of the request, as the client received it.")
@click.option("--user", help='The person, as in the "user" field of requests.')
@click.option(
    *("--export", "addresses"),
    multiple=True,
    type=setup.ADDRESS,
    help="A copy of an export that `moe-watch export` did not write itself; repeatable.",
)
@click.option(
    "--wait", default=30.0, show_default=True, help="Seconds to wait until a running sidecar has emptied its spool."
)
def command(request_id: str | None, user: str | None, addresses: tuple[str, ...], wait: float) -> None:
    """Delete every row of one request or one person from the spool, the store and all exports.

    It reads each place again afterwards; exit code 1 if rows are left, if a place could not be searched, or if nothing
    was found. Sums over many requests stay, since they identify nobody.
    """
    if bool(request_id) == bool(user):
        raise click.UsageError("say what to forget: --request ID or --user NAME")
    settings = setup.settings()
    who = Who(request_id=request_id or None, user_hash=wire.user_hash(user) if user else None)
    places = []
    try:
        for place in erase.everywhere(settings, open_store(settings), who, addresses, wait):
            places.append(place)
            terminal.line(_line(place))
    except archive.HistoryError as error:
        raise click.ClickException(str(error)) from error
    if any(place.left or place.problem for place in places):
        raise click.ClickException("not everything is known to be gone: see above")
    if not any(sum(place.gone.values()) for place in places):
        raise click.ClickException("nothing of it was found in any of these places")


def _line(place: Place) -> str:
    deleted = ", ".join(plural(n, kind.removesuffix("s"), kind) for kind, n in place.gone.items()) or "nothing"
    remark = place.problem or place.note
    return f"{place.name}: deleted {deleted}; {place.left} left" + (f" ({remark})" if remark else "")
