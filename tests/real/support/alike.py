"""Whether a fake answers in the shape of the real server."""

from __future__ import annotations

from typing import Any


def merged(events: list[Any]) -> Any:
    """Return one event with every field that any event has: fields come and go over a stream."""
    first: Any = {}
    for event in events:
        first = deep_merge(first, event)
    return first


def deep_merge(one: Any, other: Any) -> Any:
    """Return both with the fields of either; ``other`` wins where it says something."""
    if isinstance(one, dict) and isinstance(other, dict):
        return {key: deep_merge(one.get(key), other.get(key)) for key in one | other}
    if isinstance(one, list) and isinstance(other, list) and one and other:
        return [deep_merge(one[0], other[0])]
    return one if other is None or other == [] else other


def assert_like(fake: Any, real: Any, where: str) -> None:
    """Fail unless ``real`` has everything ``fake`` has, of the same type; ids that are keys are compared by value."""
    if isinstance(fake, dict):
        assert isinstance(real, dict), where
        if all(key.isdigit() for key in fake):
            fake, real = {"id": next(iter(fake.values()), None)}, {"id": next(iter(real.values()), None)}
        assert set(fake) <= set(real), f"{where}: vLLM has no {set(fake) - set(real)}"
        for key, value in fake.items():
            assert_like(value, real[key], f"{where}.{key}")
    elif isinstance(fake, list):
        assert isinstance(real, list), where
        for one, other in zip(fake, real, strict=False):
            assert_like(one, other, f"{where}[]")
    elif fake is not None and real is not None:
        assert isinstance(real, type(fake)), f"{where}: {fake!r} and {real!r}"
