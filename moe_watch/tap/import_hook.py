"""Act on a module when somebody else imports it, so that a plugin need not import it early."""

from __future__ import annotations

import importlib.util
import logging
import sys
from collections.abc import Callable, Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType

log = logging.getLogger("moe_watch.tap")


def when_imported(name: str, act: Callable[[ModuleType], None]) -> None:
    """Call ``act(module)`` once: now where module ``name`` is already imported, else right after its import."""
    module = sys.modules.get(name)
    if module is not None:
        act(module)
    else:
        sys.meta_path.insert(0, _Finder(name, act))


class _Finder:
    """Finds one module by the other finders and acts after it has run."""

    def __init__(self, name: str, act: Callable[[ModuleType], None]) -> None:
        self.name = name
        self.act = act

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Return the spec of the awaited module with ``act`` put behind its execution, None for any other."""
        del path, target
        if fullname != self.name:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(fullname)
        if spec is None or spec.loader is None:
            return spec
        run = spec.loader.exec_module

        def exec_module(module: ModuleType) -> None:
            run(module)
            try:
                self.act(module)
            except Exception:
                log.exception("moe-watch tap could not follow %s; serving goes on", fullname)

        spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec
