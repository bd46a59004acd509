"""``moe-watch report`` and ``moe-watch explain`` as a person runs them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from sqlalchemy import select
from sqlalchemy.orm import Session

from moe_watch.cli.main import main
from moe_watch.report.explain import alarms
from moe_watch.store import schema
from tests.support import store_factory
from tests.support.store_factory import DAY, NEW_DOMAIN, Story

HOSTILE = "<b>\x1b[2J\u202e[red]{{1+1}}"
RECENT = ("--since", "2025-11-17", "--until", "2025-11-24")


def run(*arguments: str) -> Result:
    """Run ``moe-watch`` over the shared store."""
    url = str(store_factory.shared().url)
    return CliRunner().invoke(main, list(arguments), env={"MOE_WATCH_STORE__URL": url, "COLUMNS": "160"})


def a_request(*where: object) -> schema.Request:
    """Return the most unusual stored request that matches."""
    with Session(store_factory.shared()) as session:
        query = select(schema.Request).where(schema.Request.ood_p.is_not(None), *where)  # type: ignore[arg-type]
        found = session.scalars(query.order_by(schema.Request.ood_p, schema.Request.ood_score.desc())).first()
    assert found is not None
    return found


def test_report_writes_three_files_and_says_the_verdict(tmp_path: Path) -> None:
    """By default page, Markdown and JSON are written, and the terminal shows the answers."""
    result = run("report", *RECENT, "--out", str(tmp_path))
    assert result.exit_code == 0, result.output
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [".html", ".json", ".md"]
    assert "Traffic is unlike the baseline" in result.output
    assert "Is quality holding?" in result.output


def test_a_file_chooses_its_format_by_its_ending(tmp_path: Path) -> None:
    """--out week.md writes Markdown alone; another --format with it is refused."""
    path = tmp_path / "deep" / "week.md"
    assert run("report", *RECENT, "--out", str(path)).exit_code == 0
    assert path.read_text().startswith("# moe-watch weekly review")
    refused = run("report", *RECENT, "--out", str(path), "--format", "html")
    assert refused.exit_code == 2
    assert "give a folder" in refused.output


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--model", "nobody/knows"), "known: google/gemma-4-26b-a4b-it"),
        (("--format", "pdf"), "no list of html, md and json"),
        (("--since", "soon"), "soon"),
        (("--since", "2025-11-24", "--until", "2025-11-17"), "before"),
    ],
)
def test_bad_input_is_refused_with_what_to_do(arguments: tuple[str, ...], said: str, tmp_path: Path) -> None:
    """A model that was never served, an unknown format or a wrong period never ends in a traceback."""
    result = run("report", *arguments, "--out", str(tmp_path))
    assert result.exit_code != 0
    assert said in result.output
    assert list(tmp_path.iterdir()) == []


def test_a_period_without_data_says_when_there_was_some(tmp_path: Path) -> None:
    """An empty period is no failure: the page says so, and when the last data is of."""
    result = run("report", "--since", "2024-01-01", "--until", "2024-01-08", "--out", str(tmp_path))
    assert result.exit_code == 0
    assert "Nothing was recorded in this period." in result.output
    assert "Sun 23 Nov 23:00" in result.output
    assert "Sun 23 Nov 23:00" in next(tmp_path.glob("*.html")).read_text()


def test_a_store_that_is_not_there_is_explained(tmp_path: Path) -> None:
    """An empty store is named with the command that makes it."""
    env = {"MOE_WATCH_STORE__URL": f"sqlite:///{tmp_path / 'none.db'}"}
    result = CliRunner().invoke(main, ["report", "--out", str(tmp_path)], env=env)
    assert result.exit_code == 1
    assert "moe-watch db upgrade" in result.output


def test_explain_names_layers_and_experts_of_a_request() -> None:
    """A request of the new topic is unusual, with p-value, layers, experts in words, and its neighbours."""
    row = a_request(schema.Request.domain == NEW_DOMAIN)
    result = run("explain", row.request_id)
    assert result.exit_code == 0, result.output
    assert f"{row.request_id} of google/gemma-4-26b-a4b-it: unusual (p = 0.00" in result.output
    assert "layer 2: share of expert" in result.output
    assert "Most unusual layers" in result.output
    assert "→ " + row.request_id in result.output


def test_explain_agrees_with_what_was_stored() -> None:
    """The p-value is the one that the detectors gave when the request finished."""
    row = a_request()
    (found,) = json.loads(run("explain", row.request_id, "--json").output)
    assert found["comparison"]["p"] == pytest.approx(row.ood_p)
    assert found["baseline"] == 1
    assert {layer["layer"] for layer in found["comparison"]["layers"]} == set(range(6))
    assert "user_hash" not in found["request"]


def test_explain_says_when_there_is_nothing_to_compare() -> None:
    """A request without routing is explained as far as it is known."""
    with Session(store_factory.shared()) as session:
        row = session.scalars(select(schema.Request).where(schema.Request.prompt_routed.is_(None))).first()
    assert row is not None
    result = run("explain", row.request_id)
    assert result.exit_code == 0
    assert "not scored" in result.output
    assert "No routing came for this request." in result.output


def test_explain_an_alarm_by_its_number() -> None:
    """An alarm says since when, where, how sure, what moved, which event was nearest, and what to do."""
    result = run("explain", "alarm:1")
    assert result.exit_code == 0, result.output
    for said in ("Traffic drift from about Fri 21 Nov 14:24", "10,000 requests apart", "Nearest event: vLLM started"):
        assert said in result.output
    assert "What moved, against baseline 1" in result.output
    assert "What to do" in result.output
    assert run("explain", "alarm:77").exit_code == 1


@pytest.mark.parametrize("name", alarms.names())
def test_explain_every_alert(name: str) -> None:
    """Each alert that has a runbook is explained, with its steps."""
    result = run("explain", name)
    assert result.exit_code == 0, result.output
    assert name in result.output
    assert "What to do" in result.output


def test_explain_helps_with_a_typing_error() -> None:
    """A part of an id is answered with ids that begin so; anything else with what there is."""
    row = a_request()
    result = run("explain", row.request_id[:-2])
    assert result.exit_code == 1
    assert row.request_id[:-2] in result.output.split("did you mean")[1]
    assert "RoutingDrift" in run("explain", "no such thing").output


def test_explain_shows_hostile_text_harmlessly(tmp_path: Path) -> None:
    """Escapes, turned lines and markup of a sampled text and of an id reach no terminal."""
    story = Story(
        days=2.0, per_day=900, baseline_day=1.0, drift=None, silent=None, sample_rate=1.0, shadow=False,
        until=store_factory.UNTIL + 3650 * DAY, text=lambda _, __: (HOSTILE, HOSTILE),
        names=lambda i: f"{HOSTILE}{i}",
    )  # fmt: skip
    engine = store_factory.make(tmp_path / "hostile.db", story)
    with Session(engine) as session:
        request_id = session.scalars(select(schema.Request.request_id)).first()
    assert request_id is not None
    result = CliRunner().invoke(main, ["explain", request_id], env={"MOE_WATCH_STORE__URL": str(engine.url)})
    assert result.exit_code == 0, result.output
    assert "\x1b" not in result.output
    assert "\u202e" not in result.output
    assert "␛[2J⟨U+202E⟩[red]{{1+1}}" in result.output
