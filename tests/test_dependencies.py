"""The packages that are declared are those that are imported: what ``make check`` finds."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support import imports

PROJECT = """
[project]
dependencies = ["numpy>=1", "PyYAML"]
[project.optional-dependencies]
history = ["pyarrow>=18"]
dev = ["pytest>=8", "ruff"]
"""
PRODUCT = """
import json
import numpy.linalg
from yaml import safe_load
def late():
    from pyarrow import dataset
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """Return a project whose packages are those that it imports."""
    for folder in (*imports.PRODUCT, *imports.BESIDE):
        (tmp_path / folder).mkdir()
    (tmp_path / "pyproject.toml").write_text(PROJECT)
    (tmp_path / "moe_watch" / "a.py").write_text(PRODUCT)
    (tmp_path / "tests" / "test_a.py").write_text("import pytest\nimport numpy\nfrom moe_watch import a\n")
    return tmp_path


def test_a_project_that_declares_what_it_imports_is_right(project: Path) -> None:
    """Names that differ from the package's, an extra that is imported late, and a command among them."""
    assert imports.problems(project) == []


@pytest.mark.parametrize("needless", ["numpy", "PyYAML", "pyarrow", "pytest"])
def test_a_package_that_nothing_imports_is_found(project: Path, needless: str) -> None:
    """Of the product, of an extra, and of dev."""
    module = {"PyYAML": "yaml"}.get(needless, needless)
    for path in project.rglob("*.py"):
        kept = [line for line in path.read_text().splitlines() if module not in line]
        path.write_text("\n".join([*kept, "    pass" if kept and kept[-1].endswith(":") else ""]))
    (found,) = imports.problems(project)
    assert found.startswith(f"{needless.lower()} is declared")


@pytest.mark.parametrize(
    "line", ["import scipy", "from scipy.stats import norm", "def late():\n    import scipy.stats"]
)
def test_a_package_that_is_imported_and_not_declared_is_found(project: Path, line: str) -> None:
    """With the file that imports it, in whichever way."""
    (project / "moe_watch" / "b.py").write_text(line)
    (found,) = imports.problems(project)
    assert found.startswith("scipy")
    assert "(moe_watch/b.py) is imported and not declared" in found


def test_the_product_may_not_import_what_only_its_developers_have(project: Path) -> None:
    """A package of dev counts for tests alone."""
    (project / "moe_watch" / "b.py").write_text("import pytest")
    (found,) = imports.problems(project)
    assert found == "pytest (moe_watch/b.py) is imported and not declared"


def test_this_project_declares_what_it_imports() -> None:
    """Whatever ``make check`` would find here."""
    assert imports.problems(imports.ROOT) == []


def test_every_exception_is_needed() -> None:
    """None outlives its reason."""
    used = {**imports.imported(imports.ROOT, imports.PRODUCT), **imports.imported(imports.ROOT, imports.BESIDE)}
    for module in imports.BROUGHT_BY:
        assert any(name == module or name.startswith(f"{module}.") for name in used), module
    text = (imports.ROOT / "pyproject.toml").read_text().lower()
    for package in (*imports.MODULES, *imports.NOT_IMPORTED):
        assert f'"{package}' in text, package
