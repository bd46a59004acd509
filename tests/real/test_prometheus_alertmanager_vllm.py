"""The whole chain on real parts: unusual traffic at a real vLLM becomes a page with its runbook, and ends again."""

from __future__ import annotations

import copy
import json
import re
import shutil
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from demo.traffic import mixture
from moe_watch.canary import prompts
from moe_watch.provision import assets
from moe_watch.provision.catalogue import ALERTS
from tests.real.support import ahead, monitoring
from tests.real.support.deployment import MOE, REPLICA, Deployment, deployment, watched
from tests.support.grafana_view import Asked, fill, metric_names, queries
from tests.support.otlp_receiver import attributes

pytestmark = [
    pytest.mark.real,
    pytest.mark.skipif(
        not (shutil.which("prometheus") and shutil.which("prometheus-alertmanager")),
        reason="Prometheus or Alertmanager is not installed",
    ),
]
LEARN, NORMAL, UNUSUAL, AFTER = 600, 300, 300, 2000
BUILT_IN = {"__rate_interval": "15s", "__interval": "5s", "__range": "5m"}
EVERYTHING: dict[str, list[str]] = {"model": [], "replica": [], "baseline": []}
CHOSEN = {"model": [MOE], "replica": [REPLICA], "baseline": ["1"]}

# Beginnings of metrics that this deployment cannot have, and why panels over them are empty here. That their queries
# are right is shown on the full board (test_prometheus_board).
_SHADOW = "needs sampled text and a second, dense server"
_ALONE = "one replica has no siblings: fifty have, in test_fleet_postgres"
NOT_HERE = {
    "moe_watch_replica_evidence_": _ALONE,
    "moe_watch_fleet_": _ALONE,
    "moe_watch_moved_experts": "experts are named from 500 requests after an alarm on: traffic is normal again by then",
    "moe_watch_rank_": "one rank only: expert parallelism needs several devices",
    "moe_watch_quality_": _SHADOW,
    "moe_watch_garbled_": _SHADOW,
    "moe_watch_shadow_": _SHADOW,
    "moe_watch_moe_advantage_": _SHADOW,
}


@dataclass
class Story:
    """What had arrived at the pager at each point, and the running parts to ask."""

    running: Deployment
    quiet: list[dict[str, Any]] = field(default_factory=list)  # alerts after normal traffic
    paged: list[dict[str, Any]] = field(default_factory=list)
    traced: dict[str, str] = field(default_factory=dict)  # request id -> trace that it was sent with
    shown: dict[tuple[str, str, str, str], bool] = field(default_factory=dict)  # has the query numbers


def traced(running: Deployment, n: int = 12) -> dict[str, str]:
    """Send requests of unseen kinds as a client that traces does; return their ids and traces."""
    sent = {}
    for number, prompt in enumerate(mixture(n, seed=5, unseen_share=1.0)):
        trace = f"{number + 1:032x}"
        body = {"model": MOE, "messages": [{"role": "user", "content": prompt.text}], "max_tokens": 8}
        headers = {"traceparent": f"00-{trace}-00f067aa0ba902b7-01"}
        answer = httpx.post(f"{running.moe.url}/v1/chat/completions", json=body, headers=headers, timeout=60)
        sent[answer.json()["id"]] = trace
    running.sent += sent
    monitoring.wait_until(running.has_seen_all, "the sidecar has counted what was traced")
    return sent


def is_over(running: Deployment) -> bool:
    """Return whether nothing fires any more and the pager knows it."""
    firing = monitoring.ask(running.prometheus, 'ALERTS{alertstate="firing"}', instant=True)
    return not firing and running.hook.names("firing") <= running.hook.names("resolved")


@ahead.fixture(scope="module")
def served() -> Iterator[Deployment]:
    """Run vLLM with the tap, and the sidecar."""
    with tempfile.TemporaryDirectory() as work, deployment(Path(work)) as running:
        yield running


def few_canaries(work: Path) -> str:
    """Write a fifth of the prompts that ship; how canaries tell is tested elsewhere."""
    lines = [json.dumps({"messages": one.messages}) for one in prompts.load().prompts[::5]]
    (work / "canaries.jsonl").write_text("\n".join(lines))
    return str(work / "canaries.jsonl")


@pytest.fixture(scope="module")
def story(served: Deployment) -> Iterator[Story]:
    """Learn, run normally, then with requests of unseen kinds until it pages, then normally until it resolves."""
    with watched(served) as running:
        told = Story(running)
        running.traffic(mixture(LEARN, seed=1))
        running.command("baseline", "fit", "--promote")
        for step in ("record", "run"):
            running.command("canary", step, "--loads", "16", "--prompts", few_canaries(running.work))
        running.traffic(mixture(NORMAL, seed=2))
        told.quiet = copy.deepcopy(running.hook.alerts())
        running.traffic(mixture(UNUSUAL, seed=3, unseen_share=0.5), until=lambda: bool(running.hook.arrived))
        monitoring.wait_until(lambda: bool(running.hook.arrived), "a notification")
        told.paged = copy.deepcopy(running.hook.alerts())
        told.traced = traced(running)
        here = [query for query in asked() if not absent(query)]
        told.shown = {key(query, choice): shows(running, query, choice) for query in here for choice in CHOICES}
        running.traffic(mixture(AFTER, seed=4), until=lambda: is_over(running))
        yield told


CHOICES = {"everything": EVERYTHING, "chosen": CHOSEN}


def asked() -> list[Asked]:
    return [query for content in assets.dashboards().values() for query in queries(content)]


def key(query: Asked, choice: str) -> tuple[str, str, str, str]:
    return query.dashboard, query.panel, query.ref, choice


def absent(query: Asked) -> list[str]:
    """Return why this deployment cannot answer the query."""
    names = metric_names(query.expr)
    return [why for start, why in NOT_HERE.items() if any(name.startswith(start) for name in names)]


def shows(running: Deployment, query: Asked, choice: str) -> bool:
    """Ask until there are numbers, for some seconds: on a busy machine a scrape may be missed."""
    expr = fill(query.expr, CHOICES[choice], BUILT_IN)
    for _ in range(5):
        if monitoring.has_numbers(monitoring.ask(running.prometheus, expr, instant=query.instant)):
            return True
        time.sleep(1)
    return False


def test_a_normal_run_pages_nobody(story: Story) -> None:
    """Learning, a baseline, canaries and normal traffic send no notification at all."""
    assert story.quiet == []


def test_unusual_traffic_pages_with_its_runbook(story: Story) -> None:
    """The notification names the traffic, has the links filled in, and lists replica and model."""
    names = {alert["labels"]["alertname"] for alert in story.paged}
    assert names & {"TrafficDrift", "OODRateHigh"}
    for alert in story.paged:
        notes = alert["annotations"]
        assert re.fullmatch(r"http://grafana\.example/d/moe-watch-runbooks\?viewPanel=panel-\d+", notes["runbook_url"])
        assert notes["dashboard_url"].endswith(f"&var-model={MOE}&var-replica={REPLICA}")
        assert "{{" not in str(notes)
        assert MOE in notes["summary"]


def test_it_does_not_blame_the_model(story: Story) -> None:
    """Nothing of the family "model" fires: the model is the same as before."""
    assert {alert["labels"]["incident"] for alert in story.paged} == {"traffic"}


def test_it_resolves_when_traffic_is_normal_again(story: Story) -> None:
    """Every alert that fired arrives once more as resolved."""
    hook = story.running.hook
    monitoring.wait_until(lambda: hook.names("firing") <= hook.names("resolved"), "everything has resolved")


@pytest.mark.parametrize("choice", CHOICES)
@pytest.mark.parametrize("query", asked(), ids=lambda q: f"{q.dashboard}/{q.panel}/{q.ref}")
def test_a_panel_shows_numbers(story: Story, query: Asked, choice: str) -> None:
    """On a real moe-watch and a real vLLM the query returns numbers, or it asks for what cannot be here."""
    if reasons := absent(query):
        pytest.skip(reasons[0])
    assert story.shown[key(query, choice)], query.expr


def test_every_vllm_metric_asked_for_is_one_that_vllm_exports(story: Story) -> None:
    """The names in dashboards and alerts are those on the real server's /metrics."""
    text = httpx.get(f"{story.running.moe.url}/metrics").text
    exported = {one.name for family in text_string_to_metric_families(text) for one in family.samples}
    wanted = {name for query in asked() for name in metric_names(query.expr)}
    wanted |= {name for alert in ALERTS for name in metric_names(alert.expr)}
    assert {name for name in wanted if name.startswith("vllm:")} <= exported


def test_explain_knows_the_alert_that_fired(story: Story) -> None:
    """The runbook's first command has something to say of it."""
    name = next(iter(story.running.hook.names("firing")))
    assert story.running.command("explain", name)


def test_flagged_requests_have_a_span_beside_that_of_vllm(story: Story) -> None:
    """Both are in the trace of the client, with the same parent and the same request id."""

    def ours() -> list[Any]:
        spans = story.running.collector.spans("moe-watch")
        return [span for span in spans if attributes(span)["gen_ai.request.id"] in story.traced]

    monitoring.wait_until(lambda: len(ours()) >= len(story.traced) / 4, "unusual requests have a span")
    theirs = {
        attributes(one)["gen_ai.request.id"]: one
        for one in story.running.collector.spans()
        if one.name == "llm_request"
    }
    for span in ours():
        request = str(attributes(span)["gen_ai.request.id"])
        assert span.trace_id.hex() == theirs[request].trace_id.hex() == story.traced[request]
        assert span.parent_span_id == theirs[request].parent_span_id


def test_metrics_arrive_at_the_collector_too(story: Story) -> None:
    """What the scrape shows of the verdict is what was sent."""
    latest = story.running.collector.metrics[-1].resource_metrics[0].scope_metrics[0].metrics
    names = {metric.name for metric in latest}
    assert {"moe_watch.verdict", "moe_watch.ood_requests", "gen_ai.server.time_to_first_token"} <= names


def test_prometheus_keeps_request_and_trace_as_exemplars(story: Story) -> None:
    """It negotiates OpenMetrics by itself, and a panel can lead from a point to its request."""
    span = {"start": time.time() - 3600, "end": time.time()}
    for name in ("moe_watch_ood_requests_total", "moe_watch_time_to_first_token_seconds_bucket"):
        asked = {"query": name, **span}
        body = httpx.get(f"{story.running.prometheus}/api/v1/query_exemplars", params=asked).json()
        found = [one["labels"] for series in body["data"] for one in series["exemplars"]]
        assert {one["request_id"] for one in found} <= set(story.running.sent)
        assert found
