"""Write what can be read off the code: the reference pages and the dashboards' JSON (``make docs``).

``tests/test_docs.py`` holds the committed files to what this makes, so the reference cannot drift from the code.
"""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from typing import Any, get_args

import msgspec
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from moe_watch import settings, wire
from moe_watch.metrics import series

REFERENCE = Path(__file__).parent / "reference"
_NOTE = "<!-- Made by `make docs`; do not edit. -->\n"


def settings_page() -> str:
    """Return the Markdown reference of every setting."""
    lines = [_NOTE, "# Settings", "", _paragraph(settings), ""]
    for title, model, prefix in (
        ("The sidecar", settings.Settings, "MOE_WATCH_"),
        ("The tap, inside vLLM", settings.TapSettings, "MOE_WATCH_"),
    ):
        lines += [f"## {title}", "", "| environment variable | default | meaning |", "| --- | --- | --- |"]
        lines += [f"| `{name}` | {default} | {text} |" for name, default, text in _rows(model, prefix)]
        lines.append("")
    return "\n".join(lines)


def _rows(model: type[BaseModel], prefix: str) -> list[tuple[str, str, str]]:
    rows = []
    for name, field in model.model_fields.items():
        inner = field.annotation
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            rows += _rows(inner, f"{prefix}{name.upper()}__")
        else:
            rows.append((f"{prefix}{name.upper()}", _default(field), (field.description or "").replace("|", "\\|")))
    return rows


def _default(field: FieldInfo) -> str:
    if field.default_factory is not None:
        return "the host's name" if "hostname" in repr(field.default_factory) else "made at start"
    if field.default is None or field.default is PydanticUndefined:
        return "unset"
    return f"`{field.default}`"


def frames_page() -> str:
    """Return the Markdown reference of every frame on the wire."""
    lines = [_NOTE, f"# Frames (wire version {wire.WIRE_VERSION})", "", _paragraph(wire), ""]
    common = {field.name for field in msgspec.structs.fields(wire.Frame)}
    structs: list[type[msgspec.Struct]] = [wire.Frame, *get_args(wire.AnyFrame), wire.Counts, wire.Sample]
    for struct in structs:
        lines += [
            f"## {struct.__name__}",
            "",
            _paragraph(struct),
            "",
            "| field | type | default |",
            "| --- | --- | --- |",
        ]
        comments = _comments(struct)
        for field in msgspec.structs.fields(struct):
            if struct is not wire.Frame and issubclass(struct, wire.Frame) and field.name in common:
                continue
            note = f" — {comments[field.name]}" if field.name in comments else ""
            lines.append(f"| `{field.name}` | `{_type_name(field.type)}`{note} | {_field_default(field)} |")
        lines.append("")
    return "\n".join(lines)


def metrics_page() -> str:
    """Return the Markdown reference of every metric and label."""
    lines = [
        _NOTE,
        "# Metrics",
        "",
        _paragraph(series),
        "",
        "| metric | type | labels | meaning |",
        "| --- | --- | --- | --- |",
    ]
    for metric in series.ALL:
        labels = ", ".join(f"`{label}`" for label in metric.labels)
        lines.append(f"| `{metric.name}` | {metric.kind} | {labels} | {metric.help} |")
    lines += ["", "## Labels", "", "| label | values |", "| --- | --- |"]
    lines += [f"| `{name}` | {text} |" for name, text in series.LABELS.items()]
    return "\n".join([*lines, ""])


def _comments(struct: type[Any]) -> dict[str, str]:
    """Return the comment beside each field, which is where the units are."""
    return dict(re.findall(r"^    (\w+): .*?  # (.+)$", inspect.getsource(struct), re.MULTILINE))


def _type_name(annotation: Any) -> str:
    name = annotation.__name__ if isinstance(annotation, type) and not get_args(annotation) else str(annotation)
    return re.sub(r"\b(typing|moe_watch\.wire)\.", "", name).replace("|", "\\|")


def _field_default(field: msgspec.structs.FieldInfo) -> str:
    if field.required:
        return "required"
    value = field.default if field.default is not msgspec.NODEFAULT else field.default_factory()  # type: ignore[operator]
    return f"`{value!r}`"


def _paragraph(thing: Any) -> str:
    return inspect.cleandoc(thing.__doc__ or "").replace("``", "`")


def pages() -> dict[Path, str]:
    """Return every generated file of the reference with its text."""
    return {
        REFERENCE / "settings.md": settings_page(),
        REFERENCE / "frames.md": frames_page(),
        REFERENCE / "metrics.md": metrics_page(),
    }


if __name__ == "__main__":
    REFERENCE.mkdir(exist_ok=True)
    for path, text in pages().items():
        path.write_text(text, encoding="utf-8")
