"""The page of the architecture is the tree: a newcomer finds the room of a line from either."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "moe_watch"


def test_the_page_names_every_room_and_no_other() -> None:
    """Its table has each folder and each module at the root of the package."""
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    named = set(re.findall(r"^\| `([\w/.]+)` \|", page.split("## The rooms")[1].split("## ")[0], re.MULTILINE))
    folders = {f"{path.name}/" for path in PACKAGE.iterdir() if (path / "__init__.py").exists()}
    modules = {path.name for path in PACKAGE.glob("*.py") if path.name != "__init__.py"}
    assert named == folders | modules


def test_the_files_that_the_page_sends_a_newcomer_to_are_there() -> None:
    """Every module or folder of the package that it names exists."""
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    for name in re.findall(r"`((?:sidecar|metrics|store|cli|detect|tap)/[\w/]+(?:\.py)?)`", page):
        path = PACKAGE / name
        assert path.exists() or path.with_suffix(".py").exists(), name


def test_no_room_holds_more_than_a_page_of_modules() -> None:
    """A folder with more modules than these is two rooms."""
    folders = [PACKAGE, *(path for path in PACKAGE.rglob("*") if path.is_dir())]
    crowded = {str(path.relative_to(ROOT)): len(list(path.glob("*.py"))) for path in folders}
    assert {name: count for name, count in crowded.items() if count > 18} == {}
