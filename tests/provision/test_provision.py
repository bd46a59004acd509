"""``moe-watch provision``: files that the real tools accept."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import kubernetes_validate
import pytest

from moe_watch.provision import assets
from moe_watch.provision.catalogue import ALERTS
from tests.support.provisioning import PAGE, grafana, load, no_token_in_the_environment, run, state

__all__ = ["grafana", "no_token_in_the_environment", "state"]


def test_the_files_are_complete(tmp_path: Path) -> None:
    """Everything that Prometheus, Alertmanager and Grafana read is there, in their own folders."""
    assert run("--out", tmp_path / "out", *PAGE).exit_code == 0
    names = {str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*") if path.is_file()}
    assert {
        "prometheus/prometheus.yml",
        "prometheus/rules/moe-watch.rules.yml",
        "alertmanager/alertmanager.yml",
        "grafana/datasources/moe-watch.yml",
        "grafana/dashboards/moe-watch.yml",
        "grafana/alerting/moe-watch-rules.yml",
        "grafana/alerting/moe-watch-contact.yml",
        *(f"grafana/dashboards/moe-watch/{uid}.json" for uid in assets.dashboards()),
        *(f"runbooks/{alert.name}.md" for alert in ALERTS),
    } == names


def test_writing_again_changes_nothing(tmp_path: Path) -> None:
    """The same input gives the same bytes."""
    run("--out", tmp_path / "a", *PAGE)
    run("--out", tmp_path / "b", *PAGE)
    assert subprocess.run(["diff", "-r", tmp_path / "a", tmp_path / "b"], check=False).returncode == 0


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed")
@pytest.mark.parametrize("alerting", ["prometheus", "grafana"])
def test_prometheus_accepts_its_configuration(tmp_path: Path, alerting: str) -> None:
    """Promtool finds the rule file beside the configuration and no fault in either."""
    run("--out", tmp_path, "--alerting", alerting, "--vllm", "r0=10.0.0.1:8000", "--vllm", "r1=10.0.0.2:8000")
    path = tmp_path / "prometheus" / "prometheus.yml"
    done = subprocess.run(["promtool", "check", "config", path], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    jobs = {job["job_name"]: job["static_configs"] for job in load(path)["scrape_configs"]}
    assert [target["labels"] for target in jobs["vllm"]] == [{"replica": "r0"}, {"replica": "r1"}]


@pytest.mark.skipif(shutil.which("amtool") is None, reason="amtool is not installed")
def test_alertmanager_accepts_its_configuration(tmp_path: Path) -> None:
    """Amtool finds no fault; warnings go where --ticket-url says."""
    run("--out", tmp_path, *PAGE, "--ticket-url", "https://tickets.example/hook")
    path = tmp_path / "alertmanager" / "alertmanager.yml"
    assert subprocess.run(["amtool", "check-config", path], capture_output=True, check=False).returncode == 0
    urls = {one["name"]: one["webhook_configs"][0]["url"] for one in load(path)["receivers"]}
    assert urls == {
        "moe-watch-page": "https://pager.example/hook",
        "moe-watch-ticket": "https://tickets.example/hook",
    }


@pytest.mark.parametrize(("alerting", "paused"), [("prometheus", True), ("grafana", False)])
def test_only_one_of_the_two_pages(tmp_path: Path, alerting: str, *, paused: bool) -> None:
    """Grafana's rules are paused while Prometheus has an Alertmanager, and the other way round."""
    run("--out", tmp_path, "--alerting", alerting, *PAGE)
    groups = load(tmp_path / "grafana" / "alerting" / "moe-watch-rules.yml")["groups"]
    assert {rule["isPaused"] for group in groups for rule in group["rules"]} == {paused}
    assert ("alerting" in load(tmp_path / "prometheus" / "prometheus.yml")) is paused


def test_grafanas_files_fit_each_other(tmp_path: Path) -> None:
    """Rules ask the provisioned data source and notify the provisioned contact point."""
    run("--out", tmp_path, *PAGE)
    (source,) = load(tmp_path / "grafana" / "datasources" / "moe-watch.yml")["datasources"]
    (point,) = load(tmp_path / "grafana" / "alerting" / "moe-watch-contact.yml")["contactPoints"]
    for group in load(tmp_path / "grafana" / "alerting" / "moe-watch-rules.yml")["groups"]:
        for rule in group["rules"]:
            assert rule["data"][0]["datasourceUid"] == source["uid"]
            assert rule["notification_settings"]["receiver"] == point["name"]
            assert not {"folderUID", "ruleGroup", "orgID"} & set(rule)
            assert "${" not in json.dumps(rule)  # Grafana would fill an environment variable in


def test_without_a_receiver_the_user_is_told(tmp_path: Path) -> None:
    """An example receiver is not left to be found out in the first incident."""
    assert "page nobody" in run("--out", tmp_path).output


def test_a_folder_that_cannot_be_written_is_said_so(tmp_path: Path) -> None:
    """No traceback; the path and the reason."""
    (tmp_path / "file").write_text("")
    done = run("--out", tmp_path / "file" / "below")
    assert done.exit_code == 1
    assert "cannot write" in done.output


def test_kubernetes_objects_are_valid(tmp_path: Path) -> None:
    """ConfigMaps satisfy the API's schema and its limit of 1 MiB; the rule's spec is a rule file."""
    assert run("--out", tmp_path, "--format", "kubernetes", "--selector", "app=vllm").exit_code == 0
    for path in (tmp_path / "dashboards").glob("*.yaml"):
        kubernetes_validate.validate(load(path), "1.33", strict=True)
        assert path.stat().st_size < 2**20
        assert load(path)["metadata"]["labels"]["grafana_dashboard"] == "1"
        assert json.loads(load(path)["data"][f"{path.stem}.json"]) == assets.dashboards()[path.stem]
    rule, monitor = load(tmp_path / "prometheusrule.yaml"), load(tmp_path / "podmonitor.yaml")
    assert sum(len(group["rules"]) for group in rule["spec"]["groups"]) == len(ALERTS)
    assert monitor["spec"]["selector"]["matchLabels"] == {"app": "vllm"}


def test_the_helm_chart_ships_these_rules_and_dashboards() -> None:
    """The chart's files are links to the committed ones, so they cannot differ."""
    files = Path(__file__).parents[2] / "deploy" / "helm" / "moe-watch" / "files"
    rules = Path(__file__).parents[2] / "alerts" / "moe-watch.rules.yml"
    assert (files / "rules.yaml").resolve() == rules
    assert {path.stem for path in (files / "dashboards").glob("*.json")} == set(assets.dashboards())
