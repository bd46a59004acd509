"""The runbooks inside Grafana: an alert's link leads to its panel, and lives as long as Grafana does."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from grafana_foundation_sdk.builders import dashboard

from moe_watch.provision.alert import RUNBOOKS_UID
from moe_watch.provision.catalogue import ALERTS
from moe_watch.provision.prometheus import panel_of

from .frame import TAG, encode
from .panels import markdown


def content(runbooks: Path) -> dict[str, Any]:
    """Return the dashboard's JSON from the Markdown files in ``runbooks``; panel ids are those of the alerts' links."""
    made = (
        dashboard.Dashboard("moe-watch / Runbooks")
        .uid(RUNBOOKS_UID)
        .description("What to do when an alert of moe-watch fires.")
        .tags([TAG])
        .editable()
    )
    for alert in ALERTS:
        title, text = (runbooks / f"{alert.name}.md").read_text(encoding="utf-8").split("\n", 1)
        panel = markdown(title.removeprefix("# "), _linked(text.strip()), width=12, height=18)
        made = made.with_panel(panel.id(panel_of(alert)))
    return encode(made)


def _linked(text: str) -> str:
    """Return the Markdown with links from runbook to runbook (``Name.md``) leading to their panels."""
    panels = {alert.name: panel_of(alert) for alert in ALERTS}
    return re.sub(r"\]\((\w+)\.md\)", lambda m: f"](/d/{RUNBOOKS_UID}?viewPanel=panel-{panels[m[1]]})", text)
