"""Write the committed rule files: examples for a Grafana at its default address, and what promtool tests."""

from __future__ import annotations

import json
from pathlib import Path

from moe_watch.provision import grafana_rules, prometheus
from moe_watch.provision.alert import Links

HERE = Path(__file__).parent
DATASOURCE = "prometheus"
_NOTE = "Made by `python -m alerts` from moe_watch/provision/catalogue.py; do not edit.\n"
_RULES_NOTE = "`moe-watch provision --out DIR --grafana-url URL` writes it with links to your Grafana."
_ROUTING_NOTE = "An example: take over the grouping and the inhibition, put your own receivers in."


def files() -> dict[Path, str]:
    """Return every committed rule file's path and text."""
    links = Links()
    managed = grafana_rules.groups(links, DATASOURCE, contact=True)
    example = prometheus.alertmanager(f"{prometheus.EXAMPLE_PAGER}/page", f"{prometheus.EXAMPLE_PAGER}/ticket")
    return {
        HERE / prometheus.RULES_FILE: prometheus.to_yaml(prometheus.rules(links), _NOTE + _RULES_NOTE),
        HERE / "alertmanager.example.yml": prometheus.to_yaml(example, _NOTE + _ROUTING_NOTE),
        HERE / "grafana-rules.json": json.dumps(managed, indent=2, ensure_ascii=False) + "\n",
    }


if __name__ == "__main__":
    for path, text in files().items():
        path.write_text(text, encoding="utf-8")
