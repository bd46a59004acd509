"""Whether a fault of the sidecar or its store slows vLLM down.

    python -m bench.sidecar.fault_latency     (some 45 minutes on a quiet machine)

One real vLLM with the tap answers a steady load while each fault is inflicted on what is behind it: a real
``moe-watch serve`` on SQLite or Postgres. Blocks of a few seconds come in pairs, one healthy and one with the fault,
in an order that changes from pair to pair; each pair gives one ratio, and the row "none" pairs healthy with healthy,
which shows the noise. Rounds go through all faults, so what the machine does meanwhile falls on all.

vLLM has a core of its own. Sidecar, stores and strangers have the others, behind the client: a sidecar that starts
again and again must not slow down what measures. Where a fault keeps the tap from sending, its queue is filled before
either block is timed, so that every frame of the timed requests costs an older one.

Writes ``bench/results/fault_latency.json`` after each round, and the table in docs/reliability.md at the end. Fewer
than 8 pairs are printed only.
"""

from __future__ import annotations

import signal
import sys
import tempfile
import time
from collections import defaultdict
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import click

from bench.sidecar import fault_latency_table as tables
from bench.sidecar.fault_latency_faults import FAULTS, Fault, nothing
from bench.sidecar.fault_latency_load import Answer, Load, Speed, speed
from bench.sidecar.fault_latency_stage import Stage
from bench.tap.overhead import cpu_s, tap_digest
from tests.support import postgres

LEAD_S = 1.0  # of the load before a fault comes
SETTLE_S = 1.0  # after the queue was filled
WARM_UP = 3  # blocks


@dataclass(frozen=True)
class Block:
    """One block: its speed, every answer of it, and how much of its fault was seen."""

    speed: Speed
    answers: list[Answer]
    seen: int


@dataclass
class Texts:
    """What healthy blocks answered to each prompt: with other requests beside it, a tie may fall otherwise."""

    known: dict[int, set[str]] = field(default_factory=lambda: defaultdict(set))

    def learn(self, answers: list[Answer]) -> None:
        """Take the texts of a healthy block."""
        for answer in answers:
            self.known[answer.prompt].add(answer.text)

    def count(self, answers: list[Answer]) -> int:
        """Return how many answers have a text that a healthy block gave to their prompt."""
        return sum(not answer.error and answer.text in self.known[answer.prompt] for answer in answers)


def block(stage: Stage, fault: Fault, seconds: float, *, inflicted: bool) -> Block:
    """Load the server for ``seconds``, with the fault or without it, from a deployment that is well."""
    stage.heal(fault.store)
    with Load(stage.moe.url) as load:
        time.sleep(LEAD_S)
        with (fault.inflict if inflicted else nothing)(stage) as seen:
            if fault.cut:
                stage.flood()
                time.sleep(SETTLE_S)
            begin, used = time.perf_counter(), sum(cpu_s(stage.moe.process.pid))
            time.sleep(seconds)
            end, used = time.perf_counter(), sum(cpu_s(stage.moe.process.pid)) - used
            effect = seen()
    return Block(speed(load.answers, begin, end, used), load.answers, effect)


def pair(stage: Stage, fault: Fault, seconds: float, *, fault_first: bool) -> tuple[dict[bool, Block], int]:
    """Return a healthy block and one with the fault, by whether it was inflicted, and the frames that it cost."""
    found, dropped = {}, 0
    for inflicted in (fault_first, not fault_first):
        stage.heal(fault.store)
        before = stage.dropped() if fault.cut and inflicted else 0
        found[inflicted] = block(stage, fault, seconds, inflicted=inflicted)
        if fault.cut and inflicted:
            stage.heal(fault.store)
            dropped = stage.dropped() - before
    return found, dropped


def kept(blocks: dict[bool, Block], dropped: int) -> dict[str, Any]:
    """Return what is kept of a pair; texts are counted once all healthy blocks are known."""
    harmed = blocks[True]
    return {
        "healthy": asdict(blocks[False].speed), "fault": asdict(harmed.speed), "seen": harmed.seen,
        "frames_dropped": dropped, "answered": sum(not answer.error for answer in harmed.answers),
        "failed": [answer.error for answer in harmed.answers if answer.error],
        "healthy_failed": [answer.error for answer in blocks[False].answers if answer.error],
    }  # fmt: skip


def rounds(stage: Stage, names: list[str], pairs: int, seconds: float) -> dict[str, Any]:
    """Go through all faults ``pairs`` times; print, keep and return what was measured."""
    for _ in range(WARM_UP):
        block(stage, FAULTS[names[0]], seconds, inflicted=False)
    texts, harmed = Texts(), dict[str, list[list[Answer]]]((name, []) for name in names)
    rows: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    said: dict[str, Any] = {}
    began = time.monotonic()
    for number in range(pairs):
        for place, name in enumerate(names):
            blocks, dropped = pair(stage, FAULTS[name], seconds, fault_first=bool((number + place) % 2))
            texts.learn(blocks[False].answers)
            harmed[name].append(blocks[True].answers)
            rows[name].append(kept(blocks, dropped))
            done = (number * len(names) + place + 1) / (pairs * len(names))
            left = (time.monotonic() - began) * (1 / done - 1)
            print(f"pair {number + 1}, {name}: {tables.brief(rows[name][-1])}; {left / 60:.0f} min left", flush=True)
        for name in names:
            for row, answers in zip(rows[name], harmed[name], strict=True):
                row["known_texts"] = texts.count(answers)
        said = {name: {"tap": tap_digest(), "seconds": seconds, "pairs": rows[name]} for name in names}
        if pairs >= tables.FEWEST:
            tables.keep(said)
    return said


@click.command()
@click.option("--pairs", default=8, show_default=True, help="Of blocks, for each fault.")
@click.option("--seconds", default=6.0, show_default=True, help="Of one block.")
@click.option("--only", type=click.Choice(list(FAULTS)), multiple=True, help="These faults; others' rows are kept.")
def main(pairs: int, seconds: float, only: tuple[str, ...]) -> None:
    """Start the servers, measure, and write the table."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that every server is stopped then, too
    names = [name for name in FAULTS if not only or name in only]
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        needed = any(FAULTS[name].store == "postgres" for name in names)
        stage = Stage(Path(folder), stack, stack.enter_context(postgres.running()) if needed else None)
        said = rounds(stage, names, pairs, seconds)
    print(tables.table(said))
    if pairs >= tables.FEWEST:
        tables.write()


if __name__ == "__main__":
    main()
