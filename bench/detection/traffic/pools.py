"""Simulated fingerprints and their scores under many baselines: drawn once, scored once, resampled into long streams.

Drawing a request of 30 x 128 costs a millisecond, scoring it 40 microseconds, and judging a scored one 8. So each
setting has a pool of requests, each baseline scores the pool, and streams are drawn from the scored pool by request,
by session or by hour of the day, with replacement. All of it is kept in a cache of files, piece by piece: a bench that
was cut off goes on where it was.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from bench import data
from bench.simulate import DAY, Rng, World
from moe_watch import detect
from moe_watch.detect.common.batch import Batch
from moe_watch.detect.drift import channels
from moe_watch.detect.fit.baseline_fit import BaselineBuilder
from moe_watch.detect.ood.baseline import Baseline
from moe_watch.detect.ood.score import assess

CACHE: Final = Path(tempfile.gettempdir()) / "moe-watch-bench" / "drift"
SIZES: Final = {500: 10, 2000: 10, 4000: 20, 10_000: 10}  # requests of a baseline, and how many of them
SESSION: Final = 5  # requests of a session
HOURS: Final = 24
A_DAY: Final = 2000  # requests of a day
LAYER: Final = 11  # whose mass is moved
SCORING: Final = (
    *("fit/baseline_fit", "drift/channels", "ood/density", "ood/length_curve", "ood/score", "common/hellinger"),
    *("ood/subspace", "ood/features", "ood/baseline"),
)
MOVED: Final = 0.1  # share of it


def day_of(at: NDArray[np.integer]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the tilt of topics ``[n]`` and the shift of log length ``[n]`` at an hour of the day, both -1 to 1."""
    phase = 2 * np.pi * np.asarray(at) / HOURS
    return np.sin(phase), np.cos(phase)


def at_hours(world: World, hours: NDArray[np.integer], rng: Rng) -> Batch:
    """Return requests of the given hours: by day the first half of the topics is twice as popular, lengths swing."""
    tilt, swing = day_of(hours)
    sign = np.where(np.arange(world.topics) < world.topics // 2, 1, -1)
    popular = world.popular * (1 + 0.35 * tilt[:, None] * sign)
    return world.draw(len(hours), rng, popular=popular, tokens=world.lengths(len(hours), rng, 0.4 * swing))


def olmoe(seed: int) -> dict[str, World]:
    """Return worlds of the OLMoE base and SFT checkpoints: 64 experts in the 3 layers of its published counts, top-8.

    Counts are over whole domains, which are the topics. Requests are mixtures of the domains' shares with a
    peculiarity, as elsewhere in this simulation; SFT counts exist for one domain, whose ratio is applied to all.
    """
    base, tuned = (
        {domain: _shares(counts) for domain, counts in json.loads(path.read_text())["expert_counts"].items()}
        for path in (data.path(f"routing/olmoe/expert_counts_olmoe_{name}.json") for name in ("base", "sft"))
    )
    ratio = tuned["tulu"] / base["tulu"]
    changed = np.stack([shares * ratio for shares in base.values()])
    found = {"base": np.stack(list(base.values())), "sft": changed / changed.sum(-1, keepdims=True)}
    return {name: World.of(shares, seed) for name, shares in found.items()}


def _shares(counts: list[list[int]]) -> NDArray[np.float64]:
    smoothed = np.array(counts, float) + 1
    return np.asarray(smoothed / smoothed.sum(-1, keepdims=True))


@dataclass(frozen=True)
class Source:
    """A named piece of drawn traffic."""

    name: str
    n: int
    draw: Callable[[int, Rng], Batch]


def sources(seed: int) -> dict[str, list[Source]]:
    """Return the pieces of each setting: the first makes baselines, the others are scored."""
    world = World(seed)
    one = np.eye(world.topics)
    steady = [Source("fit", 40_000, world.draw), Source("normal", 12_000, world.draw)]
    steady += [Source(kind, 1500, lambda n, rng, kind=kind: world.draw(n, rng, kind)) for kind in ("far", "near")]
    steady += [Source("moved", 1500, lambda n, rng: world.draw(n, rng, moved=(LAYER, MOVED)))]
    steady += [
        Source(f"topic{k}", 400, lambda n, rng, k=k: world.draw(n, rng, popular=one[k])) for k in range(world.topics)
    ]

    def session(n: int, rng: Rng, kind: str = "normal") -> Batch:
        return world.draw(n, rng, kind, session=SESSION)

    def day(n: int, rng: Rng) -> Batch:
        return at_hours(world, np.arange(n) * HOURS // n, rng)

    sessions = [Source("fit", 16_000, session), Source("normal", 10_000, session)]
    sessions += [Source(kind, 1000, lambda n, rng, kind=kind: session(n, rng, kind)) for kind in ("far", "near")]
    found = {
        "steady": steady,
        "sessions": sessions,
        "days": [Source("fit", HOURS * 600, day), Source("normal", HOURS * 300, day)],
    }
    base, tuned = olmoe(seed).values()
    found["olmoe"] = [Source("fit", 16_000, base.draw), Source("normal", 10_000, base.draw)]
    found["olmoe"] += [Source("sft", 3000, tuned.draw)]
    return found


def chosen(setting: str, size: int, pool: int, rng: Rng) -> NDArray[np.int64]:
    """Return which rows of a setting's pool make a baseline, none twice: requests, sessions, or days in order."""
    if setting == "sessions":
        first = rng.permutation(pool // SESSION)[: size // SESSION] * SESSION
        return (first[:, None] + np.arange(SESSION)).ravel()
    if setting == "days":
        hour = np.arange(size) * HOURS // A_DAY % HOURS
        own = [rng.permutation(pool // HOURS) + h * (pool // HOURS) for h in range(HOURS)]
        place = np.array([(hour[:i] == hour[i]).sum() for i in range(size)])
        return np.array([own[h][k] for h, k in zip(hour, place, strict=True)])
    return rng.permutation(pool)[:size]


def fingerprints(setting: str, source: Source, seed: int) -> Batch:
    """Return the requests of a piece, drawn or from the cache."""
    path = CACHE / f"seed{seed}" / setting / f"{source.name}.npy"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        key = [seed, *setting.encode(), 0, *source.name.encode()]
        drawn = source.draw(source.n, np.random.default_rng(key))
        temporary = path.with_suffix(".part.npy")
        np.save(temporary, np.stack([drawn.prompt, drawn.decode]).astype(np.uint16))
        temporary.rename(path)
    prompt, decode = np.load(path).astype(np.uint32)
    return Batch(prompt, decode, 8, finished_at=np.arange(len(prompt)) * DAY / A_DAY)


def fit(batch: Batch) -> Baseline:
    """Return the baseline of all requests of a batch."""
    builder = BaselineBuilder(minimum=min(500, len(batch)))
    builder.add(batch)
    return builder.build()


def channel_scores(baseline: Baseline, batch: Batch) -> NDArray[np.float32]:
    """Return the scores ``[n, channels]`` of requests."""
    parts = [batch.select(slice(i, i + 500)) for i in range(0, len(batch), 500)]
    return np.concatenate([channels.channel_scores(baseline, assess(baseline, part), part) for part in parts])


@dataclass(frozen=True)
class Scored:
    """A baseline's calibration scores and the scores of every pool of its setting."""

    name: str
    calibration: NDArray[np.float32]
    kinds: tuple[str, ...]
    kept: float
    pools: dict[str, NDArray[np.float32]]


def scored(path: Path) -> Scored:
    """Return what was scored."""
    with np.load(path) as arrays:
        pools = {name[5:]: arrays[name] for name in arrays.files if name.startswith("pool.")}
        return Scored(path.stem, arrays["calibration"], tuple(arrays["kinds"].tolist()), float(arrays["kept"]), pools)


def keep(path: Path, baseline: Baseline, pools: dict[str, Batch]) -> None:
    """Score the pools under a baseline and keep what came out."""
    path.parent.mkdir(parents=True, exist_ok=True)
    kinds = channels.names(baseline.layers, len(baseline.views.groups))[0]
    arrays = {f"pool.{name}": channel_scores(baseline, batch) for name, batch in pools.items()}
    temporary = path.with_suffix(".part.npz")
    np.savez(temporary, calibration=baseline.scores, kinds=np.array(kinds), kept=baseline.kept, **arrays)
    temporary.rename(path)


def version() -> str:
    """Return a key of the code that scores depend on: they are made again when it changes."""
    code = [Path(detect.__path__[0], f"{name}.py").read_bytes() for name in SCORING]
    return hashlib.blake2b(b"".join(code), digest_size=5).hexdigest()


def prepare(setting: str, seed: int) -> list[Path]:
    """Draw, fit and score all of a setting; return the files of its baselines, named after setting, size and number."""
    pieces = sources(seed)[setting]
    for piece in pieces:
        if not (CACHE / f"seed{seed}" / setting / f"{piece.name}.npy").exists():
            fingerprints(setting, piece, seed)
            print(f"drew {setting} {piece.name}", flush=True)
    folder = CACHE / f"seed{seed}" / f"scored-{version()}"
    sizes = SIZES if setting == "steady" else {4000: 10}
    wanted = {folder / f"{setting}-{size}-{i}.npz": size for size, count in sizes.items() for i in range(count)}
    missing = {path: size for path, size in wanted.items() if not path.exists()}
    if not missing:
        return list(wanted)
    fitted, *scored = pieces
    pool = fingerprints(setting, fitted, seed)
    batches = {piece.name: fingerprints(setting, piece, seed) for piece in scored}
    for path, size in missing.items():
        rows = chosen(setting, size, len(pool), np.random.default_rng([seed, size, int(path.stem.split("-")[2])]))
        sample = replace(pool.select(rows), finished_at=np.arange(size) * DAY / A_DAY)
        few = setting == "steady" and size != 4000
        keep(path, fit(sample), {"normal": batches["normal"]} if few else batches)
        print(f"scored {path.stem}", flush=True)
    return list(wanted)
