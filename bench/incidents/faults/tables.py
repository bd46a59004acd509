"""The scorecard's tables in the document, written from the results alone."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from bench.incidents.faults.catalogue import HARMLESS, HELD_OUT, INJECTED, RESTARTS, Restart, Row

START, END = "<!-- scorecard: python -m bench.incidents.run table -->", "<!-- end of scorecard -->"
_NAMES = {
    "quiet": "demo, quiet",
    "noisy": "demo, noisy",
    "second-quiet": "second, quiet",
    "second-noisy": "second, noisy",
    "transformers-quiet": "demo in transformers, quiet",
    "transformers-noisy": "demo in transformers, noisy",
    "second-transformers-quiet": "second in transformers, quiet",
    "second-transformers-noisy": "second in transformers, noisy",
}
Found = dict[str, Any]


def write(scored: Found, document: Path) -> str:
    """Replace the tables in the document; return them."""
    text = document.read_text(encoding="utf-8")
    before, _, rest = text.partition(START)
    tables = "\n".join(_tables(scored))
    document.write_text(f"{before}{START}\n{tables}\n{END}{rest.partition(END)[2]}", encoding="utf-8")
    return tables


def _tables(scored: Found) -> Iterable[str]:
    yield from ("## In numbers", "")
    yield from _totals(scored)
    demo, second = [s for s in scored if not s.startswith("second")], [s for s in scored if s.startswith("second")]
    yield from ("", "## The incidents, on the demo's model", "")
    yield from _faults(scored, demo, "faults", INJECTED)
    yield from ("", "## Held out: faults fixed before they were run, on the demo's model", "")
    yield from _faults(scored, demo, "held_out", HELD_OUT)
    if second:
        yield from ("", "## Held out: another model", "")
        yield from _faults(scored, second, "faults", INJECTED)
        yield from ("", "Both held out, model and faults:", "")
        yield from _faults(scored, second, "held_out", HELD_OUT)
    yield from ("", "## Restarts of vLLM", "")
    yield from _restarts(scored)


def _faults(scored: Found, settings: Sequence[str], part: str, rows: Sequence[Row]) -> Iterable[str]:
    names = [_NAMES[setting] for setting in settings]
    yield "| incident | the fault here | expected | " + " | ".join(names) + " |"
    yield "| --- | --- | --- |" + " --- |" * len(names)
    for row in rows:
        cells = [_cell(scored[setting][part].get(row.fault)) for setting in settings]
        layers = scored[settings[0]]["shape"][1]
        yield f"| {row.incident} | {row.how} | {_expected(row, layers)} | {' | '.join(cells)} |"


def _restarts(scored: Found) -> Iterable[str]:
    settings = [setting for setting in scored if scored[setting]["restarts"]]
    if not settings:
        yield "Not run."
        return
    yield "| restart | what changed | expected | " + " | ".join(_NAMES[s] for s in settings) + " |"
    yield "| --- | --- | --- |" + " --- |" * len(settings)
    again = [scored[setting]["restarts"] for setting in settings]
    same = [[found for name, found in rows.items() if name.startswith("restart_")] for rows in again]
    cells = [f"{sum(row['flagged'] for row in rows)} of {len(rows)} flagged" for rows in same]
    yield f"| healthy restarts | the same deployment again | {' or '.join(HARMLESS)} | {' | '.join(cells)} |"
    for row in RESTARTS:
        if row.name.startswith("restart_"):
            continue
        cells = [_cell(rows.get(row.name)) for rows in again]
        yield f"| {row.incident} ({row.name}) | {row.how} | {_expected(row, 6)} | {' | '.join(cells)} |"


def _expected(row: Row | Restart, layers: int) -> str:
    first = row.first_layer(layers)
    return " or ".join(row.accept) + ("" if first is None else f", layer {first}")


def _cell(found: Found | None) -> str:
    """Say verdict, layer, loads and canaries needed; what is wrong is bold."""
    if found is None:
        return "not run"
    harmless = set(found["accept"]) == set(HARMLESS)
    parts = [found["verdict"] if found["right"] else f"**{found['verdict']}**"]
    if found["first_layer"] is not None and not harmless:
        wrong = found["layer_right"] is False
        parts.append(f"**layer {found['first_layer']}**" if wrong else f"layer {found['first_layer']}")
    if found["flagged"] and found["loads"] and found["loads"] != found["tested"]:
        parts.append(f"at load {', '.join(found['loads'])}")
    if found["canaries"]:
        parts.append(f"{found['canaries']} canaries")
    mark = "† " if found.get("first_run") else ""
    return mark + ("flagged: " if found["flagged"] else "not flagged: ") + ", ".join(parts)


def _totals(scored: Found) -> Iterable[str]:
    yield "| setting | verdicts right | faults flagged | first layers | held out: verdicts | layers | restarts |"
    yield "| --- | --- | --- | --- | --- | --- | --- |"
    for setting, found in scored.items():
        known, held = list(found["faults"].values()), list(found["held_out"].values())
        restarts = list(found["restarts"].values())
        faults = [row for row in known if set(row["accept"]) != set(HARMLESS)]
        cells = (
            _right(known, "right"),
            _right(faults, "flagged"),
            _layers(known),
            _right(held, "right"),
            _layers(held),
        )
        yield f"| {_NAMES[setting]} | {' | '.join(cells)} | {_right(restarts, 'right')} |"
    yield from ("", "| setting | healthy rounds | moved | flagged | resampled | of rounds | moved | flagged |")
    yield "| --- | --- | --- | --- | --- | --- | --- | --- |"
    for setting, found in scored.items():
        if "healthy" not in found:
            yield f"| {_NAMES[setting]} | not run | | | | | | |"
            continue
        real, again = found["healthy"], found["resampled"]
        cells = [str(real[key]) for key in ("rounds", "moved", "flagged")]
        cells += [str(again[key]) for key in ("rounds", "pool", "moved", "flagged")]
        yield f"| {_NAMES[setting]} | {' | '.join(cells)} |"


def _right(rows: Sequence[Found], key: str) -> str:
    return f"{sum(row[key] for row in rows)} of {len(rows)}" if rows else "not run"


def _layers(rows: Sequence[Found]) -> str:
    """Count over faults that were flagged and have a layer to be named."""
    return _right([row for row in rows if row["layer_right"] is not None and row["flagged"]], "layer_right")
