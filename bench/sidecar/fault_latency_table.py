"""Ratios with their intervals from the pairs of ``fault_latency.py``, and the table of them in docs/reliability.md."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from bench import DOCS, RESULTS
from bench.sidecar.fault_latency_faults import FAULTS
from bench.sidecar.fault_latency_load import CONCURRENCY, TOKENS
from bench.sidecar.fault_latency_stage import QUEUE_FRAMES
from bench.tap.overhead_table import interval

KEPT = RESULTS / "fault_latency.json"
PAGE = DOCS / "reliability.md"
FEWEST = 8  # pairs; fewer are not kept
_BEGIN, _END = "<!-- fault latency -->\n", "<!-- end fault latency -->"
_MEASURES = {"ttft_ms": ("TTFT", "{:.1f} ms"), "tpot_ms": ("TPOT", "{:.2f} ms"),
             "requests_per_s": ("requests/s", "{:.1f}"), "cpu_ms": ("CPU, a request", "{:.1f} ms")}  # fmt: skip


def brief(row: Mapping[str, Any]) -> str:
    """Return one pair as ratios."""
    ratios = (f"{head} {row['fault'][name] / row['healthy'][name]:.3f}" for name, (head, _) in _MEASURES.items())
    counts = f"{row['answered']} answered, {len(row['failed'])} failed, {row['frames_dropped']} frames dropped"
    return f"{', '.join(ratios)}; {counts}, seen {row['seen']}"


def keep(said: Mapping[str, Any]) -> None:
    """Put the faults that were measured in the place of what was known of them."""
    before = json.loads(KEPT.read_text()) if KEPT.exists() else {}
    KEPT.parent.mkdir(exist_ok=True)
    KEPT.write_text(json.dumps(before | dict(said), indent=1) + "\n")


def table(said: Mapping[str, Any]) -> str:
    """Return the table as Markdown, with what healthy blocks do above it."""
    healthy = [pair["healthy"] for found in said.values() for pair in found["pairs"]]
    plain = ", ".join(f"{head} {form.format(np.median([one[m] for one in healthy]))}"
                      for m, (head, form) in _MEASURES.items())  # fmt: skip
    taps = ", ".join(sorted({found["tap"] for found in said.values()}))
    failed = sum(len(pair["healthy_failed"]) for found in said.values() for pair in found["pairs"])
    heads = [*(head for head, _ in _MEASURES.values()), "answered", "failed", "text known", "frames dropped"]
    lines = [
        f"{CONCURRENCY} requests at once, {TOKENS} tokens each, temperature 0; tap's queue {QUEUE_FRAMES} frames, its",
        f"source {taps}. Medians of healthy blocks: {plain}; failed in them: {failed}.",
        "",
        f"| fault | pairs | {' | '.join(heads)} |",
        f"| --- |{' ---: |' * (len(heads) + 1)}",
    ]
    lines += [_line(name, said[name]["pairs"]) for name in FAULTS if name in said]
    return "\n".join(lines) + "\n"


def _line(name: str, pairs: list[dict[str, Any]]) -> str:
    """Return a fault's row; pairs in which it was not in effect are counted and left out of the ratios."""
    counted = [pair for pair in pairs if pair["seen"]]
    number = f"{len(counted)}" if len(counted) == len(pairs) else f"{len(counted)} ({len(pairs)} tried)"
    cells = ["-" for _ in _MEASURES]
    if counted:
        cells = [
            "{:.3f} ({:.3f} to {:.3f})".format(*interval(np.array([p["fault"][m] / p["healthy"][m] for p in counted])))
            for m in _MEASURES
        ]
    answered, known, dropped = (
        sum(pair[key] for pair in pairs) for key in ("answered", "known_texts", "frames_dropped")
    )
    failed = sum(len(pair["failed"]) for pair in pairs)
    same = f"{known / answered:.2%}" if answered else "-"
    gone = f"{dropped:,}" if FAULTS[name].cut else "-"
    return f"| {FAULTS[name].said} | {number} | {' | '.join(cells)} | {answered:,} | {failed} | {same} | {gone} |"


def write() -> None:
    """Put the table of all that is kept between its marks in docs/reliability.md."""
    page = PAGE.read_text()
    head, marked, rest = page.partition(_BEGIN)
    if not marked:
        raise SystemExit(f"{PAGE} has no place for the table")
    PAGE.write_text(head + _BEGIN + table(json.loads(KEPT.read_text())) + _END + rest.partition(_END)[2])
