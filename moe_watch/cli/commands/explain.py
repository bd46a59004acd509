"""``moe-watch explain``: one request, one alarm, or an alert, in words."""

from __future__ import annotations

import re
import time
from typing import Final

import click
from rich.text import Text
from sqlalchemy import Engine
from sqlalchemy.exc import SQLAlchemyError

from moe_watch.cli import setup, tables, terminal
from moe_watch.cli.open_store import open_store
from moe_watch.cli.tables import Grid, Prose
from moe_watch.domain.sanitise import neutralise, one_line
from moe_watch.report.explain import alarms, request
from moe_watch.report.explain.request import Explanation, Table
from moe_watch.report.render.as_json import plain
from moe_watch.settings import Settings
from moe_watch.store.read import report_queries as store
from moe_watch.store.records import alarms as stored_alarms

_COLOURS: Final = {"calm": "green", "warn": "yellow", "bad": "red", "unknown": "cyan"}
_SPARE: Final = ("replica", "domain", "tokens")
_ALARM: Final = re.compile(r"(?:alarm:|episode:)?(\d{1,15})")


@click.command()
@click.argument("what", metavar="REQUEST_ID | ALERT | alarm:NUMBER")
@click.option("--json", "raw", is_flag=True, help="Print JSON.")
def command(what: str, *, raw: bool) -> None:
    """Explain a request (its routing against the baseline), an alarm by its number, or an alert by its name."""
    settings = setup.settings()
    engine = open_store(settings)
    try:
        found = _find(engine, settings, what, time.time())
    except SQLAlchemyError as error:
        raise click.ClickException(f"the store cannot be read: {getattr(error, 'orig', None) or error}") from error
    if raw:
        terminal.data([plain({"title": one.title, **one.data}) for one in found])
        return
    for one in found:
        tables.show(*view(one))


def _find(engine: Engine, settings: Settings, what: str, now: float) -> list[Explanation]:
    """Return the explanations; raises ``click.ClickException`` with suggestions if there are none."""
    if number := _ALARM.fullmatch(what):
        row = stored_alarms.find(engine, int(number[1]))
        if row is not None:
            return [alarms.alarm(engine, settings, row, now)]
        if what != number[1]:
            raise click.ClickException(f"there is no alarm {number[1]}: the report and `moe-watch status` number them")
    if name := alarms.find(what):
        return alarms.alert(engine, settings, name, now)
    found = request.request(engine, settings, what, now)
    if found:
        return found
    with engine.connect() as connection:
        like = [one_line(name) for name in store.requests_like(connection, what)]
    hint = (
        f"did you mean {', '.join(like)}?"
        if like
        else (
            f"requests are kept for {settings.store.keep_requests_days:g} days; alerts are {', '.join(alarms.names())}"
        )
    )
    raise click.ClickException(f"{one_line(what)!r} is no request in the store, no alert and no alarm: {hint}")


def view(found: Explanation) -> list[Grid | Prose | str]:
    """Return ``found`` for a terminal; text from outside is neutralised here and never read as markup."""
    parts: list[Grid | Prose | str] = [Prose(Text(one_line(found.title, 300), f"bold {_COLOURS[found.tone]}")), ""]
    parts += [Prose(one_line(sentence, 1000), 2) for sentence in found.sentences if sentence]
    for table in found.tables:
        if table.rows:
            parts += ["", _heading(table.title), _grid(table)]
    for name, text in found.texts:
        parts += ["", _heading(name), Prose(neutralise(text), 4)]
    if found.todo:
        parts += ["", _heading("What to do")]
        parts += [Prose(f"{n}. {one_line(step, 600)}", 2) for n, step in enumerate(found.todo, 1)]
    return [*parts, ""]


def _heading(text: str) -> Prose:
    return Prose(Text(text, "bold"), 2)


def _grid(table: Table) -> Grid:
    rows = [
        [one_line(cell, 200) if not cell.startswith("  ") else f"  {one_line(cell)}" for cell in row]
        for row in table.rows
    ]
    return Grid(table.columns, rows, spare=_SPARE, indent=2)
