"""Nested frozen dataclasses of arrays as flat ``npz`` archives, without pickles."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any, TypeVar, get_type_hints

import numpy as np
from numpy.typing import NDArray

Record = TypeVar("Record")


def flatten(record: object, prefix: str = "") -> dict[str, NDArray[Any]]:
    """Return the arrays of ``record`` by dotted path; numbers become arrays of no dimension."""
    flat: dict[str, NDArray[Any]] = {}
    for field in fields(record):  # type: ignore[arg-type]
        value = getattr(record, field.name)
        if is_dataclass(value):
            flat |= flatten(value, f"{prefix}{field.name}.")
        else:
            flat[prefix + field.name] = np.asarray(value)
    return flat


def restore(kind: type[Record], arrays: Mapping[str, NDArray[Any]], prefix: str = "") -> Record:
    """Return the ``kind`` whose arrays ``flatten`` gave; raises ``KeyError`` where one is missing."""
    values: dict[str, Any] = {}
    for name, hint in get_type_hints(kind).items():
        if is_dataclass(hint) and isinstance(hint, type):
            values[name] = restore(hint, arrays, f"{prefix}{name}.")
        else:
            array = arrays[prefix + name]
            values[name] = hint(array) if hint in (int, float) else array
    return kind(**values)


def to_bytes(arrays: Mapping[str, NDArray[Any]]) -> bytes:
    """Return the arrays as a compressed ``npz`` archive; equal arrays give equal bytes."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)  # type: ignore[arg-type]
    return buffer.getvalue()


def from_bytes(raw: bytes) -> dict[str, NDArray[Any]]:
    """Return the arrays in ``raw``; raises ``ValueError`` or ``zipfile.BadZipFile`` when it is no such archive."""
    with np.load(io.BytesIO(raw), allow_pickle=False) as archive:
        return {name: archive[name] for name in archive.files}
