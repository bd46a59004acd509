"""What an alert is, and the links that none can lack."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

Severity = Literal["critical", "warning"]  # critical wakes somebody, warning can wait for the morning
Incident = Literal["model", "traffic", "serving", "monitor"]  # what one notification is about

DEFAULT_GRAFANA: Final = "http://localhost:3000"
RUNBOOKS_UID: Final = "moe-watch-runbooks"
_LABELS: Final = ("model", "replica")


@dataclass(frozen=True, kw_only=True)
class Alert:
    """One alert rule, the same for Prometheus and for Grafana.

    ``expr`` is empty while all is well and keeps the labels ``model`` and ``replica`` when it is not. ``summary`` and
    ``description`` are Go templates over ``$labels`` and ``$value``, the value of ``expr``.
    """

    name: str
    severity: Severity
    incident: Incident
    expr: str
    wait: str  # how long expr must hold, a Prometheus duration
    summary: str
    description: str
    dashboard: str  # uid of the dashboard where to look


@dataclass(frozen=True)
class Links:
    """Where the pages of an alert live; ``runbooks`` None: the runbook dashboard in the same Grafana."""

    grafana: str = DEFAULT_GRAFANA
    runbooks: str | None = None

    def dashboard(self, uid: str) -> str:
        """Return the URL template of a dashboard with the variables that the alert's labels set."""
        query = "".join(
            f"{{{{ with $labels.{name} }}}}&var-{name}={{{{ . | urlquery }}}}{{{{ end }}}}" for name in _LABELS
        )
        return f"{self.grafana.rstrip('/')}/d/{uid}?from=now-3h&to=now{query}"

    def runbook(self, alert: str, panel: int) -> str:
        """Return the URL of an alert's runbook: a file below ``runbooks``, or panel ``panel`` of the dashboard."""
        if self.runbooks is not None:
            return f"{self.runbooks.rstrip('/')}/{alert}.md"
        return f"{self.grafana.rstrip('/')}/d/{RUNBOOKS_UID}?viewPanel=panel-{panel}"


def notes(alert: Alert, links: Links, panel: int) -> dict[str, str]:
    """Return an alert's annotations; the only place that makes them, so that no alert lacks a link."""
    return {
        "summary": alert.summary,
        "description": alert.description,
        "runbook_url": links.runbook(alert.name, panel),
        "dashboard_url": links.dashboard(alert.dashboard),
    }


def labels(alert: Alert) -> dict[str, str]:
    """Return the labels that routing and inhibition read."""
    return {"severity": alert.severity, "incident": alert.incident}
