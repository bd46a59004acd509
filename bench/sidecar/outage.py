"""A store that is away for ten minutes under load, and a sidecar that stands still for one.

    python -m bench.sidecar.outage

A real ``moe-watch serve`` on a real Postgres is fed by the tap's own sender. The sidecar is stopped (SIGSTOP) and goes
on; Postgres is killed (SIGKILL) and comes back. Printed after each phase: what was sent, seen, written and given up,
the spool and the memory; at the end whether each request is in the store once and in order. Writes
``bench/results/outage.json``. The tests do the same in seconds (tests/real/test_faults.py).
"""

from __future__ import annotations

import json
import os
import signal
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
from sqlalchemy import create_engine, text

from bench import RESULTS
from tests.real.test_faults import Replica
from tests.sidecar.test_sidecar import Process
from tests.support import postgres


@click.command()
@click.option(
    "--rate", default=10.0, show_default=True, help="Requests a second; a frame for each of their three parts."
)
@click.option("--stopped", default=60.0, show_default=True, help="Seconds for which the sidecar stands still.")
@click.option("--away", default=600.0, show_default=True, help="Seconds for which Postgres is away.")
def main(rate: float, stopped: float, away: float) -> None:
    """Run the phases and check what is in the store."""
    with tempfile.TemporaryDirectory() as folder, postgres.running() as server:
        process = Process(Path(folder), store_url=server.url("outage"))
        replica = Replica(process)
        try:
            phases = list(run(process, replica, server, rate, stopped, away))
        finally:
            replica.sender.close(5)
            process.close()
        result = {"rate_per_s": rate, "phases": phases, **stored(process.store_url)}
    print(json.dumps({name: value for name, value in result.items() if name != "phases"}))
    (RESULTS / "outage.json").write_text(json.dumps(result, indent=1) + "\n")


def run(
    process: Process, replica: Replica, server: postgres.Postgres, rate: float, stopped: float, away: float
) -> Iterator[dict[str, Any]]:
    """Yield what is known at the end of each phase."""
    sent = _serve(replica, rate, 10)
    yield _told("both well", 10, sent, process, replica)
    os.kill(process.server.process.pid, signal.SIGSTOP)
    sent += _serve(replica, rate, stopped)
    os.kill(process.server.process.pid, signal.SIGCONT)
    sent += _serve(replica, rate, 10)
    yield _told("sidecar stood still", stopped, sent, process, replica)
    server.stop(signal.SIGKILL)
    sent += _serve(replica, rate, away)
    yield _told("store away", away, sent, process, replica)
    server.start()
    began = time.monotonic()
    process.until(lambda s: s["store"]["up"] and not s["store"]["spool_bytes"], 300)
    yield _told("store back, spool written", time.monotonic() - began, sent, process, replica)
    sent += _serve(replica, rate, 10)
    process.until(lambda s: sum(one["requests"] for one in s["replicas"]) == sent, 60)
    time.sleep(2)  # written
    yield _told("both well", 10, sent, process, replica)


def _serve(replica: Replica, rate: float, seconds: float) -> int:
    """Finish requests at ``rate`` for ``seconds``; return how many."""
    began, done = time.monotonic(), 0
    while done < rate * seconds:
        replica.serve(1)
        done += 1
        time.sleep(max(0.0, began + done / rate - time.monotonic()))
    return done


def _told(phase: str, seconds: float, sent: int, process: Process, replica: Replica) -> dict[str, Any]:
    status = process.until(lambda s: sum(one["requests"] for one in s["replicas"]) >= sent - 1, 120)
    memory = Path(f"/proc/{process.server.process.pid}/status").read_text()
    told = {
        "phase": phase, "seconds": round(seconds, 1), "sent": sent,
        "seen": sum(one["requests"] for one in status["replicas"]), "store_up": status["store"]["up"],
        "spool_bytes": status["store"]["spool_bytes"], "frames_dropped": replica.dropped(),
        "frames_lost": sum(status["frames_lost"].values()), "frames_refused": sum(status["frames_refused"].values()),
        "rss_mb": round(int(memory.partition("VmRSS:")[2].split()[0]) / 1024, 1),
    }  # fmt: skip
    print(" ".join(f"{name}={value}" for name, value in told.items()), flush=True)
    return told


def stored(url: str) -> dict[str, Any]:
    """Return how many requests are in the store, how many different ones, and whether they are in order."""
    engine = create_engine(url)
    with engine.connect() as connection:
        rows, distinct = connection.execute(text("select count(*), count(distinct request_id) from requests")).one()
        times = list(connection.scalars(text("select finished_at from requests order by id")))
        windows = connection.scalar(text("select sum(requests) from windows"))
    engine.dispose()
    return {"stored": rows, "different": distinct, "in_windows": int(windows), "in_order": times == sorted(times)}


if __name__ == "__main__":
    main()
