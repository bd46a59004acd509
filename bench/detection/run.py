"""Proof of the detectors: false alarms, delays, novelty, peers, cost.

    python -m bench.detection.run PART [--seed 0]   measure what is missing of one of PARTS
    python -m bench.detection.run table             write the tables of docs/detection.md

Each part is a module of ``bench/detection/parts`` with ``run(...)``, which returns what was measured, and
``tables(result)``, which returns markdown by the name of a marked section. A part goes on where it was cut off: what it
has measured is in ``bench/results/detection_<part>.json`` (remove rows to measure them again), what it has drawn in the
folder for temporary files.
"""

from __future__ import annotations

import argparse
import importlib
import inspect
import json
import os
import sys
from pathlib import Path
from types import ModuleType
from typing import Any, Final

from bench import DOCS, RESULTS

for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(variable, "1")
PAGE: Final = DOCS / "detection.md"
PARTS: Final = ("false-alarms", "delay", "ood", "peers", "ood-peers", "confidence", "cost")


def main() -> None:
    """Run one part, or write the tables of all that were run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=(*PARTS, "table"))
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    if asked.part == "table":
        for part in PARTS:
            if _file(part).exists():
                _write(_module(part).tables(_load(part)))
        return
    module = _module(asked.part)
    given = {"done": _load(asked.part), "save": lambda found: _save(asked.part, found), "seed": asked.seed}
    taken = inspect.signature(module.run).parameters
    result = module.run(**{name: value for name, value in given.items() if name in taken})
    _save(asked.part, result)
    for name, table in module.tables(result).items():
        print(f"\n{name}\n{table}")


def _module(part: str) -> ModuleType:
    """Return a part's module; only what is asked for is imported."""
    return importlib.import_module(f"bench.detection.parts.{part.replace('-', '_')}")


def _file(part: str) -> Path:
    return RESULTS / f"detection_{part.replace('-', '_')}.json"


def _load(part: str) -> dict[str, Any]:
    return dict(json.loads(_file(part).read_text())) if _file(part).exists() else {}


def _save(part: str, result: dict[str, Any]) -> None:
    temporary = _file(part).with_suffix(".part")
    temporary.write_text(json.dumps(result, indent=1) + "\n")
    temporary.rename(_file(part))


def _write(tables: dict[str, str]) -> None:
    """Put each table between the marks of its name in the page."""
    page = PAGE.read_text()
    for mark, table in tables.items():
        start, end = f"<!-- {mark} -->\n", f"<!-- end {mark} -->"
        if start not in page:
            print(f"{PAGE.name} has no section {mark}", file=sys.stderr)
            continue
        head, rest = page.split(start, 1)
        page = head + start + table + "\n" + end + rest.split(end, 1)[1]
    PAGE.write_text(page)


if __name__ == "__main__":
    main()
