"""The command line starts quickly: a command loads what it needs, and the light ones need little."""

from __future__ import annotations

import pkgutil
import ssl
import subprocess
import sys

import click
import pytest

from moe_watch.cli import commands
from moe_watch.cli.main import HELP, main
from moe_watch.ops.sidecar_api import SidecarError, fetch_status
from moe_watch.settings import HttpSettings

# Each of these takes a tenth of a second or more to import.
HEAVY = {
    "alembic",
    "grafana_foundation_sdk",
    "jinja2",
    "numpy",
    "opentelemetry",
    "pandas",
    "prometheus_client",
    "pyarrow",
    "scipy",
    "sklearn",
    "sqlalchemy",
    "torch",
    "vllm",
}


def loaded_by(*args: str) -> set[str]:
    """Return the modules that the command line has loaded at its end, in a process of its own."""
    script = (
        "import atexit, sys\n"
        "atexit.register(lambda: print('loaded', *sys.modules))\n"
        "from moe_watch.cli.main import main\n"
        f"main({list(args)})"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    word, *modules = done.stdout.splitlines()[-1].split()
    assert word == "loaded", done.stdout + done.stderr
    return set(modules)


@pytest.mark.parametrize("args", [["--version"], ["--help"], ["frobnicate"]])
def test_version_help_and_a_wrong_command_load_no_command(args: list[str]) -> None:
    """Neither a command's file nor anything beyond click."""
    loaded = loaded_by(*args)
    assert not {name for name in loaded if name.startswith("moe_watch.cli.commands.")}
    assert not loaded & (HEAVY | {"httpx", "pydantic", "rich"})


@pytest.mark.parametrize("args", [["status", "--help"], ["status", "--url", "http://127.0.0.1:1"]])
def test_status_loads_no_arrays_and_no_database(args: list[str]) -> None:
    """It asks the sidecar over HTTP and prints what it says: neither its help nor a run of it needs more."""
    loaded = loaded_by(*args)
    assert "moe_watch.cli.commands.status" in loaded
    assert not loaded & HEAVY


def test_asking_over_plain_http_reads_no_certificates(monkeypatch: pytest.MonkeyPatch) -> None:
    """All authorities are a quarter of a megabyte to parse, and nobody is asked for a certificate."""
    read = list[object]()
    monkeypatch.setattr(ssl.SSLContext, "load_verify_locations", lambda *given, **_: read.append(given))
    with pytest.raises(SidecarError, match="no sidecar answers"):
        fetch_status(HttpSettings(), "http://127.0.0.1:1")
    assert read == []
    with pytest.raises(SidecarError, match="no sidecar answers"):
        fetch_status(HttpSettings(), "https://127.0.0.1:1")
    assert read != []


def test_the_table_of_commands_names_every_file_of_a_command() -> None:
    """A command that is not in the table could not be called; one without a file would fail."""
    files = {name.replace("_", "-") for _, name, _ in pkgutil.iter_modules(commands.__path__)}
    assert files == set(HELP)


@pytest.mark.parametrize("name", sorted(HELP))
def test_the_list_says_of_a_command_what_its_own_help_begins_with(name: str) -> None:
    """The table repeats it so that the list need not import the command."""
    found = main.get_command(click.Context(main), name)
    assert found is not None
    assert found.get_short_help_str(limit=1000) == HELP[name]
