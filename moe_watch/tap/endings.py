"""How a request ended: the scheduler knows, the worker that counts does not, so a note travels with the schedule."""

from __future__ import annotations

from collections.abc import Mapping
from types import ModuleType
from typing import Any, Final, Literal, NamedTuple

_NOTES: Final = "moe_watch_endings"  # an attribute of SchedulerOutput, pickled with it


class Ending(NamedTuple):
    """Tokens of output that the scheduler has seen, and whether the text ended by itself."""

    output_tokens: int
    outcome: Literal["finished", "aborted"]


def hook(module: ModuleType) -> None:
    """Make ``vllm.v1.core.sched.scheduler.Scheduler`` note the endings of finished requests on its next output."""
    scheduler = module.Scheduler
    free, schedule = scheduler._free_request, scheduler.schedule  # noqa: SLF001 - every way to finish passes here

    def _free_request(self: Any, request: Any, *args: Any, **kwargs: Any) -> Any:
        _note(self, request)
        return free(self, request, *args, **kwargs)

    def noted_schedule(self: Any, *args: Any, **kwargs: Any) -> Any:
        output = schedule(self, *args, **kwargs)
        notes = self.__dict__.pop(_NOTES, None)
        if notes:
            setattr(output, _NOTES, notes)
        return output

    scheduler._free_request, scheduler.schedule = _free_request, noted_schedule  # noqa: SLF001


def _note(scheduler: Any, request: Any) -> None:
    aborted = "ABORTED" in getattr(request.status, "name", "")
    ending = Ending(request.num_output_tokens, "aborted" if aborted else "finished")
    scheduler.__dict__.setdefault(_NOTES, {})[request.request_id] = ending


def of(scheduler_output: Any) -> Mapping[str, Ending]:
    """Return the endings noted on ``scheduler_output``, by engine request id."""
    notes: Mapping[str, Ending] = getattr(scheduler_output, _NOTES, {})
    return notes
