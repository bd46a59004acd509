"""The documentation is what the code says, and its links lead somewhere."""

from __future__ import annotations

import re
import runpy
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = sorted(page for where in ("*.md", "docs/**/*.md", "alerts/**/*.md", "bench/*.md") for page in ROOT.glob(where))


def test_the_reference_is_what_the_code_makes() -> None:
    """Committed reference pages equal `make docs`."""
    made = runpy.run_path(str(ROOT / "docs" / "generate.py"))["pages"]()
    stale = [path.name for path, text in made.items() if not path.exists() or path.read_text(encoding="utf-8") != text]
    assert stale == [], "run `make docs`"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_relative_link_leads_to_a_file(page: Path) -> None:
    """No page points at a file that is not there."""
    links = re.findall(r"\]\((?!https?://|#|mailto:)([^)#\s]+)", page.read_text(encoding="utf-8"))
    assert [link for link in links if not (page.parent / link).exists()] == []


def test_the_readmes_two_commands_are_targets_and_ci_runs_both() -> None:
    """`make demo` and `make test` are in README and Makefile, and CI runs nothing weaker."""
    readme, makefile, ci = ((ROOT / name).read_text() for name in ("README.md", "Makefile", ".ci/run"))
    for target in ("demo", "test"):
        assert f"make {target}" in readme
        assert re.search(rf"^{target}:", makefile, re.MULTILINE)
        assert f"\nmake {target}\n" in ci


@pytest.mark.parametrize("code", [0, 3])
def test_make_demo_fails_when_the_demo_does(tmp_path: Path, code: int) -> None:
    """Its exit code is what CI goes by."""
    python = tmp_path / "bin" / "python"
    python.parent.mkdir()
    python.write_text(f"#!/bin/sh\n[ \"$*\" = '-m demo' ] && exit {code}\nexit 9\n")
    python.chmod(0o755)
    (tmp_path / ".installed").touch()
    done = subprocess.run(
        ["make", "-C", str(ROOT), "demo", f"VENV={tmp_path}"], capture_output=True, text=True, check=False
    )
    assert (done.returncode == 0) == (code == 0), done.stderr
    assert code == 0 or f"Error {code}" in done.stderr


def test_help_lists_every_target() -> None:
    """`make help` is the tour."""
    listed = subprocess.run(["make", "-C", str(ROOT), "help"], capture_output=True, text=True, check=True).stdout
    phony = re.search(r"^\.PHONY: (.+)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert phony
    missing = [target for target in phony[1].split() if f"make {target}" not in listed]
    assert missing == []
