"""Where the committed dashboards and runbooks lie: beside the package in a checkout, inside it in a wheel."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

_PACKAGE = Path(__file__).parents[1]


@cache
def dashboards() -> dict[str, dict[str, Any]]:
    """Return every dashboard's JSON by its uid."""
    found = (
        json.loads(path.read_text(encoding="utf-8")) for path in sorted(_folder("dashboards", "json").glob("*.json"))
    )
    return {content["uid"]: content for content in found}


@cache
def runbooks() -> dict[str, str]:
    """Return every runbook's Markdown by the name of its alert."""
    return {path.stem: path.read_text(encoding="utf-8") for path in sorted(_folder("alerts", "runbooks").glob("*.md"))}


def _folder(name: str, inner: str) -> Path:
    """Return a folder of data; raise ``FileNotFoundError`` when neither a checkout nor a wheel has it."""
    for path in (_PACKAGE / f"_{name}" / inner, _PACKAGE.parent / name / inner):
        if path.is_dir():
            return path
    raise FileNotFoundError(f"neither moe_watch/_{name}/{inner} nor {name}/{inner}: the installation is incomplete")
