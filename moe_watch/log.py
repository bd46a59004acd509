"""The sidecar's log on stderr, for people or for machines."""

from __future__ import annotations

import sys
from typing import Literal

import structlog


def configure(style: Literal["console", "json"]) -> None:
    """Let structlog write to stderr in one of two formats."""
    processors: list[structlog.typing.Processor] = [
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    if style == "json":
        processors += [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
    else:
        # Plain tracebacks: the rich ones show local variables, and those may hold a user's text.
        plain = structlog.dev.plain_traceback
        processors.append(structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty(), exception_formatter=plain))
    structlog.configure(processors=processors, logger_factory=structlog.PrintLoggerFactory(sys.stderr))
