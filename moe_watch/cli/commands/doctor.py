"""``moe-watch doctor``: checks of everything between vLLM and a verdict."""

from __future__ import annotations

import sys

import click
from rich.markup import escape

from moe_watch.cli import setup, terminal
from moe_watch.cli.screen import Screen
from moe_watch.ops.doctor import checkup

_MARKS = {"ok": "[green]ok  [/green]", "warn": "[yellow]warn[/yellow]", "fail": "[red]fail[/red]"}


@click.command()
def command() -> None:
    """Check vLLM, tap, socket, sidecar, store and baseline, and print remedies; exit code 1 if a check fails."""
    console = Screen(highlight=False, soft_wrap=True)
    failed = False
    for check in checkup(setup.settings()):
        console.print(f"{_MARKS[check.state]}  {_plain(check.subject)}: {_plain(check.finding)}")
        if check.state != "ok" and check.remedy:
            console.print(f"      -> {_plain(check.remedy)}")
        failed |= check.state == "fail"
    sys.exit(1 if failed else 0)


def _plain(text: str) -> str:
    """Return text of which parts come from vLLM and its clients: no markup, and one line."""
    return escape(terminal.flat(text))
