"""The page, Markdown and JSON: one file each, nothing fetched, nothing run, and all of them say the same."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from dataclasses import replace
from functools import cache
from html.parser import HTMLParser
from pathlib import Path

import pytest
from markdown_it import MarkdownIt

from moe_watch.report.build.gather import gather
from moe_watch.report.data.review import Report
from moe_watch.report.data.sections import Bucket, Mark, Ood, Quality, Timeline
from moe_watch.report.data.types import Interval, Period
from moe_watch.report.render import as_html, as_json, as_markdown
from moe_watch.report.render.plots.timeline import draw
from moe_watch.report.say import verdict as words
from moe_watch.settings import Settings
from tests.support import store_factory
from tests.support.store_factory import DAY, UNTIL, Story

WEEK = Period(UNTIL - 7 * DAY, UNTIL)
HOSTILE = "<script>document.title='owned'</script><img src=x onerror=alert(1)>\x1b[31m\u202egnp.exe {{7*7}} `| @all"


@cache
def report() -> Report:
    """Return the shared store's week with texts."""
    return gather(store_factory.shared(), Settings(http={"page_samples": True}), WEEK, now=UNTIL)  # type: ignore[arg-type]


@cache
def hostile() -> Report:
    """Return the week with hostile text wherever text comes from outside."""
    (review,) = report().reviews
    served = replace(review.served, name=HOSTILE, facts={"vLLM": HOSTILE})
    assert not hasattr(review.suspects, "why")
    suspects = tuple(
        replace(s, request_id=HOSTILE, domain=HOSTILE, finish_reason=HOSTILE, replica=HOSTILE,
                text=replace(s.text, prompt=HOSTILE * 50_000, output=HOSTILE) if s.text else None)
        for s in review.suspects.requests
    )  # fmt: skip
    drift = replace(review.timeline.alarms[0], summary=HOSTILE, replica=HOSTILE)
    marks = (Mark(UNTIL - DAY, "engine_start", HOSTILE, HOSTILE),)
    timeline = replace(review.timeline, alarms=(drift,), marks=marks)
    assert isinstance(review.ood, Ood)
    assert isinstance(review.quality, Quality)
    domains = tuple(replace(part, name=HOSTILE) for part in review.ood.domains)
    groups = {by: tuple(replace(g, name=HOSTILE) for g in part) for by, part in review.quality.groups.items()}
    made = replace(
        review,
        ood=replace(review.ood, domains=domains),
        quality=replace(review.quality, groups=groups, dense_model=HOSTILE),
        served=served,
        replicas=(HOSTILE,),
        suspects=replace(review.suspects, requests=suspects),
        timeline=timeline,
    )
    return replace(report(), reviews=(made,))


class Tags(HTMLParser):
    """Collects elements and attributes."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.seen: list[tuple[str, dict[str, str | None]]] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Remember one element."""
        self.seen.append((tag, dict(attrs)))


@pytest.mark.parametrize("made", [report, hostile])
def test_the_page_runs_nothing_and_fetches_nothing(made: object) -> None:
    """No script, no handler, no style attribute and no address but the page's own anchors and an empty icon."""
    tags = Tags(as_html.render(made()))  # type: ignore[operator]
    assert not {tag for tag, _ in tags.seen} & {"script", "img", "iframe", "object", "embed", "base", "form", "audio"}
    for _, attributes in tags.seen:
        assert not {name for name in attributes if name.startswith("on") or name in {"style", "src", "srcset"}}
        assert (attributes.get("href") or "#").startswith(("#", "data:,"))


def test_the_policy_names_the_style_sheet_by_its_hash() -> None:
    """The one style element is the one that the content-security policy allows, byte for byte."""
    page = as_html.render(report())
    style = re.search(r"<style>(.*?)</style>", page, re.DOTALL)
    assert style is not None
    digest = base64.b64encode(hashlib.sha256(style[1].encode()).digest()).decode()
    assert f"default-src 'none'; style-src 'sha256-{digest}'" in page.replace("&#39;", "'")


def test_every_class_of_a_plot_is_styled() -> None:
    """No shape depends on a class that the style sheet does not know."""
    page = as_html.render(report())
    style, body = page.split("</style>", 1)
    used = {
        name
        for part in re.findall(r'<(?:rect|line|path|circle|text)[^>]*class="([^"]+)"', body)
        for name in part.split()
    }
    assert {name for name in used if f".{name}" not in style} <= {"tick"}


def test_the_timeline_stays_inside_its_plot() -> None:
    """A step that begins before the period, or ends after it, is cut at its edge."""
    rate = Interval(0.1, 0.05, 0.2, 60)
    timeline = Timeline(60, tuple(Bucket(60.0 * k, 60, 60, rate) for k in range(3)), (), ())
    drawn = str(draw(timeline, Period(50.0, 130.0), 0.01, 358))
    found = re.findall(r"[ML](-?[\d.]+) |\bx\d?=\"(-?[\d.]+)", drawn)
    across = [float(path or attribute) for path, attribute in found]
    assert len(across) > 20
    assert 0 <= min(across) <= max(across) <= 358


def test_hostile_text_is_shown_as_text() -> None:
    """What looks like markup, a terminal escape, a turned line or a template is printed, visibly."""
    page = as_html.render(hostile())
    assert "&lt;script&gt;" in page
    assert "{{7*7}}" in page
    assert "␛[31m" in page
    assert "⟨U+202E⟩gnp.exe" in page
    assert "\u202e" not in page
    assert "\x1b" not in page
    assert len(page) < 400_000


def test_hostile_text_in_markdown_stays_text() -> None:
    """A Markdown reader that lets HTML through finds no element, no link and no cell that is not ours."""
    text = as_markdown.render(hostile())
    html = MarkdownIt("commonmark", {"html": True}).enable("table").render(text)
    ours = {"h1", "h2", "h3", "p", "strong", "ol", "ul", "li", "code", "pre", "details", "summary"}
    tables = {"table", "thead", "tbody", "tr", "th", "td"}
    assert {tag for tag, _ in Tags(html).seen} <= ours | tables
    assert "\u202e" not in text
    assert "\x1b" not in text
    rows = [row for row in re.findall(r"<tr>.*?</tr>", html, re.DOTALL) if "Sun 23 Nov" in row]
    assert {row.count("<td") for row in rows} == {6}
    assert "@all" not in re.sub(r"<(code|pre)[^>]*>.*?</\1>", "", html, flags=re.DOTALL)


def test_json_says_what_the_page_says() -> None:
    """JSON holds the verdict, the numbers and the missing sections, and nothing that is no JSON."""
    document = json.loads(as_json.render(report()))
    (model,) = document["models"]
    verdict = words.verdict(report().reviews[0])
    assert document["schema"] == 1
    assert document["since"] == "2025-11-17T00:00:00Z"
    assert model["verdict"]["headline"] == verdict.headline
    assert model["totals"]["requests"] == report().reviews[0].totals.requests
    assert len(model["change"]["effect"]) == 6
    assert model["timeline"]["alarms"] == model["timeline"]["drifts"] != []  # the former name, for one version
    assert (model["totals"]["alarms"], model["change"]["alarm"]) == (
        model["totals"]["drifts"],
        model["change"]["drift"],
    )
    assert "NaN" not in as_json.render(report())


def test_markdown_says_what_the_page_says() -> None:
    """The same headline, answers and numbers are in both."""
    text = as_markdown.render(report())
    verdict = words.verdict(report().reviews[0])
    assert f"## {verdict.headline}" in text
    for answer in verdict.answers:
        assert f"**{answer.question} {answer.short}.**" in text
    assert "\n\n\n" not in text


def test_every_output_survives_a_model_of_which_nothing_is_known(tmp_path: Path) -> None:
    """Without baseline, shadow, canaries, bench and texts each section is one line that says why."""
    bare = Story(
        days=1.0, per_day=300, baseline_day=None, drift=None, silent=None, shadow=False, bench=False, canaries=False,
        confidence=False, sample_rate=0.0, unrouted=1.0,
    )  # fmt: skip
    engine = store_factory.make(tmp_path / "bare.db", bare)
    found = gather(engine, Settings(), Period(UNTIL - DAY, UNTIL), now=UNTIL)
    page, text = as_html.render(found), as_markdown.render(found)
    assert "Blind" in page
    assert page.count('class="missing"') >= 6
    assert "moe-watch doctor" in page
    assert "Blind" in text
    json.loads(as_json.render(found))


def test_no_data_at_all_is_said_in_words() -> None:
    """A report without any model says so, and what to do."""
    empty = Report(UNTIL, "0", WEEK, ())
    for render in (as_html.render, as_markdown.render):
        page = render(empty, nothing="Look at moe-watch doctor.")
        assert "Nothing was recorded in this period" in page
        assert "Look at moe-watch doctor." in page
    assert json.loads(as_json.render(empty))["models"] == []


def test_a_fleet_begins_with_an_overview() -> None:
    """Several models are listed with their verdicts before each has its part."""
    (review,) = report().reviews
    other = replace(review, served=replace(review.served, name="another/moe"))
    page = as_html.render(replace(report(), reviews=(review, other)))
    assert "2 models in this period" in page
    assert 'href="#model-2"' in page
    assert 'id="model-2"' in page
    assert "2 configurations of one model" in as_html.render(replace(report(), reviews=(review, review)))


def test_the_page_is_small_enough_to_mail() -> None:
    """One week of one model is well under a megabyte."""
    assert len(as_html.render(report()).encode()) < 300_000
