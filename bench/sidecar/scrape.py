"""What a scrape of the sidecar costs at 30 x 128: the default export and the whole layer x expert matrix.

    python -m bench.sidecar.scrape

A real judge sees real frames of 1 and of 10 replicas against a baseline; what it put on the board is rendered as a
scrape would have it, and as the matrix that ``/api/v1/matrix`` serves as JSON. Beside it the matrix as series, which
moe-watch does not export. Best of several; writes bench/results/scrape.json and the table in docs/tuning.md.
"""

from __future__ import annotations

import gzip
import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass

import click
import msgspec
import numpy as np
from prometheus_client.parser import text_string_to_metric_families

from bench import DOCS, RESULTS
from moe_watch.detect.fit.baseline_fit import BaselineBuilder
from moe_watch.metrics import prometheus
from moe_watch.metrics import series as metrics
from moe_watch.metrics.board import Board
from moe_watch.settings import Settings
from moe_watch.sidecar.join import Join
from moe_watch.sidecar.monitor.detectors import Normal
from moe_watch.sidecar.monitor.fingerprints import batch_of
from moe_watch.sidecar.monitor.replicas import ReplicaMonitors
from moe_watch.store.records.baselines import Active
from tests.support.frames import Tap

LAYERS, EXPERTS, TOP_K = 30, 128, 8
REQUESTS = 300
REPEATS = 7
OPENMETRICS = "application/openmetrics-text; version=1.0.0"
BEGIN, END = "<!-- scrape:begin, made by python -m bench.sidecar.scrape -->", "<!-- scrape:end -->"


@dataclass(frozen=True)
class Cost:
    """One way of asking: series (0 for JSON), CPU time, size as sent with gzip and without."""

    what: str
    replicas: int
    series: int
    ms: float
    kb: float
    kb_gzip: float


def sidecar(replicas: int) -> tuple[Board, ReplicaMonitors]:
    """Return board and monitors after requests of so many replicas, judged against one baseline."""
    board = Board()
    monitors = ReplicaMonitors(Settings(), board)
    joined: dict[str, list] = {}
    for number in range(replicas):
        tap, join = Tap(f"vllm-{number}", "m", LAYERS, EXPERTS, TOP_K, seed=number), Join(5.0)
        monitors.announce(tap.announce(), 0.0)
        monitors.hear(tap.health(), 0.0)
        joined[tap.replica] = join.add([frame for _ in range(REQUESTS) for frame in tap.whole()], 0.0)
    monitor = monitors.by_replica["vllm-0"]
    builder = BaselineBuilder(minimum=REQUESTS)
    builder.add(batch_of(monitor.model, joined["vllm-0"])[0])
    active = Active(1, monitor.identity, 1, 0.0, REQUESTS)
    monitors.use({monitor.identity: Normal(active, builder.build())}, 0.0)
    for number, requests in enumerate(joined.values()):
        monitors.process(requests, 1.0)
        for _ in range(2):
            monitors.tick(10.0 + number)
    return board, monitors


def best(work: Callable[[], bytes]) -> tuple[float, bytes]:
    """Return the least CPU time of several runs, ms, and what was made."""
    times = []
    for _ in range(REPEATS):
        began = time.process_time()
        made = work()
        times.append(1e3 * (time.process_time() - began))
    return min(times), made


def cost(what: str, replicas: int, work: Callable[[], bytes]) -> Cost:
    """Measure one way of asking."""
    ms, body = best(work)
    families = text_string_to_metric_families(body.decode()) if "JSON" not in what else ()
    series = sum(len(family.samples) for family in families)
    return Cost(
        what, replicas, series, round(ms, 1), round(len(body) / 1e3, 1), round(len(gzip.compress(body, 1)) / 1e3, 1)
    )


def with_matrix(board: Board, monitors: ReplicaMonitors) -> Board:
    """Return a board that has the matrix as series beside everything else."""
    for monitor in monitors.by_replica.values():
        share = monitor.detectors.normal.fitted.counts / monitor.detectors.normal.fitted.counts.sum(1, keepdims=True)
        rows = {(str(layer), str(expert)): float(share[layer, expert]) for layer, expert in np.ndindex(LAYERS, EXPERTS)}
        board.replace(metrics.TOP_MOVER_SHARE, monitor.labels, rows)
    return board


def measure(replicas: int) -> list[Cost]:
    """Measure all ways for so many replicas."""
    board, monitors = sidecar(replicas)
    source = prometheus.registry(board)

    def matrices() -> bytes:
        return b"".join(msgspec.json.encode(monitors.matrix(name, time.time())) for name in monitors.by_replica)

    found = [
        cost("default, text", replicas, lambda: prometheus.render(source, "")[0]),
        cost("default, OpenMetrics", replicas, lambda: prometheus.render(source, OPENMETRICS)[0]),
        cost("matrix, JSON", replicas, matrices),
    ]
    with_matrix(board, monitors)
    return [
        *found,
        cost("default and matrix as series (not offered)", replicas, lambda: prometheus.render(source, "")[0]),
    ]


def table(found: list[Cost]) -> str:
    """Return the rows as Markdown."""
    lines = ["| what | replicas | series | CPU, ms | KB | KB gzipped |", "| --- | ---: | ---: | ---: | ---: | ---: |"]
    lines += [f"| {c.what} | {c.replicas} | {c.series or 'none'} | {c.ms} | {c.kb} | {c.kb_gzip} |" for c in found]
    return "\n".join(lines)


@click.command()
def main() -> None:
    """Measure, print, and write the results."""
    found = [one for replicas in (1, 10) for one in measure(replicas)]
    print(table(found))
    (RESULTS / "scrape.json").write_text(json.dumps([asdict(one) for one in found], indent=1) + "\n")
    page = DOCS / "tuning.md"
    text = page.read_text(encoding="utf-8")
    before, after = text.partition(BEGIN)[0], text.partition(END)[2]
    page.write_text(f"{before}{BEGIN}\n{table(found)}\n{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
