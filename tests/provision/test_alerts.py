"""The alerts: committed as defined, each fires and stays silent where it should, one cause pages once."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from alerts.__main__ import files
from moe_watch.metrics.series import ALL
from moe_watch.provision import assets, grafana_rules, prometheus
from moe_watch.provision.alert import Alert, Links
from moe_watch.provision.catalogue import ALERTS
from moe_watch.provision.inhibition import SILENCES, silencers
from tests.support.grafana_view import metric_names

FOLDER = Path(__file__).parents[2] / "alerts"
NAMES = [alert.name for alert in ALERTS]
BY_NAME = {alert.name: alert for alert in ALERTS}
SEVERITY = {"critical": 2, "warning": 1}
EXPORTED = {metric.name: metric for metric in ALL}
needs_promtool = pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed")


def rules() -> dict[str, dict[str, Any]]:
    groups = prometheus.rules(Links())["groups"]
    return {rule["alert"]: rule for group in groups for rule in group["rules"]}


def promtool(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["promtool", *arguments], capture_output=True, text=True, check=False)


def test_committed_rules_are_what_the_catalogue_makes() -> None:
    """``python -m alerts`` would change nothing."""
    assert {path: path.read_text(encoding="utf-8") for path in files()} == files()


def test_the_alerts_of_the_design_exist() -> None:
    """Every family of trouble has its alert."""
    assert set(NAMES) == {
        "RoutingDrift", "TrafficDrift", "CanaryChanged", "OODRateHigh", "QualityGap", "GarbledOutput",
        "ExpertImbalance", "DeadExperts", "MoEAdvantageLost", "TTFTBudgetBurn", "KVCachePressure", "TapDown",
        "FramesDropped", "FramesRefused", "BaselineStale", "ReplicaDeviates",
    }  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_every_alert_tells_what_to_do(name: str) -> None:
    """Severity, for, one line of summary, a description with the value, runbook and dashboard."""
    rule = rules()[name]
    assert rule["labels"]["severity"] in SEVERITY
    assert re.fullmatch(r"\d+[mh]", rule["for"])
    notes = rule["annotations"]
    assert "\n" not in notes["summary"]
    assert len(re.sub(r"\{\{.*?\}\}", "", notes["summary"])) < 90
    assert "$value" in notes["description"] + notes["summary"] or name == "TapDown"
    assert notes["runbook_url"].startswith("http")
    dashboard = re.search(r"/d/([\w-]+)\?", notes["dashboard_url"])
    assert dashboard
    assert dashboard[1] in assets.dashboards()


@pytest.mark.parametrize("name", NAMES)
def test_every_link_sets_the_variables_of_its_dashboard(name: str) -> None:
    """The dashboard opens with the alert's own model and replica, where it has them."""
    url = rules()[name]["annotations"]["dashboard_url"]
    for variable in ("model", "replica"):
        assert f"{{{{ with $labels.{variable} }}}}&var-{variable}={{{{ . | urlquery }}}}{{{{ end }}}}" in url


def test_links_lead_to_the_given_grafana_and_runbooks() -> None:
    """Nothing of the defaults is left in the links of a site."""
    text = prometheus.to_yaml(prometheus.rules(Links("https://g.example/", "https://wiki.example/moe/")))
    assert "localhost" not in text
    assert "https://wiki.example/moe/TapDown.md" in text
    assert "https://g.example/d/moe-watch-health?" in text


@pytest.mark.parametrize("alert", ALERTS, ids=NAMES)
def test_every_metric_of_an_alert_is_exported_with_these_labels(alert: Alert) -> None:
    """An alert on a misspelt metric could never fire."""
    for name in metric_names(alert.expr):
        assert name.startswith("vllm:") or name in EXPORTED
    for name, selector in re.findall(r"\b(moe_watch_\w+)\{(.*?)\}", alert.expr):
        assert set(re.findall(r"(\w+)=", selector)) <= set(EXPORTED[name].labels)


@needs_promtool
def test_prometheus_accepts_the_rules() -> None:
    """``promtool check rules`` finds every rule and no fault."""
    done = promtool("check", "rules", FOLDER / prometheus.RULES_FILE)
    assert done.returncode == 0, done.stderr
    assert f"{len(ALERTS)} rules found" in done.stdout


@pytest.mark.parametrize("name", NAMES)
def test_every_alert_is_tested_to_fire_and_to_stay_silent(name: str) -> None:
    """Each has a promtool file with at least one case of either kind."""
    cases = yaml.safe_load((FOLDER / "tests" / f"{name}.yml").read_text(encoding="utf-8"))["tests"]
    outcomes = {bool(check["exp_alerts"]) for case in cases for check in case["alert_rule_test"]}
    assert outcomes == {True, False}
    assert {check["alertname"] for case in cases for check in case["alert_rule_test"]} == {name}


@needs_promtool
@pytest.mark.parametrize("name", NAMES)
def test_the_alert_fires_and_stays_silent_where_it_should(name: str) -> None:
    """``promtool test rules`` agrees with alerts/tests, word for word of what the pager shows."""
    done = promtool("test", "rules", FOLDER / "tests" / f"{name}.yml")
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_cause_silences_nothing_more_severe_than_itself() -> None:
    """A warning never hides a page."""
    for source, targets in SILENCES.items():
        for target in targets:
            assert SEVERITY[BY_NAME[source].severity] >= SEVERITY[BY_NAME[target].severity], (source, target)


@given(st.sets(st.sampled_from(NAMES), min_size=1))
def test_whatever_fires_something_of_the_highest_severity_is_heard(firing: set[str]) -> None:
    """Inhibition has no circle and leaves at least one of the worst alerts."""
    heard = {name for name in firing if not firing & set(silencers(name))}
    worst = max(SEVERITY[BY_NAME[name].severity] for name in firing)
    assert any(SEVERITY[BY_NAME[name].severity] == worst for name in heard)


def test_a_broken_model_pages_once() -> None:
    """A wrong router moves canaries, routing, quality and OOD rate: one alert speaks."""
    firing = {
        "CanaryChanged",
        "RoutingDrift",
        "QualityGap",
        "OODRateHigh",
        "TrafficDrift",
        "DeadExperts",
        "ReplicaDeviates",
    }
    assert [name for name in firing if not firing & set(silencers(name))] == ["CanaryChanged"]


def test_a_site_without_data_pages_once() -> None:
    """A dead tap leaves last values behind: only TapDown speaks."""
    firing = {"TapDown", "FramesDropped", "RoutingDrift", "TrafficDrift", "OODRateHigh", "BaselineStale"}
    assert [name for name in firing if not firing & set(silencers(name))] == ["TapDown"]


def test_a_bad_node_pages_once() -> None:
    """Its other requests and its worse text are the same fault."""
    firing = {"ReplicaDeviates", "TrafficDrift", "OODRateHigh", "QualityGap"}
    assert [name for name in firing if not firing & set(silencers(name))] == ["ReplicaDeviates"]


@pytest.mark.skipif(shutil.which("amtool") is None, reason="amtool is not installed")
def test_alertmanager_accepts_the_example_and_routes_by_severity() -> None:
    """Critical alerts go to the pager, warnings to the tickets."""
    config = FOLDER / "alertmanager.example.yml"
    assert subprocess.run(["amtool", "check-config", config], capture_output=True, check=False).returncode == 0
    for severity, receiver in (("critical", "moe-watch-page"), ("warning", "moe-watch-ticket")):
        done = subprocess.run(
            ["amtool", "config", "routes", "test", f"--config.file={config}", f"severity={severity}"],
            capture_output=True,
            text=True,
            check=True,
        )
        assert done.stdout.strip() == receiver


def managed() -> dict[str, dict[str, Any]]:
    groups = grafana_rules.groups(Links(), "prom", contact=True)
    return {rule["title"]: rule for group in groups for rule in group["rules"]}


def test_grafana_has_the_same_alerts() -> None:
    """Names, labels, waiting times and links are those of the Prometheus rules."""
    for name, rule in rules().items():
        twin = managed()[name]
        assert twin["labels"] == rule["labels"]
        assert twin["for"] == rule["for"]
        assert twin["annotations"]["runbook_url"] == rule["annotations"]["runbook_url"]
        assert "$value " not in str(twin["annotations"])


def test_grafana_rules_are_addressed_and_quiet_without_data() -> None:
    """Each has a stable uid within Grafana's 40 characters, a folder, a group and a contact point."""
    for rule in managed().values():
        assert re.fullmatch(r"moe-watch-[a-z]{1,30}", rule["uid"])
        assert rule["folderUID"] == grafana_rules.FOLDER_UID
        assert rule["noDataState"] == "OK"
        assert {"grafana_folder", "alertname"} <= set(rule["notification_settings"]["group_by"])
        assert [query["refId"] for query in rule["data"]] == ["A", rule["condition"]]


@needs_promtool
def test_in_grafana_a_cause_silences_its_effects_too(tmp_path: Path) -> None:
    """The expression of QualityGap is empty on the replica whose canaries changed, and not on another."""
    labels = ('model="m", replica="a"', 'model="m", replica="b"')
    series = [(f"moe_watch_quality_degraded{{{one}}}", "1x10") for one in labels]
    series += [(f"moe_watch_quality_gap_nats_lower{{{one}}}", "0.2x10") for one in labels]
    series += [
        (f"moe_watch_canary_changed{{{labels[0]}}}", "1x10"),
        (f"moe_watch_canary_effect_ratio{{{labels[0]}}}", "3x10"),
    ]
    case = {
        "input_series": [{"series": name, "values": values} for name, values in series],
        "promql_expr_test": [
            {
                "expr": grafana_rules.expression(BY_NAME["QualityGap"]),
                "eval_time": "5m",
                "exp_samples": [{"labels": f"{{{labels[1]}}}", "value": 0.2}],
            }
        ],
    }
    path = tmp_path / "managed.yml"
    path.write_text(yaml.safe_dump({"evaluation_interval": "1m", "tests": [case]}))
    done = promtool("test", "rules", path)
    assert done.returncode == 0, done.stdout + done.stderr


@needs_promtool
def test_every_grafana_expression_is_valid_promql(tmp_path: Path) -> None:
    """Promtool parses what Grafana would ask."""
    made = [{"record": name, "expr": rule["data"][0]["model"]["expr"]} for name, rule in managed().items()]
    path = tmp_path / "managed.yml"
    path.write_text(yaml.safe_dump({"groups": [{"name": "managed", "rules": made}]}))
    assert promtool("check", "rules", path).returncode == 0
