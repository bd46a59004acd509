"""How well the OOD score tells unseen requests from normal ones: demo MoE, simulation, gpt-oss-20b, Mixtral."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, Final

import numpy as np

from bench import data
from bench.detection.parts import ood_gptoss, ood_mixtral, ood_simulated, ood_tiny
from bench.detection.traffic import real

Save = Callable[[dict[str, Any]], None]
MANY_TOPICS: Final = 60
NORMAL_KIND: Final = "HumanEval"  # Python, which is a normal domain: no unseen kind, only unseen authors
LENGTHS: Final = ("16", "64", "256")


def run(done: dict[str, Any], save: Save, *, seed: int) -> dict[str, Any]:
    """Return ``done`` with the parts that are missing; ``save`` is called after each."""
    parts: dict[str, Callable[[], dict[str, Any]]] = {
        "tiny": partial(ood_tiny.run, seed),
        "gptoss": partial(ood_gptoss.run, seed),
        "mixtral": partial(ood_mixtral.run, seed),
        "simulated": partial(ood_simulated.run, seed),
        "many topics": partial(ood_simulated.run, seed, MANY_TOPICS),
    }
    for name in (real.GPTOSS, ood_mixtral.FILE):
        data.path(name)  # what is missing is said before hours are spent
    done["seed"] = seed
    for name, part in parts.items():
        if name not in done:
            done[name] = part()
            save(done)
    return done


def tables(result: dict[str, Any]) -> dict[str, str]:
    """Return markdown by section of docs/detection.md."""
    return {
        "ood-tiny": _summary(result["tiny"]),
        "ood-kinds": _kinds(result["tiny"]),
        "ood-gptoss": _gptoss(result["gptoss"]),
        "ood-mixtral": _mixtral(result["mixtral"]),
        "ood-simulated": _simulated(result),
    }


def _table(head: Iterable[str], rows: Iterable[Iterable[object]]) -> str:
    columns = list(head)
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)


def _both(found: dict[str, Any] | None) -> str:
    return "" if found is None else f"{found['auroc']:.3f} / {found['fpr95']:.2f}"


def _summary(tiny: dict[str, Any]) -> str:
    """Return mean and hardest kind by baseline, length and half of the kinds."""
    rows = []
    for baseline, lengths in tiny["tests"].items():
        for n in LENGTHS:
            found, cells = lengths[n]["kinds"], []
            for half in ("tuning", "held out"):
                here = {kind: found[kind]["auroc"] for kind in tiny[half] if kind in found and kind != NORMAL_KIND}
                areas, hardest = list(here.values()), min(here, key=lambda kind: here[kind])
                clear = sum(area >= 0.99 for area in areas)
                cells += [f"{np.mean(areas):.3f}", f"{here[hardest]:.3f} ({hardest})", f"{clear} of {len(areas)}"]
            flagged = lengths[n]["flagged"]
            rows.append([baseline, n, *cells, f"{flagged['0.05']:.3f}"])
    halves = (f"{what}, {half}" for half in ("tuning", "held out") for what in ("mean", "hardest", "0.99 or more"))
    return _table(("baseline", "tokens", *halves, "normal with p <= 0.05"), rows)


def _kinds(tiny: dict[str, Any]) -> str:
    """Return the hardest kinds at 64 tokens one by one, and what a classifier that has seen them can tell."""
    mixed, known = tiny["tests"]["mixed"], tiny["supervised"]
    rows = []
    for kind in known["64"]:
        half = "tuning" if kind in tiny["tuning"] else "held out"
        seen = [f"{known[n][kind]:.3f}" for n in LENGTHS]
        rows.append([kind, half, *(_both(mixed[n]["kinds"].get(kind)) for n in LENGTHS), *seen])
    head = ["kind", "half", *(f"{n} tokens" for n in LENGTHS), *(f"supervised, {n}" for n in LENGTHS)]
    return _table(head, rows)


def _gptoss(found: dict[str, Any]) -> str:
    if not found:
        return "Not run: the recording is not here."
    parts = ("whole", "last 64", "first 64")
    rows: list[list[object]] = []
    for name, pair in found["pairs"].items():
        ours, others = pair["repeated"]
        cells = [_both(pair["parts"][part]) for part in parts]
        rows.append([name, pair["parts"]["whole"]["n"], f"{ours:.2f} / {others:.2f}", *cells])
    rows.append(["other sets / normal", found["other sets"]["n"], "", _both(found["other sets"]), "", ""])
    rows.append(["unseen subjects / seen subjects", found["subjects"]["n"], "", _both(found["subjects"]), "", ""])
    return _table(("unusual / normal", "n", "text repeated, medians", "all tokens", *parts[1:]), rows)


def _mixtral(found: dict[str, Any]) -> str:
    if not found:
        return "Not run: the recording is not here."
    kinds = found["kinds"]
    order = sorted(kinds, key=lambda kind: kinds[kind]["auroc"])
    areas, flagged = ([kinds[kind][name] for kind in order] for name in ("auroc", "fpr95"))
    quartiles = " / ".join(f"{q:.3f}" for q in np.quantile(areas, (0.25, 0.5, 0.75)))
    ends = [f"{kind.replace('_', ' ')} {_both(kinds[kind])}" for kind in (*order[:3], *order[-2:])]
    return _table(
        ("subjects", "AUROC quartiles", "median FPR", "hardest three, easiest two"),
        [[len(areas), quartiles, f"{np.median(flagged):.2f}", "; ".join(ends)]],
    )


def _simulated(result: dict[str, Any]) -> str:
    rows = []
    for name in ("simulated", "many topics"):
        for n, found in result[name]["lengths"].items():
            cells = [_both(found["kinds"][kind]) for kind in ("far", "near")]
            rows.append([result[name]["topics"], n, *cells, f"{found['flagged']:.3f}"])
    return _table(("known topics", "tokens", "far", "near", "normal with p <= 0.05"), rows)
