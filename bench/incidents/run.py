"""Incident scorecard on a real vLLM: ``python -m bench.incidents.run STAGE [--setting SETTING] [--minutes M]``.

A setting is a model with its numerics: ``quiet`` and ``noisy`` are the demo's model, ``second-quiet`` and
``second-noisy`` another family that no tolerance was chosen with (``python -m bench.incidents.faults.second`` trains
it). Noisy: every matrix product sums in a random order, as GPU kernels do; vLLM on a CPU is deterministic. Stages, each
with servers of its own; what they find is kept under ``out/incidents``, and a stage that was cut off goes on where it
was:

- ``record``: eight healthy rounds become the reference;
- ``faults``: the same where it is missing; then each fault of ``bench/incidents/faults/catalogue.py`` is put into the
  live model, judged, and taken out again;
- ``restarts``: vLLM is started anew, healthy and in broken configurations;
- ``healthy --rounds N``: healthy rounds until there are N, none of which may be flagged;
- ``transformers``: either model in transformers, broken by the same faults, and healthy again and again;
- ``table``: judges every stored round again, as the code is now, resamples the healthy ones, and writes
  ``bench/results/incidents.json`` and the tables in ``docs/incidents.md``.
"""

from __future__ import annotations

import json
import shutil
import time

import click

from bench import DOCS, RESULTS
from bench.incidents.faults import scoring, tables
from bench.incidents.faults.catalogue import HELD_OUT, INJECTED, RESTARTS, Row
from bench.incidents.faults.running import OUT, SETTINGS, TRANSFORMERS, Stack, stack, work

ROUNDS = 8

_setting = click.option("--setting", type=click.Choice(SETTINGS), default="quiet", show_default=True)
_minutes = click.option("--minutes", default=1e6, help="Start nothing new after this time.")


@click.group(chain=False)
def main() -> None:
    """Score the canaries on real incidents."""


@main.command("record")
@_setting
@_minutes
@click.option("--anew", is_flag=True, help="Forget the reference and whatever was found against it.")
def record_(*, setting: str, minutes: float, anew: bool) -> None:
    """Record the reference, or what it lacks."""
    if anew:
        shutil.rmtree(work(setting), ignore_errors=True)
        for path in OUT.glob(f"*_{setting}.jsonl"):
            path.unlink()
    deadline = time.monotonic() + 60 * minutes
    if scoring.recorded(setting) >= ROUNDS:
        return
    with stack(setting) as running:
        _complete(running, setting, deadline)


def _complete(running: Stack, setting: str, deadline: float) -> bool:
    """Record what the reference lacks; say whether it is complete."""
    rounds = scoring.recorded(setting)
    while rounds < ROUNDS and time.monotonic() < deadline:
        rounds = running.record(min(2, ROUNDS - rounds))
        click.echo(f"{setting}: {rounds} healthy rounds")
    return rounds >= ROUNDS


@main.command("faults")
@_setting
@_minutes
@click.option("--only", help="Names of faults, comma-separated; those are made again.")
def faults_(*, setting: str, minutes: float, only: str | None) -> None:
    """Inject every fault that was not injected yet, after the reference is recorded."""
    rows = _wanted(setting, only)
    if not rows:
        return
    deadline = time.monotonic() + 60 * minutes
    with stack(setting) as running:
        for row in rows if _complete(running, setting, deadline) else ():
            if time.monotonic() > deadline:
                return
            running.call("inject_fault", row.fault)
            _check(running, f"faults_{setting}", row.fault, sizes=row.sizes)
            running.call("mend")


def _rows(setting: str) -> list[Row]:
    """Return the faults to be made in a setting; NaN last: it stays in the cache of a mended model."""
    rows = [row for row in (*INJECTED, *HELD_OUT) if not (row.beside and setting.startswith("second"))]
    return sorted(rows, key=lambda row: row.fault in {"nan_router", "held_nan"})


def _wanted(setting: str, only: str | None) -> list[Row]:
    rows = _rows(setting)
    if only is not None:
        return [row for row in rows if row.fault in only.split(",")]
    done = scoring.kept(OUT / f"faults_{setting}.jsonl")
    return [row for row in rows if row.fault not in done]


@main.command("restarts")
@_setting
@_minutes
@click.option("--only", help="Names of restarts, comma-separated; those are made again.")
def restarts_(*, setting: str, minutes: float, only: str | None) -> None:
    """Start vLLM anew, healthy and broken, for each restart that was not made yet."""
    deadline = time.monotonic() + 60 * minutes
    done = scoring.kept(OUT / f"restarts_{setting}.jsonl")
    for row in RESTARTS:
        if row.name in only.split(",") if only is not None else row.name not in done:
            if time.monotonic() > deadline:
                return
            with stack(setting, row) as running:
                _check(running, f"restarts_{setting}", row.name)


@main.command("healthy")
@_setting
@_minutes
@click.option("--rounds", default=20, show_default=True)
def healthy_(*, setting: str, minutes: float, rounds: int) -> None:
    """Check a healthy model again and again."""
    done = len(scoring.kept(OUT / f"healthy_{setting}.jsonl"))
    deadline = time.monotonic() + 60 * minutes
    if done >= rounds:
        return
    with stack(setting) as running:
        for number in range(done, rounds):
            if time.monotonic() > deadline:
                return
            _check(running, f"healthy_{setting}", str(number))


def _check(running: Stack, stage: str, name: str, *, sizes: bool = False) -> None:
    """Replay and judge one round; keep which row of the store it became."""
    start = time.monotonic()
    done = running.check(sizes=sizes)
    OUT.mkdir(parents=True, exist_ok=True)
    with (OUT / f"{stage}.jsonl").open("a") as file:
        file.write(json.dumps({"name": name, "run": done.run.id, "at": time.time()}) + "\n")
    click.echo(f"{stage:20} {name:28} {time.monotonic() - start:4.0f} s  {done.run.summary}")


@main.command("transformers")
@click.option("--setting", type=click.Choice(TRANSFORMERS), default=TRANSFORMERS[0], show_default=True)
@_minutes
@click.option("--rounds", default=100, show_default=True, help="Healthy rounds.")
def transformers_(*, setting: str, minutes: float, rounds: int) -> None:
    """Break a model in transformers, and replay it healthy; rounds that are there are left."""
    from bench.incidents.faults.offline import WITHOUT, Model  # noqa: PLC0415 - torch is slow to import

    deadline, model, folder = time.monotonic() + 60 * minutes, Model(setting), work(setting)
    folder.mkdir(parents=True, exist_ok=True)
    wanted = [f"reference-{number:04}" for number in range(ROUNDS)]
    wanted += [f"faults-{row.fault}" for row in _rows(setting) if row.fault not in WITHOUT]
    wanted += [f"healthy-{number:04}" for number in range(rounds)]
    for seed, name in enumerate(wanted):
        path = folder / f"{name}.npz"
        if path.exists() or time.monotonic() > deadline:
            continue
        if name.startswith("faults-"):
            model.inject(name.removeprefix("faults-"))
        path.write_bytes(model.round(seed).to_bytes())
        model.mend()


@main.command("table")
@click.option("--resamples", default=400, show_default=True, help="Healthy rounds judged against others, a setting.")
def table_(resamples: int) -> None:
    """Write the results and the document's tables."""
    scored = scoring.score(resamples)
    (RESULTS / "incidents.json").write_text(json.dumps(scored, indent=1) + "\n")
    click.echo(tables.write(scored, DOCS / "incidents.md"))


if __name__ == "__main__":
    main()
