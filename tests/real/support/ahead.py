"""Starts servers while other tests run: a vLLM needs half a minute of one core until it answers.

Tests that need none of these servers come first, those that mostly wait before all others; meanwhile a thread starts
the servers in the order of their use.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal, TypeVar

import pytest

T = TypeVar("T")
Context = contextlib.AbstractContextManager[Any]
HERE = Path(__file__).parents[1]
_MOST = 5  # fixtures whose servers wait for their tests, each some gigabytes
# Two servers each, of which one compiles: their time is found while tests without real parts run.
_LONGEST = ("others", "mixtral")

_makers: dict[str, Callable[[], Context]] = {}


class Ahead:
    """Enters the contexts of fixtures, one after the other, in a thread."""

    def __init__(self, names: Sequence[str]) -> None:
        self._room = threading.Semaphore(_MOST)
        self._pool = ThreadPoolExecutor(1)
        self._stopping = False
        self._started: dict[str, Future[tuple[Context, Any]]] = {
            name: self._pool.submit(self._enter, name) for name in names
        }

    def _enter(self, name: str) -> tuple[Context, Any]:
        self._room.acquire()
        if self._stopping:
            raise RuntimeError("the tests are over")
        context = _makers[name]()
        return context, context.__enter__()

    @contextlib.contextmanager
    def entered(self, name: str) -> Iterator[Any]:
        """Enter ``name``, or wait until the thread has."""
        started = self._started.pop(name, None)
        if started is None or started.cancel():
            with _makers[name]() as value:
                yield value
            return
        self._room.release()
        context, value = started.result()
        try:
            yield value
        finally:
            context.__exit__(None, None, None)

    def close(self) -> None:
        """Stop what was started and never asked for."""
        self._stopping = True
        for _ in range(_MOST):
            self._room.release()
        self._pool.shutdown(cancel_futures=True)
        for started in self._started.values():
            if not started.cancelled() and started.exception() is None:
                started.result()[0].__exit__(None, None, None)


def fixture(scope: Literal["module", "session"]) -> Callable[[Callable[[], Iterator[T]]], Callable[..., Any]]:
    """Make a fixture of a generator that starts servers, yields what a test needs, and stops them."""

    def wrap(make: Callable[[], Iterator[T]]) -> Callable[..., Any]:
        name = make.__name__
        _makers[name] = contextlib.contextmanager(make)

        def entered(request: pytest.FixtureRequest) -> Iterator[T]:
            with request.config.stash[AHEAD].entered(name) as value:
                yield value

        entered.__doc__ = make.__doc__
        return pytest.fixture(scope=scope, name=name)(entered)

    return wrap


AHEAD = pytest.StashKey[Ahead]()


def begin(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Put the tests in order, module by module, and start what they need."""
    needed: dict[str, list[str]] = {}
    for item in items:
        found = needed.setdefault(_module(item), [])
        found += [name for name in getattr(item, "fixturenames", ()) if name in _makers and name not in found]
    items.sort(key=lambda item: _turn(item, needed[_module(item)]))
    names = [name for item in items for name in getattr(item, "fixturenames", ()) if name in _makers]
    config.stash[AHEAD] = Ahead([] if config.option.collectonly else list(dict.fromkeys(names)))


def _turn(item: pytest.Item, needed: list[str]) -> int:
    if not needed:
        return int(item.path.parent != HERE)
    return 2 if any(name in _LONGEST for name in needed) else 3


def _module(item: pytest.Item) -> str:
    return item.nodeid.partition("::")[0]
