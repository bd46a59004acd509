"""The command line: each command is a file of ``moe_watch.cli.commands``, imported when it is used."""

from __future__ import annotations

import importlib
import pkgutil
import sys

import click

from moe_watch import __version__
from moe_watch.cli import commands


class Commands(click.Group):
    """Finds a command by the name of its file, so that ``--help`` and each command import only what they need."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names of all commands."""
        del ctx
        names = (found.name for found in pkgutil.iter_modules(commands.__path__))
        return sorted(name.replace("_", "-") for name in names)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Return one command; None for an unknown name."""
        if cmd_name not in self.list_commands(ctx):
            return None
        found = importlib.import_module(f"moe_watch.cli.commands.{cmd_name.replace('-', '_')}").command
        return found if isinstance(found, click.Command) else None

    def invoke(self, ctx: click.Context) -> object:
        """Run a command; what its error quotes of others is made harmless before click prints it."""
        try:
            return super().invoke(ctx)
        except click.ClickException as error:
            from moe_watch.cli.terminal import flat  # noqa: PLC0415 - help needs no rich

            error.message = flat(error.message)  # type: ignore[misc]
            raise


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="moe-watch")
def main() -> None:
    """Production quality and routing monitor for Mixture-of-Experts deployments on vLLM."""


if __name__ == "__main__":
    sys.exit(main())
