"""What Grafana does to a dashboard before it asks Prometheus: find the queries, fill the variables in."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

ALL = ".*"
BUILT_IN = {"__rate_interval": "1m", "__interval": "15s", "__range": "3h", "__from": "0", "__to": "1"}


@dataclass(frozen=True)
class Asked:
    """One query of one panel or annotation, as it is written."""

    dashboard: str
    panel: str
    ref: str
    expr: str
    instant: bool


def panels(content: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the panels of a dashboard without its row titles."""
    return [panel for panel in content["panels"] if panel["type"] != "row"]


def queries(content: dict[str, Any]) -> Iterator[Asked]:
    """Yield every query of every panel and annotation."""
    for panel in panels(content):
        for target in panel.get("targets", []):
            yield Asked(content["uid"], panel["title"], target["refId"], target["expr"], bool(target.get("instant")))
    for annotation in content.get("annotations", {}).get("list", []):
        if "expr" in annotation:
            yield Asked(content["uid"], f"annotation {annotation['name']}", "A", annotation["expr"], instant=False)


def fill(expr: str, chosen: Mapping[str, list[str]], built_in: Mapping[str, str] = BUILT_IN) -> str:
    """Return a query with the variables filled in as Grafana's Prometheus data source does inside ``=~``.

    One choice is escaped, several become an alternation, no choice is All, whose custom value goes in as it is.
    """

    def value(match: re.Match[str]) -> str:
        name = match[1] or match[2]
        if name in built_in:
            return built_in[name]
        if name not in chosen:
            return match[0]  # no variable, such as $1 in label_replace
        escaped = [re.sub(r"([\\^$*+?.()|\[\]{}])", r"\\\\\1", one) for one in chosen[name]]
        if not escaped:
            return ALL
        return escaped[0] if len(escaped) == 1 else f"({'|'.join(escaped)})"

    return re.sub(r"\$(?:\{(\w+)\}|(\w+))", value, expr)


def metric_names(expr: str) -> set[str]:
    """Return every moe-watch and vLLM metric that a query asks for."""
    return set(re.findall(r"\b(moe_watch_\w+|vllm:\w+)", expr))
