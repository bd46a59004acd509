"""Load of a real sidecar over its real socket: ``python -m bench.sidecar.ingest [--postgres]``.

Synthetic replicas send 30 x 128 fingerprints with latency and request frames, at rising rates, to ``moe-watch serve``
with every detector on. The sidecar is held to one core; the senders, and Postgres, share the other. Printed for each
rate: requests taken, frames lost, delay from finish to metric, CPU and memory. Writes
``bench/results/ingest_<store>.json``.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

import click
import httpx
import zmq

from bench import RESULTS
from bench.sidecar.taps import Taps
from demo import servers
from moe_watch import wire
from moe_watch.servers.prometheus_text import samples
from tests.support import postgres

LEARN = 1500
HEALTH_S = 5.0
QUEUE = 2048  # frames, as in a tap
SIDECAR, SENDERS = 0, 1  # cores


@dataclass(frozen=True)
class Step:
    """What was measured at one rate."""

    offered_per_s: float
    sent_per_s: float
    written_per_s: float
    not_sent: int  # the socket was full
    waiting: int  # sent and not yet written when the sending stopped
    lost: int  # sent and never written
    delay_p50_s: float
    delay_p99_s: float
    cpu_us_per_request: float
    rss_mb: float


class Replicas:
    """Sends requests as several taps would, each request as three frames."""

    def __init__(self, endpoint: str, taps: Taps) -> None:
        self._endpoint = endpoint
        self._sockets: dict[str, zmq.Socket[bytes]] = {}
        self._taps = taps
        self._health_at = 0.0
        self.not_sent = 0
        self.send(taps.announce())

    def request(self) -> None:
        """Send one finished request, and what the taps say of themselves when it is time to."""
        if time.monotonic() - self._health_at > HEALTH_S:
            self._health_at = time.monotonic()
            self.send(self._taps.healths())
        self.send(self._taps.request())

    def send(self, frames: Iterable[wire.AnyFrame]) -> None:
        """Send, unless the socket of the frame's process is full."""
        for frame in frames:
            try:
                self._socket(frame.source).send(wire.encode(frame), zmq.NOBLOCK)
            except zmq.Again:
                self.not_sent += 1

    def _socket(self, source: str) -> zmq.Socket[bytes]:
        if source not in self._sockets:
            made = self._sockets[source] = zmq.Context.instance().socket(zmq.PUSH)
            made.setsockopt(zmq.SNDHWM, QUEUE)
            made.setsockopt(zmq.LINGER, 0)
            made.connect(self._endpoint)
        return self._sockets[source]


class Sidecar:
    """The process under test, read through its own metrics and the kernel's."""

    def __init__(self, work: Path, store: str, *, pinned: bool = True, **more: str) -> None:
        self.endpoint = f"ipc://{work}/tap.sock"
        self.env = {"MOE_WATCH_ENDPOINT": self.endpoint, "MOE_WATCH_STORE__URL": store, "OMP_NUM_THREADS": "1"}
        self.env |= {"MOE_WATCH_SPOOL_DIR": f"{work}/spool", **more}
        self.server = servers.start_sidecar(work, env=self.env)
        if pinned:
            os.sched_setaffinity(self.server.process.pid, {SIDECAR})
        self.server.wait_ready("/readyz", 60)

    def environment(self) -> dict[str, str]:
        """Return the environment of a command beside it."""
        return {**os.environ, **self.env}

    def counter(self, name: str) -> float:
        """Return the sum over all series of one sample name."""
        text = httpx.get(self.server.url + "/metrics", timeout=60).text
        return sum(sample.value for sample in samples(text, name))

    def delays(self) -> dict[float, float]:
        """Return the cumulative histogram from finish to metric."""
        text = httpx.get(self.server.url + "/metrics", timeout=60).text
        return {
            float(sample.labels["le"]): sample.value
            for sample in samples(text, "moe_watch_processing_delay_seconds_bucket")
        }

    def cpu_s(self) -> float:
        """Return the CPU time used so far by all threads, seconds."""
        fields = Path(f"/proc/{self.server.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def rss_mb(self) -> float:
        """Return the resident memory, MB."""
        status = Path(f"/proc/{self.server.process.pid}/status").read_text()
        return int(status.partition("VmRSS:")[2].split()[0]) / 1024

    def settle(self, requests: float, timeout_s: float = 60) -> float:
        """Wait until ``requests`` are counted or nothing moves for 5 s; return how many are."""
        deadline, best, since = time.monotonic() + timeout_s, -1.0, time.monotonic()
        while time.monotonic() < deadline:
            now = self.counter("moe_watch_store_rows_total")
            if now > best:
                best, since = now, time.monotonic()
            if best >= requests or time.monotonic() - since > 5:
                break
            time.sleep(0.5)
        return best


def pace(replicas: Replicas, rate: float, seconds: float) -> tuple[int, float]:
    """Send at ``rate`` for ``seconds``, as evenly as one core allows; return requests and the time they took."""
    start, sent = time.monotonic(), 0
    while (now := time.monotonic() - start) < seconds:
        due = min(int(now * rate), int(rate * seconds))
        while sent < due:
            replicas.request()
            sent += 1
        time.sleep(0.002)
    return sent, time.monotonic() - start


def quantile(before: dict[float, float], after: dict[float, float], q: float) -> float:
    """Return the upper bound of the bucket in which the quantile lies."""
    gained = {le: after[le] - before.get(le, 0) for le in after}
    total = gained[float("inf")]
    return min((le for le, count in gained.items() if count >= q * total), default=float("nan"))


def step(sidecar: Sidecar, replicas: Replicas, rate: float, seconds: float) -> Step:
    """Offer one rate and measure."""
    rows, cpu, delays, missed = (
        sidecar.counter("moe_watch_store_rows_total"), sidecar.cpu_s(), sidecar.delays(), replicas.not_sent
    )  # fmt: skip
    sent, took = pace(replicas, rate, seconds)
    at_end = sidecar.counter("moe_watch_store_rows_total") - rows
    written = sidecar.settle(rows + sent) - rows
    after = sidecar.delays()
    return Step(
        offered_per_s=rate,
        sent_per_s=round(sent / took, 1),
        written_per_s=round(at_end / took, 1),
        not_sent=replicas.not_sent - missed,
        waiting=int(sent - at_end),
        lost=int(sent - written),
        delay_p50_s=quantile(delays, after, 0.5),
        delay_p99_s=quantile(delays, after, 0.99),
        cpu_us_per_request=round(1e6 * (sidecar.cpu_s() - cpu) / max(written, 1)),
        rss_mb=round(sidecar.rss_mb()),
    )


@click.command()
@click.option("--postgres", "on_postgres", is_flag=True, help="A Postgres of its own instead of a SQLite file.")
@click.option("--seconds", default=20.0, show_default=True, help="How long each rate is offered.")
@click.option("--rates", default="500,1000,2000,3000,3500,4000", show_default=True)
def main(*, on_postgres: bool, seconds: float, rates: str) -> None:
    """Offer rising rates to one sidecar and print what it made of them."""
    os.sched_setaffinity(0, {SENDERS})
    with contextlib.ExitStack() as stack:
        work = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        url = f"sqlite:///{work}/bench.db"
        if on_postgres:
            url = stack.enter_context(postgres.running()).url("bench")
        sidecar = Sidecar(work, url)
        stack.callback(sidecar.server.stop)
        try:
            steps = list(measure(sidecar, seconds, [float(rate) for rate in rates.split(",")]))
        except httpx.HTTPError as error:
            raise click.ClickException(f"{error}\n{sidecar.server.log_tail()}") from error
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"ingest_{'postgresql' if on_postgres else 'sqlite'}.json"
    path.write_text(json.dumps([asdict(one) for one in steps], indent=1) + "\n")


def measure(sidecar: Sidecar, seconds: float, rates: list[float]):  # noqa: ANN201 - a generator of Step
    """Learn a baseline, then yield a step for each rate."""
    replicas = Replicas(sidecar.endpoint, Taps())
    time.sleep(0.5)
    sent, _ = pace(replicas, 200, LEARN / 200)
    if sidecar.settle(sent) < sent:
        raise click.ClickException(f"not all was taken: {httpx.get(sidecar.server.url + '/api/v1/status').text[:2000]}")
    subprocess.run(
        [sys.executable, "-m", "moe_watch.cli.main", "baseline", "fit", "--promote"],
        env=sidecar.environment(), check=True,
    )  # fmt: skip
    time.sleep(4)  # the sidecar follows a promotion within seconds
    names = list(Step.__dataclass_fields__)
    print(" | ".join(names))
    for rate in rates:
        one = step(sidecar, replicas, rate, seconds)
        print(" | ".join(str(value) for value in asdict(one).values()), flush=True)
        yield one


if __name__ == "__main__":
    main()
