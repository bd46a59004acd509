"""The sidecar's log on stderr, for people or for machines."""

from __future__ import annotations

import contextlib
import io
import logging
import sys
from typing import Literal, TextIO, cast

import structlog

from moe_watch.cli.terminal import flat
from moe_watch.domain.sanitise import neutralise


def configure(style: Literal["console", "json"]) -> None:
    """Let structlog write to stderr in one of two formats."""
    processors: list[structlog.typing.Processor] = [
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    if style == "json":
        processors += [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
    else:
        processors += [
            _harmless,
            structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty(), exception_formatter=_traceback),
        ]
    logging.getLogger("opentelemetry.util.re").addFilter(_without_header)
    structlog.configure(processors=processors, logger_factory=structlog.PrintLoggerFactory(cast("TextIO", _Stderr())))


def _harmless(_: object, __: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
    """Make what vLLM, its clients and other servers wrote unable to move the cursor or to look like another line."""
    return {key: flat(value) if isinstance(value, str) else value for key, value in event.items()}


def _traceback(out: TextIO, error: structlog.typing.ExcInfo) -> None:
    """Write a plain traceback: the rich ones show local variables, and those may hold a user's text."""
    told = io.StringIO()
    structlog.dev.plain_traceback(told, error)
    out.write(neutralise(told.getvalue(), sys.maxsize))


def _without_header(record: logging.LogRecord) -> bool:
    """Say that a header for the collector is not as it should be instead of quoting it: it is most often a token."""
    record.msg, record.args = "OTEL_EXPORTER_OTLP_HEADERS: a part that is not NAME=VALUE is left out", ()
    return True


class _Stderr:
    """Standard error that loses a line when it cannot be written, as on a full disk, instead of ending the process."""

    def write(self, line: str) -> int:
        """Write ``line`` if that is possible."""
        with contextlib.suppress(OSError):
            sys.stderr.write(line)
        return len(line)

    def flush(self) -> None:
        """Write what waits if that is possible."""
        with contextlib.suppress(OSError):
            sys.stderr.flush()
