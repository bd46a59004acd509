"""Dashboards, alerts and scrape configuration as files, as Kubernetes objects, or pushed to a Grafana.

``thresholds`` has every number; ``catalogue`` the alerts; ``prometheus`` and ``grafana_rules`` write them for the two
alerting engines; ``files`` and ``kubernetes`` lay out what ``moe-watch provision`` makes; ``client`` and ``push`` speak
with a Grafana.
"""
