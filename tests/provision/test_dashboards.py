"""The dashboards: committed as built, laid out without faults, asking only for what exists."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.cog.plugins import register_default_plugins
from grafana_foundation_sdk.models.dashboard import Dashboard

from dashboards.__main__ import files
from moe_watch.metrics.series import ALL
from moe_watch.provision import assets, thresholds
from moe_watch.provision.catalogue import ALERTS
from tests.support.grafana_view import fill, metric_names, panels, queries

BUILT = {path.stem: json.loads(text) for path, text in files().items()}
PAGES = {uid: content for uid, content in BUILT.items() if uid != "moe-watch-runbooks"}
SUFFIXES = {"gauge": ("",), "counter": ("",), "histogram": ("_bucket", "_sum", "_count")}
EXPORTED = {metric.name + suffix: metric for metric in ALL for suffix in SUFFIXES[metric.kind]}
PROMETHEUS_LABELS = {"instance", "job", "le"}


def every_panel() -> list[Any]:
    return [
        pytest.param(panel, id=f"{uid}/{panel['title']}") for uid, content in PAGES.items() for panel in panels(content)
    ]


def test_committed_json_is_what_the_builders_make() -> None:
    """``python -m dashboards`` would change nothing."""
    assert {path: path.read_text(encoding="utf-8") for path in files()} == files()


def test_nothing_is_committed_that_no_builder_makes() -> None:
    """A dashboard whose builder is gone is gone."""
    assert set(assets.dashboards()) == set(BUILT)


@pytest.mark.parametrize("uid", BUILT)
def test_the_sdk_reads_back_what_it_wrote(uid: str) -> None:
    """Every dashboard survives the round trip through the schema's types unchanged."""
    register_default_plugins()
    again = json.loads(json.dumps(Dashboard.from_json(BUILT[uid]), cls=JSONEncoder))
    assert again == BUILT[uid]


@pytest.mark.parametrize("uid", BUILT)
def test_panels_do_not_overlap_and_stay_on_the_page(uid: str) -> None:
    """Each cell of the grid of 24 columns belongs to one panel at most."""
    taken: dict[tuple[int, int], str] = {}
    for panel in BUILT[uid]["panels"]:
        at = panel["gridPos"]
        assert at["x"] >= 0
        assert at["x"] + at["w"] <= 24, panel["title"]
        for x in range(at["x"], at["x"] + at["w"]):
            for y in range(at["y"], at["y"] + at["h"]):
                assert (x, y) not in taken, f"{panel['title']} lies on {taken.get((x, y))}"
                taken[x, y] = panel["title"]


@pytest.mark.parametrize("uid", PAGES)
def test_no_line_of_the_page_is_empty_and_no_row_without_panels(uid: str) -> None:
    """Every line is full from edge to edge at its top, and a row title is followed by a panel."""
    content = PAGES[uid]["panels"]
    bottom = max(panel["gridPos"]["y"] + panel["gridPos"]["h"] for panel in content)
    covered = {
        y for panel in content for y in range(panel["gridPos"]["y"], panel["gridPos"]["y"] + panel["gridPos"]["h"])
    }
    assert covered == set(range(bottom))
    tops = {panel["gridPos"]["y"] for panel in content}
    for top in tops:
        assert sum(panel["gridPos"]["w"] for panel in content if panel["gridPos"]["y"] == top) == 24
    kinds = [panel["type"] for panel in content]
    assert ("row", "row") not in zip(kinds, [*kinds[1:], "row"], strict=True)


@pytest.mark.parametrize("uid", BUILT)
def test_panels_have_ids_of_their_own(uid: str) -> None:
    """Links lead to panels by id."""
    ids = [panel["id"] for panel in BUILT[uid]["panels"]]
    assert len(set(ids)) == len(ids)


@pytest.mark.parametrize("panel", every_panel())
def test_every_panel_says_what_it_shows(panel: dict[str, Any]) -> None:
    """Title, a description of more than a few words, a unit, and a legend where there are lines."""
    assert panel["title"]
    assert len(panel["description"]) > 30
    assert panel["fieldConfig"]["defaults"]["unit"]
    assert panel["targets"]
    if panel["type"] != "table":
        assert all(target["legendFormat"] for target in panel["targets"])


@pytest.mark.parametrize("uid", PAGES)
def test_every_page_has_its_variables_annotations_and_links(uid: str) -> None:
    """Datasource, model, replica, baseline; promotions, restarts, alerts; links that keep variables and time."""
    content = PAGES[uid]
    assert [v["name"] for v in content["templating"]["list"]] == ["datasource", "model", "replica", "baseline"]
    assert [a["name"] for a in content["annotations"]["list"]] == ["Baselines", "Restarts and rebalances", "Alerts"]
    (link,) = content["links"]
    assert link["includeVars"]
    assert link["keepTime"]
    assert link["tags"] == ["moe-watch"]


@pytest.mark.parametrize("uid", PAGES)
def test_each_page_lets_its_variables_work(uid: str) -> None:
    """Every query asks the chosen data source, and every series with a model is filtered by the chosen one."""
    for panel in panels(PAGES[uid]):
        assert panel["datasource"]["uid"] == "${datasource}"
        assert all(target["datasource"]["uid"] == "${datasource}" for target in panel["targets"])
    for asked in queries(PAGES[uid]):
        for name, selector in re.findall(r"\b(moe_watch_\w+|vllm:\w+)\b(?:\{(.*?)\})?", asked.expr):
            if name.startswith("vllm:") or "model" in EXPORTED[name].labels:
                assert "$model" in selector, (asked.panel, name)
            if name.startswith("vllm:") or "replica" in EXPORTED[name].labels:
                assert "$replica" in selector, (asked.panel, name)


def test_the_baseline_variable_chooses_something() -> None:
    """On the pages that compare with a baseline the variable of that name is used by a panel."""
    for uid in ("moe-watch-routing", "moe-watch-quality", "moe-watch-health"):
        assert any("$baseline" in a.expr for a in queries(PAGES[uid]) if not a.panel.startswith("annotation"))


@pytest.mark.parametrize("uid", PAGES)
def test_every_metric_asked_for_is_exported_with_these_labels(uid: str) -> None:
    """A misspelt metric or label would show 'No data' for ever."""
    for asked in queries(PAGES[uid]):
        for name in metric_names(asked.expr):
            assert name.startswith("vllm:") or name in EXPORTED, (asked.panel, name)
        for name, selector in re.findall(r"\b(moe_watch_\w+)\{(.*?)\}", asked.expr):
            used = set(re.findall(r"(\w+)\s*(?:=~|!~|!=|=)", selector))
            assert used <= set(EXPORTED[name].labels) | PROMETHEUS_LABELS, (asked.panel, name)


@pytest.mark.parametrize("uid", PAGES)
def test_legends_use_labels_that_the_query_keeps(uid: str) -> None:
    """A legend over a label that an aggregation dropped would be blank."""
    for panel in panels(PAGES[uid]):
        for target in panel["targets"]:
            grouped = re.match(r"(?:sum|max|min) by \((.*?)\)", target["expr"])
            if grouped:
                kept = set(re.split(r",\s*", grouped[1]))
                assert set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"])) <= kept, panel["title"]


def red_line(title: str) -> float:
    """Return the value at which a panel changes colour."""
    found = [panel for content in PAGES.values() for panel in panels(content) if panel["title"] == title]
    steps = [panel["fieldConfig"]["defaults"]["thresholds"]["steps"][1]["value"] for panel in found]
    assert len(set(steps)) == 1
    return float(steps[0])


@pytest.mark.parametrize(
    ("title", "alert", "value"),
    [
        ("KV cache in use", "KVCachePressure", thresholds.KV_CACHE_RATIO),
        ("Outputs with a defect", "GarbledOutput", thresholds.GARBLED_RATIO),
        ("MoE advantage with its upper bound", "MoEAdvantageLost", thresholds.MOE_ADVANTAGE_RATIO),
        ("Busiest expert-parallel rank", "ExpertImbalance", thresholds.RANK_LOAD_RATIO),
    ],
)
def test_a_panels_red_line_is_its_alerts_threshold(title: str, alert: str, value: float) -> None:
    """Both come from the one module of thresholds."""
    (rule,) = (a for a in ALERTS if a.name == alert)
    assert red_line(title) == value
    assert re.search(rf"[<>] {value:g}$", rule.expr)


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed")
def test_every_query_is_valid_promql(tmp_path: Path) -> None:
    """With the variables filled in, for all models and for chosen ones, promtool parses each."""
    choices: list[dict[str, list[str]]] = [
        {"model": [], "replica": [], "baseline": []},
        {"model": ["google/gemma-4-26B-A4B-it"], "replica": ["vllm-0", "a.b+c"], "baseline": ["3"]},
    ]
    rules = [
        {"record": f"q{n}_{c}", "expr": fill(asked.expr, chosen)}
        for n, asked in enumerate(a for content in PAGES.values() for a in queries(content))
        for c, chosen in enumerate(choices)
    ]
    path = tmp_path / "queries.yml"
    path.write_text(yaml.safe_dump({"groups": [{"name": "queries", "rules": rules}]}))
    done = subprocess.run(["promtool", "check", "rules", path], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert f"{len(rules)} rules found" in done.stdout


def test_every_alert_has_its_panel_among_the_runbooks() -> None:
    """A runbook link's panel holds that alert's runbook."""
    shown = {panel["id"]: panel["title"] for panel in BUILT["moe-watch-runbooks"]["panels"]}
    assert {n: title.split(":")[0] for n, title in shown.items()} == {n + 1: a.name for n, a in enumerate(ALERTS)}


def test_points_lead_to_requests_where_series_have_exemplars() -> None:
    """Grafana is told to ask for exemplars of exactly the series that carry a request and its trace."""
    asked = {
        (target["expr"], bool(target.get("exemplar")))
        for page in PAGES.values()
        for panel in panels(page)
        for target in panel.get("targets", [])
    }
    for expr, exemplar in asked:
        carries = "moe_watch_time_to_first_token_seconds_bucket" in expr or "moe_watch_ood_requests_total" in expr
        assert exemplar == carries, expr
    assert sum(exemplar for _, exemplar in asked) >= 2
