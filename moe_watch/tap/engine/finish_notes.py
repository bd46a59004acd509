"""How a request ended: the scheduler knows, the worker that counts does not, so a note travels with the schedule."""

from __future__ import annotations

from collections.abc import Mapping
from types import ModuleType
from typing import Any, Final, Literal, NamedTuple

_NOTES: Final = "moe_watch_endings"  # an attribute of Scheduler and of SchedulerOutput, pickled with the latter


class Ending(NamedTuple):
    """Tokens of output that the scheduler has seen, and whether the text ended by itself."""

    output_tokens: int
    outcome: Literal["finished", "aborted"]


def hook(module: ModuleType) -> None:
    """Make ``vllm.v1.core.sched.scheduler.Scheduler`` note the endings of finished requests on its next output."""
    scheduler = module.Scheduler
    free, schedule = scheduler._free_request, scheduler.schedule  # noqa: SLF001 - every way to finish passes here

    def noted_free(self: Any, request: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            note(self, request)
        except Exception as error:  # noqa: BLE001 - serving goes on; the worker's tap will say that it is off
            setattr(self, _NOTES, f"{type(error).__name__}: {error}")
        return free(self, request, *args, **kwargs)

    def noted_schedule(self: Any, *args: Any, **kwargs: Any) -> Any:
        output = schedule(self, *args, **kwargs)
        notes = self.__dict__.pop(_NOTES, None)
        if notes:
            setattr(output, _NOTES, notes)
        return output

    scheduler._free_request, scheduler.schedule = noted_free, noted_schedule  # noqa: SLF001


def note(scheduler: Any, request: Any) -> None:
    """Keep the ending of ``request`` for the scheduler's next output."""
    notes = scheduler.__dict__.setdefault(_NOTES, {})
    if isinstance(notes, dict):
        aborted = request.status.name in {"FINISHED_ABORTED", "FINISHED_ERROR"}
        notes[request.request_id] = Ending(request.num_output_tokens, "aborted" if aborted else "finished")


def of(scheduler_output: Any) -> Mapping[str, Ending]:
    """Return the endings noted on ``scheduler_output``, by engine id; raise ``RuntimeError`` if noting failed."""
    notes: dict[str, Ending] | str = getattr(scheduler_output, _NOTES, {})
    if isinstance(notes, dict):
        return notes
    raise RuntimeError(f"in the scheduler: {notes}")
