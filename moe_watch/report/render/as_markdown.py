"""The report for a pull request or a wiki; text from users is taken literally."""

from __future__ import annotations

import re
from functools import cache
from typing import Any, Final

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from moe_watch.domain.sanitise import code, fenced, markdown
from moe_watch.report.data.review import Report
from moe_watch.report.render import view_model

_BLANK: Final = re.compile(r"\n{3,}")
_LONGEST: Final = 600  # characters of one sentence


def render(report: Report, *, nothing: str = "") -> str:
    """Return the report as Markdown; ``nothing`` says what to do when there is no data."""
    text = (
        _environment()
        .get_template("report.md.j2")
        .render(report=report, parts=view_model.of(report), nothing=nothing, span=view_model.span(report))
    )
    return _BLANK.sub("\n\n", text).strip() + "\n"


@cache
def _environment() -> Environment:
    """Return the engine: every string that is printed loses its meaning for Markdown and HTML."""
    environment = Environment(  # noqa: S701 - this is Markdown; finalize escapes for it
        loader=PackageLoader("moe_watch.report.render"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_finalize,
    )
    environment.filters.update(view_model.filters())
    environment.filters["fenced"] = lambda text: Markup(fenced(text))  # noqa: S704 - a block that cannot be closed
    environment.filters["code"] = lambda text: Markup(code(text))  # noqa: S704 - a span that cannot be closed
    return environment


def _finalize(value: Any) -> Any:
    if isinstance(value, Markup):
        return str(value)
    return markdown(value, _LONGEST) if isinstance(value, str) else value
