"""A real Postgres for tests: a cluster of its own on a unix socket, stopped at the end."""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pytest

from tests.support.patience import PATIENCE_S


def _binary(name: str) -> str | None:
    found = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"))
    return str(found[-1]) if found else shutil.which(name)


class Postgres:
    """A cluster in ``folder``; ``url`` is SQLAlchemy's address of an empty database of a given name."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.process: subprocess.Popen[bytes] | None = None
        self._as_user: dict[str, int] = {}
        if os.getuid() == 0:  # Postgres refuses to run as root
            user = pwd.getpwnam("postgres")
            os.chown(folder, user.pw_uid, user.pw_gid)
            self._as_user = {"user": user.pw_uid, "group": user.pw_gid}
        command = [_binary("initdb") or "", "-D", str(folder / "data"), "-A", "trust", "-U", "postgres", "--no-sync"]
        subprocess.run(command, check=True, capture_output=True, cwd=folder, **self._as_user)  # type: ignore[call-overload]

    def start(self) -> None:
        """Start the server and wait until it answers."""
        command = [_binary("postgres") or "", "-D", "data", "-k", str(self.folder), "-c", "listen_addresses=", "-F"]
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(command, cwd=self.folder, stdout=log, stderr=log, **self._as_user)  # type: ignore[call-overload]
        deadline = time.monotonic() + PATIENCE_S
        while True:
            try:
                psycopg.connect(host=str(self.folder), user="postgres", connect_timeout=2).close()
            except psycopg.OperationalError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.1)
            else:
                return

    def stop(self, number: signal.Signals = signal.SIGINT) -> None:
        """Stop the server (SIGINT: at once but in order)."""
        if self.process is not None:
            self.process.send_signal(number)
            self.process.wait(PATIENCE_S)

    def url(self, name: str) -> str:
        """Make an empty database and return its SQLAlchemy URL."""
        with psycopg.connect(host=str(self.folder), user="postgres", autocommit=True) as connection:
            connection.execute(f'DROP DATABASE IF EXISTS "{name}"'.encode())
            connection.execute(f'CREATE DATABASE "{name}"'.encode())
        return f"postgresql+psycopg://postgres@/{name}?host={self.folder}"


@contextlib.contextmanager
def running() -> Iterator[Postgres]:
    """Run a server, or skip the test where Postgres is not installed."""
    if _binary("initdb") is None:
        pytest.skip("Postgres is not installed: make system")
    folder = Path(tempfile.mkdtemp(prefix="moe-pg-", dir="/tmp"))  # a unix socket has a short path
    folder.chmod(0o755)
    made = Postgres(folder)
    made.start()
    try:
        yield made
    finally:
        made.stop()
        shutil.rmtree(folder, ignore_errors=True)


def url_of(request: pytest.FixtureRequest, tmp_path: Path, server: Callable[[], Postgres]) -> str:
    """Return the URL of an empty store: SQLite or Postgres, as the fixture's parameter says."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/store.db"
    return server().url(f"t{abs(hash(request.node.nodeid)) % 10**9}")
