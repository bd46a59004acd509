"""``moe-watch explain``: one request, one alarm, or an alert, in words."""

from __future__ import annotations

import re
import sys
import time
from typing import Final

import click
from rich import box
from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table as Grid
from rich.text import Text
from sqlalchemy import Engine
from sqlalchemy.exc import SQLAlchemyError

from moe_watch import commands, terminal
from moe_watch.report import alarms, explain
from moe_watch.report.as_json import plain
from moe_watch.report.explain import Explanation, Table
from moe_watch.report.text import neutralise, one_line
from moe_watch.settings import Settings
from moe_watch.store import episodes
from moe_watch.store import review as store

_COLOURS: Final = {"calm": "green", "warn": "yellow", "bad": "red", "unknown": "cyan"}
_EPISODE: Final = re.compile(r"(?:episode:|alarm:)?(\d{1,15})")


@click.command()
@click.argument("what", metavar="REQUEST_ID | ALERT | episode:NUMBER")
@click.option("--json", "raw", is_flag=True, help="Print JSON.")
def command(what: str, *, raw: bool) -> None:
    """Explain a request (its routing against the baseline), an alarm by its number, or an alert by its name."""
    settings = commands.settings()
    engine = commands.store(settings)
    try:
        found = _find(engine, settings, what, time.time())
    except SQLAlchemyError as error:
        raise click.ClickException(f"the store cannot be read: {getattr(error, 'orig', None) or error}") from error
    if raw:
        terminal.data([plain({"title": one.title, **one.data}) for one in found])
        return
    console = terminal.Screen(highlight=False, width=None if sys.stdout.isatty() else 120)
    for one in found:
        console.print(view(one))


def _find(engine: Engine, settings: Settings, what: str, now: float) -> list[Explanation]:
    """Return what there is to say; raises ``click.ClickException`` that says what could have been meant."""
    if number := _EPISODE.fullmatch(what):
        row = episodes.find(engine, int(number[1]))
        if row is not None:
            return [alarms.episode(engine, settings, row, now)]
        if what != number[1]:
            raise click.ClickException(f"there is no alarm {number[1]}: the report and `moe-watch status` number them")
    if name := alarms.find(what):
        return alarms.alert(engine, settings, name, now)
    found = explain.request(engine, settings, what, now)
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


def view(found: Explanation) -> RenderableType:
    """Return ``found`` for a terminal; text from outside is neutralised here and never read as markup."""
    parts: list[RenderableType] = [Text(one_line(found.title, 300), f"bold {_COLOURS[found.tone]}"), ""]
    parts += [_indented(Text(one_line(sentence, 1000))) for sentence in found.sentences if sentence]
    for table in found.tables:
        if table.rows:
            parts += ["", _indented(Text(table.title, "bold")), _indented(_grid(table))]
    for name, text in found.texts:
        parts += ["", _indented(Text(name, "bold")), _indented(Text(neutralise(text)), 4)]
    if found.todo:
        parts += ["", _indented(Text("What to do", "bold"))]
        parts += [_indented(Text(f"{n}. {one_line(step, 600)}")) for n, step in enumerate(found.todo, 1)]
    return Group(*parts, "")


def _indented(inner: RenderableType, by: int = 2) -> Padding:
    return Padding(inner, (0, 0, 0, by), expand=False)


def _grid(table: Table) -> Grid:
    grid = Grid(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, header_style="dim")
    for place, name in enumerate(table.columns):
        right = table.numbers and place and any(row[place][-1:].isalnum() or "%" in row[place] for row in table.rows)
        grid.add_column(Text(name), justify="right" if right else "left", overflow="fold")
    for row in table.rows:
        grid.add_row(
            *(Text(one_line(cell, 200) if not cell.startswith("  ") else f"  {one_line(cell)}") for cell in row)
        )
    return grid
