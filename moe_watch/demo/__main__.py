"""The demo: a real vLLM is tapped, its normal routing learned, and two kinds of drift are told apart by name.

Everything runs in ``out/demo``; every server is stopped at the end, on Ctrl-C and on failure. ``--keep`` leaves them
running at the end.
"""

from __future__ import annotations

import signal
import sys
from contextlib import ExitStack
from pathlib import Path
from types import FrameType

import click
from rich.console import Console

from moe_watch.demo.servers import ServerError
from moe_watch.demo.stage import Stage
from moe_watch.demo.story import run


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
    except ServerError as error:
        raise click.ClickException(str(error)) from error
    except KeyboardInterrupt:
        console.print("\nStopped; nothing is left running.")
        sys.exit(130)


def _leave(signum: int, frame: FrameType | None) -> None:
    del frame
    sys.exit(128 + signum)


if __name__ == "__main__":
    main()
