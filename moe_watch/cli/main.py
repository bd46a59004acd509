"""The command line: each command is a file of ``moe_watch.cli.commands``, imported when it is used."""

from __future__ import annotations

import importlib
import sys
from typing import Final

import click

from moe_watch import __version__
from moe_watch.cli.terminal import flat

# The first sentence of each command's help, so that the list of commands imports none of them.
HELP: Final = {
    "backtest": "Run the detectors over stored fingerprints of each replica, and show when each drift alarm would have "
    "opened.",
    "baseline": "Fit, list, show and promote baselines of normal routing, or learn a new reference of normal quality.",
    "bench-servers": "Load both servers in turns, with the same prompts, and print from which concurrency on the MoE "
    "is faster.",
    "canary": "Replay canary prompts: record the reference, check against it, list the checks.",
    "db": "Upgrade or prune the store.",
    "doctor": "Check vLLM, tap, socket, sidecar, store and baseline, and print remedies; exit code 1 if a check fails.",
    "explain": "Explain a request (its routing against the baseline), an alarm by its number, or an alert by its name.",
    "export": "Write stored fingerprints to Parquet, partitioned by model and day.",
    "forget": "Delete every row of one request or one person from the spool, the store and all exports.",
    "kv-cache": "Predict KV-cache memory by context length from CONFIG, the folder of a checkpoint or its config.json.",
    "provision": "Provision dashboards and alerts: write them with --out, push them with --grafana, or both.",
    "report": "Write the report of a period: is quality holding, did routing move, what changed, what to do.",
    "serve": "Run the sidecar until it is stopped.",
    "shadow": "Replay sampled requests to the dense model until stopped.",
    "status": "Show the verdict on every replica; exit code 2 if one has an open alarm or a blind tap.",
}


class Commands(click.Group):
    """Imports a command by the name of its file when it is used: no other command pays for what it needs."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names of all commands."""
        del ctx
        return sorted(HELP)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Return one command; None for an unknown name."""
        del ctx
        if cmd_name not in HELP:
            return None
        found = importlib.import_module(f"moe_watch.cli.commands.{cmd_name.replace('-', '_')}").command
        return found if isinstance(found, click.Command) else None

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the list of commands from the table."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, HELP[name]) for name in self.list_commands(ctx)])

    def invoke(self, ctx: click.Context) -> object:
        """Run a command; what its error quotes of others is made harmless before click prints it."""
        try:
            return super().invoke(ctx)
        except click.ClickException as error:
            error.message = flat(error.message)  # type: ignore[misc]
            raise


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="moe-watch")
def main() -> None:
    """Production quality and routing monitor for Mixture-of-Experts deployments on vLLM."""


if __name__ == "__main__":
    sys.exit(main())
