"""Ratios with their intervals from the rounds of ``tap_overhead.py``, and the tables of them in docs/tap.md."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from bench import DOCS, RESULTS

PAGE = DOCS / "tap.md"
FORMS = {"tiny": (6, 16), "30x128": (30, 128)}  # layers, experts
NAMES = {"on": "on", "counts": "on, no confidence", "off2": "off again: the noise"}
_HEAD = """\
| at once | tap | requests/s | TTFT | TPOT | CPU, API server | CPU, engine |
| ---: | --- | --- | --- | --- | --- | --- |"""
_MEASURES = {"requests_per_s": "{:.1f}/s", "ttft_ms": "{:.1f} ms", "tpot_ms": "{:.2f} ms", "api_ms": "{:.1f} ms",
             "engine_ms": "{:.1f} ms"}  # fmt: skip
_RESAMPLED = 4000

Loads = dict[str, dict[str, dict[str, float]]]  # concurrency -> variant -> measure


def path(*, gpu: bool) -> Path:
    """Return where results are kept."""
    return RESULTS / f"tap_overhead{'_gpu' * gpu}.json"


def add(file: Path, start: dict[str, Any]) -> None:
    """Keep one start of the servers with those before it that measured the same source of the tap."""
    starts = json.loads(file.read_text()) if file.exists() else []
    kept = [one for one in starts if one["tap"] == start["tap"] or one["shape"] != start["shape"]]
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps([*kept, start], separators=(",", ":")) + "\n")


def brief(found: Loads) -> str:
    """Return the throughput of one round as ratios to the server without the tap."""
    return "; ".join(
        f"{level} at once: "
        + ", ".join(
            f"{name} {one['requests_per_s'] / loads['off']['requests_per_s']:.3f}" for name, one in loads.items()
        )
        for level, loads in found.items()
    )


def interval(ratios: np.ndarray) -> tuple[float, float, float]:
    """Return the median of ``ratios`` and a 95 % bootstrap interval of it."""
    drawn = np.random.default_rng(0).choice(ratios, (_RESAMPLED, len(ratios)))
    low, high = np.quantile(np.median(drawn, axis=1), [0.025, 0.975])
    return float(np.median(ratios)), float(low), float(high)


def table(starts: list[dict[str, Any]]) -> list[str]:
    """Return the table of one shape's starts: what a server without the tap does, and ratios to it."""
    rounds: list[Loads] = [found for start in starts for found in start["rounds"]]
    made = [f"{len(rounds)} rounds in {len(starts)} starts of the servers, tap's source {starts[0]['tap']}.", "", _HEAD]
    for level in rounds[0]:
        plain = [form.format(np.median([r[level]["off"][m] for r in rounds])) for m, form in _MEASURES.items()]
        made.append(f"| {level} | off | {' | '.join(plain)} |")
        for variant, name in NAMES.items():
            if any(variant not in found[level] for found in rounds):
                continue
            cells = [
                "{:.3f} ({:.3f} to {:.3f})".format(
                    *interval(np.array([r[level][variant][m] / r[level]["off"][m] for r in rounds]))
                )
                for m in _MEASURES
            ]
            made.append(f"| {level} | {name} | {' | '.join(cells)} |")
    return made


def moved(shape: str, starts: list[dict[str, Any]]) -> list[str]:
    """Return what a request moves: the bounds, which follow from the shape, and the frames that were received."""
    layers, experts = FORMS[shape]
    device = 2 * layers * (experts + 2) * 4 + layers * 2 * 4
    bounds = (
        f"From the device to the host: {device:,} bytes a request, whatever its length (2 phases x {layers} layers x"
        f" {experts + 2} x 4, and {layers} x 2 x 4 of confidence). In its `Routing` frame: at most"
        f" {2 * layers * experts:,} bytes of counts where no expert was chosen more than 255 times, four times that"
        f" otherwise, {18 * layers:,} of confidence and less than 1,400 of names and numbers."
    )
    made = [bounds, ""]
    requests = sum(start["tapped_requests"] for start in starts)
    for kind in ("Routing", "Latency", "Request"):
        sizes = [start["frames"][kind] for start in starts]
        n, total, most = sum(s[0] for s in sizes), sum(s[1] for s in sizes), max(s[2] for s in sizes)
        made.append(
            f"Received of {requests:,} requests: {n:,} `{kind}`, {total / n:,.0f} bytes on average, {most:,} at most."
        )
    return made


def written(file: Path) -> dict[str, list[str]]:
    """Return the lines of every shape that was measured."""
    starts = json.loads(file.read_text())
    of = {shape: [start for start in starts if start["shape"] == shape and start["rounds"]] for shape in FORMS}
    return {shape: [*table(some), "", *moved(shape, some)] for shape, some in of.items() if some}


def show(file: Path) -> None:
    """Print every table."""
    for shape, lines in written(file).items():
        print("\n".join(["", f"{shape}:", *lines]), flush=True)


def write(file: Path) -> None:
    """Put every table between its marks in docs/tap.md."""
    page = PAGE.read_text()
    for shape, lines in written(file).items():
        name = f"{shape} on a GPU" if file == path(gpu=True) else shape
        mark, end = f"<!-- overhead {name} -->\n", f"<!-- end overhead {name} -->"
        head, marked, rest = page.partition(mark)
        if not marked:
            raise SystemExit(f"{PAGE} has no place for {name}")
        page = head + mark + "\n".join(lines) + "\n" + end + rest.partition(end)[2]
    PAGE.write_text(page)
