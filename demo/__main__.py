"""The demo: a real vLLM is tapped, its normal routing learned, and two kinds of drift are told apart by name.

Everything runs in ``out/demo``; every server is stopped at the end, on Ctrl-C and on failure. ``--keep`` leaves them
running at the end. The exit code is 0 when all that the demo claims was shown, 1 when something was not, and 3 when a
server ended or refused to serve.
"""

from __future__ import annotations

import signal
import sys
from contextlib import ExitStack
from pathlib import Path
from types import FrameType

import click
from rich.console import Console

from demo.servers import ServerError
from demo.stage import Stage
from demo.story import run
from demo.waiting import NotShown

_NOT_SHOWN, _SERVER_ENDED = 1, 3  # 2 is click's, for wrong options


@click.command()
@click.option(
    "--out", type=click.Path(path_type=Path), default=Path("out/demo"), help="Folder for logs, store, report."
)
@click.option("--keep", is_flag=True, help="Leave everything running at the end and print the addresses.")
def main(out: Path, *, keep: bool) -> None:
    """Watch moe-watch at work on a real vLLM with tiny trained models."""
    signal.signal(signal.SIGTERM, _leave)
    console = Console(highlight=False)
    try:
        with ExitStack() as servers:
            stage = Stage(console, out, servers)
            run(stage)
            if keep:
                servers.pop_all()
                stage.print_addresses()
    except (NotShown, ServerError) as error:
        logs = ", ".join(sorted(path.name for path in out.glob("*.log")))
        click.echo(f"\nError: {error}\nThe logs are kept in {out.resolve()}: {logs or 'none yet'}", err=True)
        sys.exit(_NOT_SHOWN if isinstance(error, NotShown) else _SERVER_ENDED)
    except KeyboardInterrupt:
        console.print("\nStopped; nothing is left running.")
        sys.exit(130)


def _leave(signum: int, frame: FrameType | None) -> None:
    del frame
    sys.exit(128 + signum)


if __name__ == "__main__":
    main()
