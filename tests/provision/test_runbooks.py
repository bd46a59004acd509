"""The runbooks: one for every alert, of one shape, with commands that exist."""

from __future__ import annotations

import re
import shlex

import click
import pytest

from moe_watch.cli.main import main
from moe_watch.provision import assets, thresholds
from moe_watch.provision.catalogue import ALERTS
from moe_watch.settings import Settings

RUNBOOKS = assets.runbooks()
SECTIONS = [
    "What it means",
    "How sure",
    "First three commands",
    "Likely causes, and how to tell them apart",
    "What to do",
    "When to ignore it",
]


def commands(text: str) -> list[str]:
    """Return every moe-watch command, in blocks and in the text."""
    blocks = "".join(re.findall(r"```sh\n(.*?)```", text, re.DOTALL))
    return re.findall(r"^moe-watch .+$", blocks, re.MULTILINE) + re.findall(r"`(moe-watch [^`\n]+)`", text)


def parse(line: str) -> None:
    """Parse a command line with the real CLI and run nothing of it; raise ``click.UsageError`` where it is wrong."""
    command: click.Command = main
    context, arguments = click.Context(main, info_name="moe-watch"), shlex.split(line)[1:]
    while isinstance(command, click.Group):
        _, inner, arguments = command.resolve_command(context, arguments)
        assert inner is not None
        command = inner
    command.make_context(command.name, list(arguments), parent=context)


def test_every_alert_has_a_runbook_and_every_runbook_an_alert() -> None:
    """No link is dead, no page is left over."""
    assert set(RUNBOOKS) == {alert.name for alert in ALERTS}


@pytest.mark.parametrize("name", RUNBOOKS)
def test_every_runbook_has_the_same_shape(name: str) -> None:
    """Somebody who knows one knows where to look in all."""
    text = RUNBOOKS[name]
    assert text.startswith(f"# {name}: ")
    assert re.findall(r"^## (.+)$", text, re.MULTILINE) == SECTIONS
    severity = next(alert.severity for alert in ALERTS if alert.name == name)
    assert re.search(rf"^\*\*{severity}", text, re.MULTILINE | re.IGNORECASE)


@pytest.mark.parametrize("name", RUNBOOKS)
def test_every_runbook_begins_with_three_commands(name: str) -> None:
    """The block under that heading has exactly three lines, all of moe-watch."""
    block = re.search(r"## First three commands\n```sh\n(.*?)```", RUNBOOKS[name], re.DOTALL)
    assert block
    assert [line.split()[0] for line in block[1].splitlines()] == ["moe-watch"] * 3


@pytest.mark.parametrize(("name", "line"), [(name, line) for name, text in RUNBOOKS.items() for line in commands(text)])
def test_every_command_in_a_runbook_parses(name: str, line: str) -> None:
    """The real command line accepts it, options included."""
    del name
    parse(line)


def test_a_command_that_does_not_exist_would_be_found() -> None:
    """The check above is not blind."""
    with pytest.raises(click.UsageError):
        parse("moe-watch explain TapDown --no-such-option")
    with pytest.raises(click.UsageError):
        parse("moe-watch no-such-command")


@pytest.mark.parametrize("name", RUNBOOKS)
def test_links_between_runbooks_lead_somewhere(name: str) -> None:
    """``Name.md`` is the runbook of an alert."""
    assert set(re.findall(r"\]\((\w+)\.md\)", RUNBOOKS[name])) <= set(RUNBOOKS)


@pytest.mark.parametrize("name", RUNBOOKS)
def test_settings_named_in_a_runbook_exist(name: str) -> None:
    """An on-call engineer who sets one sets something."""
    known = {f"MOE_WATCH_{field.upper()}" for field in Settings.model_fields} | {"MOE_WATCH_ENDPOINT"}
    for field, info in Settings.model_fields.items():
        inner = getattr(info.annotation, "model_fields", {})
        known |= {f"MOE_WATCH_{field.upper()}__{part.upper()}" for part in inner}
    assert set(re.findall(r"MOE_WATCH_\w+", RUNBOOKS[name])) <= known


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("BaselineStale", f"more than {thresholds.BASELINE_MAX_AGE_DAYS} days"),
        ("ExpertImbalance", f"{thresholds.RANK_LOAD_RATIO:g} times the mean"),
        ("FramesDropped", f"More than {thresholds.FRAMES_DROPPED_RATIO:.0%}".replace("%", " %")),
        ("FramesRefused", f"More than {thresholds.FRAMES_REFUSED_RATIO:.0%}".replace("%", " %")),
        ("TapDown", f"watched {thresholds.VANISHED_AFTER.removesuffix('m')} minutes ago"),
        ("KVCachePressure", f"More than {thresholds.KV_CACHE_RATIO:.0%}".replace("%", " %")),
        ("TTFTBudgetBurn", f"{thresholds.TTFT_OBJECTIVE_RATIO:.0%}".replace("%", " %") + " of requests"),
        ("TTFTBudgetBurn", f"{thresholds.TTFT_FAST_BURN:g} times"),
        ("TTFTBudgetBurn", f"at least {thresholds.TTFT_MIN_REQUESTS} requests"),
    ],
)
def test_numbers_in_a_runbook_are_those_of_the_alert(name: str, said: str) -> None:
    """A threshold that is changed takes its runbook along."""
    assert said in RUNBOOKS[name]
