"""Other libraries on the same streams: false alarms, delays, cost; each in an environment of its own.

Univariate detectors get moe-watch's OOD score, which is the better part of the work; multivariate ones that and the
leading principal components of square-root expert shares, fitted on other requests than they are tested on. Each runs
at its default and at the most sensitive of its parameter's values at which false alarms on these normal streams are
10,000 requests apart. moe-watch is set by its promise; tuned as the others are, it promises less than it then keeps.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from bench import ROOT
from bench.detection.traffic import pools, streams
from bench.simulate import World
from moe_watch.detect.common.batch import Batch
from moe_watch.detect.common.hellinger import hellinger
from moe_watch.detect.ood.score import score

HOME: Final = pools.CACHE.parent / "peers"
NEEDS: Final = {
    "river": ["river==0.26.1"],
    "frouros": ["frouros==0.9.0"],
    "evidently": ["evidently==0.7.23", "pandas<3"],
    "alibi": ["alibi-detect==0.13.0", "numpy<2", "torch==2.13.0"],
}
SIZE: Final = 4000  # requests of a baseline
BASELINES: Final = 6
STREAMS: Final = 36
REFERENCE: Final = 2000  # further normal requests that a peer is given
NULL: Final = 10_000  # requests of a normal stream
CHANGE: Final = 500  # normal requests before a change
AFTER: Final = 4000  # requests behind it
COMPONENTS: Final = 20
PROMISES: Final = (30.0, 100.0, 300.0, 1000.0, 3000.0)  # from most to least sensitive, below the product's own
SHARES: Final = {"far10": 0.1, "near10": 0.1, "far2": 0.02, "near2": 0.02, "moved": 1.0, "mix10": 0.1}
WORDS: Final = {
    "far10": "10 % far", "near10": "10 % near", "far2": "2 % far", "near2": "2 % near",
    "moved": "one layer, 10 % moved", "mix10": "mix +10 points",
}  # fmt: skip
Arrays = dict[str, NDArray[Any]]


def run(seed: int) -> dict[str, Any]:
    """Return the rows of every detector; makes the environments that are missing (needs a package index).

    What a peer has measured is kept in its file beside the streams: remove it to measure again.
    """
    scored = [path for path in pools.prepare("steady", seed) if path.stem.startswith(f"steady-{SIZE}-")]
    arrays, ours = _streams([pools.scored(path) for path in scored[:BASELINES]], seed)
    folder = HOME / f"seed{seed}"
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "streams.npz"
    np.savez(file, **arrays)
    rows = ours
    for name, needs in NEEDS.items():
        out = folder / f"{name}.json"
        if not out.exists():
            print(name, flush=True)
            run_in(environment(name, needs), f"{name}_", file, out)
        rows += json.loads(out.read_text(encoding="utf-8"))
    return {"streams": STREAMS, "baselines": BASELINES, "null": NULL, "after": AFTER, "rows": rows}


def environment(name: str, needs: list[str]) -> Path:
    """Return a virtual environment with the peer in it, made where it is missing."""
    folder = HOME / name
    done = folder / ".installed"
    if not done.exists():
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        subprocess.run([str(folder / "bin/pip"), "install", "--quiet", *needs], check=True)
        done.touch()
    return folder


def run_in(folder: Path, script: str, file: Path, out: Path) -> None:
    """Run a script of ``bench/detection/peers`` with the peer's Python, from the repository's root."""
    command = [str(folder / "bin/python"), "-m", f"bench.detection.peers.{script}", str(file), str(out)]
    subprocess.run(command, check=True, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"})


def _streams(scored: list[pools.Scored], seed: int) -> tuple[Arrays, list[dict[str, Any]]]:
    """Return what the peers read, and moe-watch's own rows on the same streams."""
    rng = np.random.default_rng(seed)
    pieces = {piece.name: piece for piece in pools.sources(seed)["steady"]}
    rare = f"topic{World(seed).popular.argmin()}"
    source = {"far10": "far", "near10": "near", "far2": "far", "near2": "near", "moved": "moved", "mix10": rare}
    drawn = {n: pools.fingerprints("steady", pieces[n], seed) for n in {"normal", *source.values()}}
    pool = np.arange(STREAMS) % BASELINES
    arrays: Arrays = {
        "null_pool": pool,
        "null": rng.integers(0, len(drawn["normal"]), (STREAMS, NULL)),
        "order": rng.integers(0, len(drawn["normal"]), (STREAMS, CHANGE + AFTER)),
        "change": np.array(CHANGE),
    }
    for name, share in SHARES.items():
        arrays[f"{name}_at"] = rng.random((STREAMS, CHANGE + AFTER)) < share
        arrays[f"{name}_at"][:, :CHANGE] = False
    known = pools.fingerprints("steady", pieces["fit"], seed)
    columns: dict[str, list[NDArray[np.float32]]] = {name: [] for name in ("reference", "normal", *SHARES)}
    for index in range(BASELINES):
        rows = pools.chosen("steady", SIZE, len(known), np.random.default_rng([seed, SIZE, index]))
        fresh = np.setdiff1d(np.arange(len(known)), rows)[:REFERENCE]
        view = _View(known.select(rows))
        columns["reference"].append(view.columns(known.select(fresh)))
        seen = {name: view.columns(batch) for name, batch in drawn.items()}
        columns["normal"].append(seen["normal"])
        for name in SHARES:
            columns[name].append(seen[source[name]])
    arrays |= {name: np.stack(parts) for name, parts in columns.items()}
    return arrays, _ours(scored, arrays, source)


class _View:
    """What a user of another library would compute of a fingerprint: OOD score and leading components."""

    def __init__(self, known: Batch) -> None:
        self._baseline = pools.fit(known)
        roots = _roots(known)
        self._mean = roots.mean(0)
        _, size, axes = np.linalg.svd(roots[:1500] - self._mean, full_matrices=False)
        self._axes = axes[:COMPONENTS].T / (size[:COMPONENTS] / np.sqrt(1500))

    def columns(self, batch: Batch) -> NDArray[np.float32]:
        """Return ``[n, 1 + components]``."""
        parts = [batch.select(slice(i, i + 1000)) for i in range(0, len(batch), 1000)]
        rows = [
            np.column_stack([score(self._baseline, part).score, (_roots(part) - self._mean) @ self._axes])
            for part in parts
        ]
        return np.concatenate(rows).astype(np.float32)


def _roots(batch: Batch) -> NDArray[np.float32]:
    return hellinger(batch.total).reshape(len(batch), -1)


def _ours(scored: list[pools.Scored], arrays: Arrays, source: dict[str, str]) -> list[dict[str, Any]]:
    """Return moe-watch's rows: its whole bank on the scored requests that the peers see, as promised and as tuned."""
    own = _null(scored, arrays, streams.PROMISE)
    nulls = (_null(scored, arrays, promise) for promise in PROMISES)
    tuned = next((null for null in nulls if null["run_length"] >= NULL), own)
    return [null | {"at": at, "delays": _delays(scored, arrays, null["value"], source)} for at, null in
            (("promise", own), ("tuned", tuned))]  # fmt: skip


def _null(scored: list[pools.Scored], arrays: Arrays, promise: float) -> dict[str, Any]:
    """Return alarms on normal streams, the run length between them, and the cost."""
    fresh = [streams.detector(each, promise) for each in scored]
    alarms = seen = 0
    seconds = 0.0
    for pool, order in zip(arrays["null_pool"], arrays["null"], strict=True):
        normal = scored[pool].pools["normal"][order]
        start = time.perf_counter()
        found = streams.until_alarm(fresh[pool], normal)[1]
        seconds += time.perf_counter() - start
        alarms += found is not None
        seen += len(normal) if found is None else found.after
    return {
        "peer": "moe-watch", "parameter": "average run length", "value": promise, "false_alarms": alarms,
        "requests": seen, "run_length": seen / max(alarms, 1), "microseconds": 1e6 * seconds / seen,
    }  # fmt: skip


def _delays(
    scored: list[pools.Scored], arrays: Arrays, promise: float, source: dict[str, str]
) -> dict[str, list[int | None]]:
    fresh = [streams.detector(each, promise) for each in scored]
    return {name: _of_change(scored, fresh, arrays, name, source[name]) for name in SHARES}


def _of_change(
    scored: list[pools.Scored], fresh: list[Any], arrays: Arrays, name: str, source: str
) -> list[int | None]:
    found: list[int | None] = []
    for pool, order, kind in zip(arrays["null_pool"], arrays["order"], arrays[f"{name}_at"], strict=True):
        other = scored[pool].pools[source]
        stream = np.where(kind[:, None], other[order % len(other)], scored[pool].pools["normal"][order])
        alarm = streams.until_alarm(fresh[pool], stream)[1]
        if alarm is None or alarm.after > CHANGE:
            found.append(None if alarm is None else alarm.after - CHANGE)
    return found


def tables(result: dict[str, Any]) -> dict[str, str]:
    """Return the table of detectors: false alarms, median delays, cost."""
    head = ["detector", "set to", "requests per false alarm", *WORDS.values(), "us a request"]
    lines = ["| " + " | ".join(head) + " |", "|" + " --- |" * len(head)]
    for row in result["rows"]:
        if row["value"] is None:
            cells = [row["peer"], f"{row['at']}: no {row['parameter']} tried keeps 10,000", *["-"] * (len(head) - 2)]
        else:
            cells = [row["peer"], f"{row['at']}, {row['parameter']} {row['value']:g}", _length(row)]
            cells += [_median(row["delays"][name]) for name in WORDS] + [f"{row['microseconds']:.1f}"]
        lines.append("| " + " | ".join(cells) + " |")
    return {"peers": "\n".join(lines)}


def _length(row: dict[str, Any]) -> str:
    """Return the measured run length; a bound where there was no alarm."""
    if not row["false_alarms"]:
        return f"no alarm in {row['requests']:,}"
    return f"{row['run_length']:,.0f} ({row['false_alarms']} in {row['requests']:,})"


def _median(delays: list[int | None]) -> str:
    """Return the median delay, and the share of streams in which the change was found where it is not all."""
    found = sum(delay is not None for delay in delays)
    if not delays:
        return "false alarm first"
    middle = streams.median(delays)
    share = "" if found == len(delays) else f" ({found / len(delays):.0%} found)"
    return f"{'none' if middle is None else f'{middle:,.0f}'}{share}"
