"""What the installed sidecar depends on, read from the packages' own metadata: ``make check`` runs this offline.

It says whether every declared bound is met here. Whether an advisory names one of the versions it cannot know: that
needs an advisory service, which ``make audit`` asks.
"""

from __future__ import annotations

import sys
from importlib.metadata import PackageNotFoundError, distribution, version

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name


def closure(name: str, extras: frozenset[str] = frozenset()) -> tuple[dict[str, str], list[str]]:
    """Return the versions of all that ``name`` needs, directly or not, and the requirements that are not met."""
    found: dict[str, str] = {}
    wrong: list[str] = []
    waiting, seen = [(name, extras)], set[tuple[str, frozenset[str]]]()
    while waiting:
        package, wanted = waiting.pop()
        if (package, wanted) in seen:
            continue
        seen.add((package, wanted))
        found[package] = version(package)
        for needed in map(Requirement, distribution(package).requires or ()):
            if not any(_applies(needed, extra) for extra in wanted | {""}):
                continue
            problem = _problem(needed)
            if problem:
                wrong.append(f"{package} needs {needed}: {problem}")
            else:
                waiting.append((canonicalize_name(needed.name), frozenset(needed.extras)))
    return found, wrong


def _applies(needed: Requirement, extra: str) -> bool:
    return needed.marker is None or needed.marker.evaluate({"extra": extra})


def _problem(needed: Requirement) -> str:
    try:
        installed = version(needed.name)
    except PackageNotFoundError:
        return "not installed"
    return "" if needed.specifier.contains(installed, prereleases=True) else f"{installed} is installed"


def main() -> None:
    """Print what is wrong, or how many packages are right (``--list``: which); exit with 1 when something is wrong."""
    found, wrong = closure("moe-watch", frozenset({"postgres", "history", "ray", "dev"}))
    if wrong:
        sys.exit("\n".join(wrong))
    if "--list" in sys.argv:
        sys.stdout.writelines(f"{name}=={found[name]}\n" for name in sorted(found) if name != "moe-watch")
        return
    sys.stdout.write(f"{len(found)} packages meet the bounds that moe-watch and its dependencies declare\n")


if __name__ == "__main__":
    main()
