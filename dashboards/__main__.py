"""Write every dashboard's JSON to ``dashboards/json``."""

from __future__ import annotations

import json
from pathlib import Path

from . import health, overview, quality, routing, runbooks, serving

HERE = Path(__file__).parent


def files() -> dict[Path, str]:
    """Return every committed dashboard's path and text."""
    contents = [
        *(page.content() for page in (overview, routing, quality, serving, health)),
        runbooks.content(HERE.parent / "alerts" / "runbooks"),
    ]
    return {
        HERE / "json" / f"{content['uid']}.json": json.dumps(content, indent=2, ensure_ascii=False) + "\n"
        for content in contents
    }


if __name__ == "__main__":
    for path, text in files().items():
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")
