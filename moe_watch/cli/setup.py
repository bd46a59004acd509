"""What the commands share: the settings, and addresses among the options."""

from __future__ import annotations

import re
from typing import Any

import click
from pydantic import ValidationError
from pydantic_settings import SettingsError

from moe_watch.settings import Settings, server_address


class Address(click.types.StringParamType):
    """The address of a server, store or folder; refused with a password, since every user can read command lines."""

    name = "url"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Return ``value``; fail when it holds a password."""
        if re.search(r"://[^/@]*:[^@]*@|[?&]\w*password=", str(value)):
            self.fail(
                "everyone on this machine can read a password in a command line: put the address into the environment "
                "or moe-watch.toml (docs/reference/settings.md)",
                param,
                ctx,
            )
        try:
            return server_address(str(value)) if str(value).startswith("http") else str(value)
        except ValueError as error:
            self.fail(f"it {error}", param, ctx)


ADDRESS = Address()


def settings(**flags: object) -> Settings:
    """Return the settings with ``flags`` on top; raise ``ClickException`` that names each invalid one."""
    try:
        return Settings(**{name: value for name, value in flags.items() if value is not None})  # type: ignore[arg-type]
    except ValidationError as error:
        wrong = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
        raise click.ClickException(f"settings: {wrong} (see docs/reference/settings.md)") from error
    except (SettingsError, ValueError, OSError) as error:
        raise click.ClickException(f"settings: {error}") from error
