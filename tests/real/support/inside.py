"""Runs inside a server under test: says what it has of the tap, makes a function of it fail, and mends it again.

vLLM loads it: ``--worker-extension-cls`` in the engine's process, ``--middleware`` in the API server's.
"""

from __future__ import annotations

import functools
import gc
import importlib
import json
import pkgutil
import sys
import threading
from collections.abc import Callable
from typing import Any

TAP = "moe_watch.tap"
_undo: list[Callable[[], None]] = []


def loaded() -> dict[str, Any]:
    """Return the tap's modules and threads in this process."""
    modules = sorted(name.removeprefix(f"{TAP}.") for name in sys.modules if name.startswith(f"{TAP}."))
    return {"modules": modules, "threads": [t.name for t in threading.enumerate() if t.name.startswith("moe-watch")]}


def sender(role: str) -> Any:
    """Return this process's sender."""
    gc.unfreeze()  # vLLM hides from the collector what was there at the start
    kind = sys.modules[f"{TAP}.send.sender"].Sender
    return next(o for o in gc.get_objects() if type(o) is kind and o.role == role and not o.stopping)


def state(role: str) -> dict[str, Any]:
    """Return what the sender knows of itself, and how much it holds."""
    one = sender(role)
    status = one.status
    return {
        "state": status.state, "reason": status.reason, "errors": status.errors, "dropped": dict(one.dropped),
        "frames": len(one._queue), "bytes": one._bytes, "most": [one.settings.queue_frames, one.settings.queue_bytes],
    }  # fmt: skip


def _whole(name: str) -> str:
    """Return the whole name of a module of the tap, which has one of each name."""
    package = importlib.import_module(TAP)
    (found,) = [one.name for one in pkgutil.walk_packages(package.__path__, f"{TAP}.") if one.name.endswith(f".{name}")]
    return found


def make_fail(name: str) -> None:
    """Make the function ``module.Class.method`` or ``module.function`` of the tap raise, wherever it is known."""
    module_name, *path = name.split(".")
    owner: Any = importlib.import_module(_whole(module_name))
    for part in path[:-1]:
        owner = getattr(owner, part)
    function = vars(owner)[path[-1]]

    @functools.wraps(function)
    def broken(*_: Any, **__: Any) -> Any:
        raise ZeroDivisionError("injected")

    _replace(owner, path[-1], broken)
    for module in [module for known, module in sys.modules.items() if known.startswith(f"{TAP}.")]:
        for known, value in list(vars(module).items()):
            if value is function:
                _replace(module, known, broken)


def _replace(owner: Any, name: str, value: Any) -> None:
    _undo.append(functools.partial(setattr, owner, name, vars(owner)[name]))
    setattr(owner, name, value)


def mend(role: str) -> None:
    """Put everything back, and switch the sender on again."""
    while _undo:
        _undo.pop()()
    one = sender(role)
    one.status.__init__()
    if one._thread is not None and not one._thread.is_alive():
        one._thread = None


class Extension:
    """Methods for vLLM's ``/collective_rpc``."""

    def tap_loaded(self) -> dict[str, Any]:
        """Say what the engine's process has of the tap."""
        return loaded()

    def tap_state(self) -> dict[str, Any]:
        """Return the state of the engine's sender and the size of the tap's books."""
        from moe_watch.tap.engine.routing import RoutingTap  # noqa: PLC0415 - not where the tap is off

        mine, found = sender("engine"), state("engine")
        for books in [one for one in gc.get_objects() if type(one) is RoutingTap and one.sender is mine]:
            held = [len(books.ledger), len(books._ended), len(books._homeless), len(books._prefilling)]
            found |= {"held": held, "free": len(books.ledger._free), "buffer": type(books.capturer.ids).__name__}
        return found

    def tap_make_fail(self, name: str) -> None:
        """Make a function of the engine's process fail."""
        make_fail(name)

    def tap_mend(self) -> None:
        """Put everything back and attach the tap anew."""
        from moe_watch.tap.engine import attach, layers  # noqa: PLC0415 - not where the tap is off

        mend("engine")
        runner: Any = self.model_runner  # type: ignore[attr-defined]
        for name in ("execute_model", "_dummy_run"):
            runner.__dict__.pop(name, None)
        layers.release(runner.get_model())
        sender("engine").close(1)
        attach.attach(self)


class Door:
    """The same for the API server's process, as HTTP paths ``/inside/<what>[/<argument>]``."""

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Answer what is meant for here, pass on the rest."""
        path = scope.get("path", "")
        if not path.startswith("/inside/"):
            await self.app(scope, receive, send)
            return
        what, *arguments = path.removeprefix("/inside/").split("/")
        do = {"loaded": loaded, "state": lambda: state("api"), "fail": make_fail, "mend": lambda: mend("api")}[what]
        body = json.dumps(do(*arguments)).encode()
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"application/json")]})
        await send({"type": "http.response.body", "body": body})
