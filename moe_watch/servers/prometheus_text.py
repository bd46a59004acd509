"""Reads numbers from what a server shows at ``/metrics`` (Prometheus' text format)."""

from __future__ import annotations

from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample


def samples(text: str, name: str) -> list[Sample]:
    """Return the samples of exactly that name, in their order; raise ``ValueError`` where one of them is malformed.

    Lines of other metrics are not parsed: vLLM has thousands, and what is wrong with one of those is no matter here.

    >>> [(one.labels["engine"], one.value) for one in samples('load{engine="0"} 2.0', "load")]
    [('0', 2.0)]
    """
    lines = [line for line in text.split("\n") if line.startswith(name)]
    families = text_string_to_metric_families("\n".join(lines))
    return [one for family in families for one in family.samples if one.name == name]
