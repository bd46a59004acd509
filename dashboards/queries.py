"""Expressions that more than one dashboard asks."""

from __future__ import annotations

from typing import Final

from moe_watch.provision import thresholds as limit

from .panels import MOE_WATCH

OOD_LIMIT: Final = f"{limit.OOD_TIMES_EXPECTED:g} * max(moe_watch_ood_expected_ratio{{{MOE_WATCH}}})"


def context_share_over_budget(window: str) -> str:
    """Return the share of requests over their TTFT budget in ``window``, by context bucket."""
    over = f"sum by (context) (rate(moe_watch_ttft_over_budget_total{{{MOE_WATCH}}}[{window}]))"
    return f"{over} / sum by (context) (rate(moe_watch_ttft_requests_total{{{MOE_WATCH}}}[{window}]))"


def within_budget(window: str) -> str:
    """Return the share of all requests within their TTFT budget in ``window``."""
    over = f"sum(rate(moe_watch_ttft_over_budget_total{{{MOE_WATCH}}}[{window}]))"
    return f"1 - {over} / sum(rate(moe_watch_ttft_requests_total{{{MOE_WATCH}}}[{window}]))"


def quantile(share: float, metric: str, selector: str, by: str = "") -> str:
    """Return a quantile of a histogram over the panel's rate interval, per label ``by``."""
    group = f"le, {by}" if by else "le"
    return f"histogram_quantile({share:g}, sum by ({group}) (rate({metric}_bucket{{{selector}}}[$__rate_interval])))"


def of_baseline(expr: str) -> str:
    """Return ``expr`` (with labels model and replica) only while the chosen baseline was the active one."""
    return f'{expr} and on (model, replica) moe_watch_baseline_info{{{MOE_WATCH}, baseline=~"$baseline"}}'
