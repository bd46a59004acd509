"""``moe-watch report``: the weekly review as one HTML file, Markdown and JSON."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import click
from rich.text import Text
from sqlalchemy import Engine
from sqlalchemy.exc import SQLAlchemyError

from moe_watch.cli import setup
from moe_watch.cli.open_store import open_store
from moe_watch.cli.screen import Screen
from moe_watch.cli.time_ranges import period as read_period
from moe_watch.domain import amounts, private_files
from moe_watch.domain.sanitise import one_line
from moe_watch.report.build.gather import gather
from moe_watch.report.data.review import Report
from moe_watch.report.data.types import Period
from moe_watch.report.render import as_html, as_json, as_markdown
from moe_watch.report.say import verdict as words
from moe_watch.store.read import report_queries as store

_COLOURS: Final = {"calm": "green", "warn": "yellow", "bad": "red", "unknown": "cyan"}
_ENDINGS: Final = {"html": "html", "htm": "html", "md": "md", "json": "json"}


def _formats(context: click.Context, parameter: click.Parameter, given: str) -> tuple[str, ...]:
    """Read a list such as ``html,md``."""
    del context
    asked = [name.strip().lower() for name in given.split(",") if name.strip()]
    if set(asked) - {"html", "md", "json"}:
        raise click.BadParameter(f"{given!r} is no list of html, md and json", param=parameter)
    return tuple(dict.fromkeys(asked))


@click.command()
@click.option("--since", default="7d", show_default=True, help="Start: 24h or 7d ago, or a date (UTC).")
@click.option("--until", help="End, in the same form; by default now.")
@click.option("--model", help="Name of one served model; by default all models with data.")
@click.option(
    "--out", type=click.Path(path_type=Path), default=Path(), help="Folder, or one file; by default the current folder."
)
@click.option("--format", "formats", default="", callback=_formats, help="Formats to write; by default html,md,json.")
def command(since: str, until: str | None, model: str | None, out: Path, formats: tuple[str, ...]) -> None:
    """Write the report of a period: is quality holding, did routing move, what changed, what to do.

    If --out is a file, its ending selects the format.
    """
    now = time.time()
    period = Period(*read_period(since, until, now))
    settings = setup.settings()
    engine = open_store(settings)
    files = _files(out, formats, period)
    try:
        report = gather(engine, settings, period, now=now, model=model)
        nothing = "" if report.reviews else _nothing(engine, model)
    except SQLAlchemyError as error:
        raise click.ClickException(f"the store cannot be read: {getattr(error, 'orig', None) or error}") from error
    _write(report, files, nothing)
    _tell(report, nothing, [path for _, path in files])


def _files(out: Path, formats: tuple[str, ...], period: Period) -> list[tuple[str, Path]]:
    """Return (format, path) of what to write; raises ``click.UsageError`` when file and formats do not agree."""
    form = _ENDINGS.get(out.suffix.lower().removeprefix("."))
    if form is None or out.is_dir():
        stem = f"moe-watch-{datetime.fromtimestamp(period.until, UTC):%Y-%m-%d-%H%M}"
        return [(name, out / f"{stem}.{name}") for name in formats or ("html", "md", "json")]
    if formats not in {(), (form,)}:
        raise click.UsageError(f"--out {out} is one {form} file: give a folder for --format {','.join(formats)}")
    return [(form, out)]


def _nothing(engine: Engine, model: str | None) -> str:
    """Say when there was data last; raises ``click.ClickException`` for a model that was never served."""
    with engine.connect() as connection:
        latest = store.latest_windows(connection)
    if model is not None and model not in latest:
        known = amounts.joined([one_line(name) for name in latest]) or "none so far"
        raise click.ClickException(f"no data of a model {model!r}; known: {known}")
    if not latest:
        return "The store has no data at all: moe-watch doctor says whether vLLM's tap reaches moe-watch serve."
    name = model or next(iter(latest))
    return f"The last data, of {one_line(name)}, is of {amounts.moment(latest[name])}: choose another period."


def _write(report: Report, files: list[tuple[str, Path]], nothing: str) -> None:
    renderers: dict[str, Callable[[], str]] = {
        "html": lambda: as_html.render(report, nothing=nothing),
        "md": lambda: as_markdown.render(report, nothing=nothing),
        "json": lambda: as_json.render(report),
    }
    for form, path in files:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            private_files.replace(path, renderers[form]())
        except OSError as error:
            raise click.ClickException(f"cannot write {path}: {error.strerror}") from error


def _tell(report: Report, nothing: str, paths: list[Path]) -> None:
    """Print the verdicts and where the files are."""
    console = Screen(highlight=False, soft_wrap=True)
    if not report.reviews:
        console.print(Text(f"Nothing was recorded in this period. {nothing}", "cyan"))
    for review in report.reviews:
        verdict = words.verdict(review)
        console.print(Text.assemble((verdict.headline, f"bold {_COLOURS[verdict.tone]}")))
        console.print(
            Text(f"{one_line(review.served.name)}, {amounts.plural(review.totals.requests, 'request')}", "dim")
        )
        for answer in verdict.answers:
            console.print(
                Text.assemble(
                    (f"  {answer.question} ", "bold"), f"{answer.short}. {one_line(answer.sentences[0], 300)}"
                )
            )
        for action in verdict.actions:
            console.print(Text(f"  → {one_line(action.text, 400)} {action.command}".rstrip()))
    for path in paths:
        console.print(Text(str(path), "bold"))
