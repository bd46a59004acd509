"""How moe-watch knows what it wrote to a Grafana, and whether somebody changed it since.

A dashboard carries its mark in the message of its newest version: any later save by a person makes a version without
it, whatever Grafana's migrations do to the JSON meanwhile. An alert rule has no versions; it carries a digest of what
was written as an annotation, and a rule that no longer matches its own digest was edited.
"""

from __future__ import annotations

import hashlib
import json
import re
from typing import Any, Final

PREFIX: Final = "moe-watch-"  # of every uid that moe-watch makes
RULE_MARK: Final = "moe_watch_digest"
_MESSAGE: Final = "moe-watch provision "
_UNITS_S: Final = {"ms": 0.001, "s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800, "y": 31_536_000}


def digest(content: Any) -> str:
    """Return 16 hexadecimal digits that differ where the content does.

    >>> digest({"a": 1, "b": 2}) == digest({"b": 2, "a": 1})
    True
    """
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def message(content: dict[str, Any]) -> str:
    """Return the version message under which a dashboard is saved."""
    return _MESSAGE + digest(content)


def is_ours(version_message: str) -> bool:
    """Return whether the newest version of a dashboard was saved by moe-watch."""
    return version_message.startswith(_MESSAGE)


def marked(rule: dict[str, Any]) -> dict[str, Any]:
    """Return an alert rule with its digest among the annotations."""
    return rule | {"annotations": rule["annotations"] | {RULE_MARK: digest(essence(rule))}}


def is_untouched(rule: dict[str, Any]) -> bool:
    """Return whether an alert rule from Grafana is as moe-watch wrote it and still locked against edits there."""
    return rule.get("provenance") == "api" and mark_of(rule) == digest(essence(rule))


def mark_of(rule: dict[str, Any]) -> str | None:
    """Return the digest that an alert rule carries, None for one that moe-watch never wrote."""
    found: str | None = (rule.get("annotations") or {}).get(RULE_MARK)
    return found


def essence(rule: dict[str, Any]) -> dict[str, Any]:
    """Return what an alert rule means, without what Grafana adds on the way (defaults, ids, times)."""
    routing = rule.get("notification_settings") or {}
    return {
        "title": rule["title"],
        "folder": rule["folderUID"],
        "group": rule["ruleGroup"],
        "condition": rule["condition"],
        "for": seconds(rule["for"]),
        "states": [rule["noDataState"], rule["execErrState"], bool(rule.get("isPaused"))],
        "labels": rule.get("labels") or {},
        "annotations": {k: v for k, v in (rule.get("annotations") or {}).items() if k != RULE_MARK},
        "routing": [routing.get("receiver"), sorted(routing.get("group_by") or [])],
        "data": [_query(query) for query in rule["data"]],
    }


def _query(query: dict[str, Any]) -> list[Any]:
    model = query["model"]
    return [query["refId"], query["datasourceUid"], model.get("expr"), model.get("expression"), model.get("type")]


def seconds(duration: str) -> float:
    """Return a Prometheus or Go duration in seconds; Grafana may write one back as the other.

    >>> seconds("1m") == seconds("1m0s") == seconds("60s") == 60
    True
    """
    return sum(float(n) * _UNITS_S[unit] for n, unit in re.findall(r"([\d.]+)(ms|[smhdwy])", duration))
