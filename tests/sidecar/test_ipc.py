"""A socket's folder that another user made first, or can fill, is refused on both sides."""

from __future__ import annotations

import os
import stat
import time
from pathlib import Path

import pytest
import structlog
import zmq

from moe_watch import ipc, wire
from moe_watch.ops import doctor
from moe_watch.settings import Settings, TapSettings
from moe_watch.sidecar.intake import EndpointError, bind
from moe_watch.tap.send.sender import Sender
from moe_watch.tap.send.status import Status
from tests.support.patience import PATIENCE_S


@pytest.fixture
def everybodys(tmp_path: Path) -> Path:
    """Return a folder like /tmp."""
    made = tmp_path / "tmp"
    made.mkdir()
    made.chmod(0o1777)
    return made


def plant(everybodys: Path, how: str, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make a folder there as an attacker could."""
    folder = everybodys / "moe-watch"
    if how == "a link":
        (everybodys / "elsewhere").mkdir(mode=0o700)
        folder.symlink_to(everybodys / "elsewhere")
        return folder
    folder.mkdir(mode=0o700)
    if how == "writable":
        folder.chmod(0o777)
    elif os.geteuid() == 0:
        os.chown(folder, 12345, -1)
    else:
        monkeypatch.setattr(os, "geteuid", lambda: 12345)
    return folder


HOWS = pytest.mark.parametrize(
    ("how", "why"), [("foreign", "belongs to user"), ("writable", "by others"), ("a link", "is no folder")]
)


@HOWS
@pytest.mark.parametrize("below", ["", "deeper"])
def test_a_folder_that_somebody_else_made_is_refused(
    everybodys: Path, monkeypatch: pytest.MonkeyPatch, how: str, why: str, below: str
) -> None:
    """The message says whose it is and what to do; a folder further down is no better."""
    folder = plant(everybodys, how, monkeypatch) / below
    with zmq.Context() as context, pytest.raises(EndpointError, match=f"{why}.*MOE_WATCH_ENDPOINT"):
        bind(context, f"ipc://{folder}/tap.sock")
    found = next(doctor._socket(f"ipc://{folder}/tap.sock"))
    assert (found.state, found.subject) == ("fail", "socket")
    assert why in found.finding


@HOWS
def test_a_tap_sends_nothing_into_a_folder_of_somebody_else(
    everybodys: Path, monkeypatch: pytest.MonkeyPatch, how: str, why: str
) -> None:
    """The tap is off and says why; whoever listens there gets no frame."""
    folder = plant(everybodys, how, monkeypatch)
    tap = Sender(TapSettings(endpoint=f"ipc://{folder}/s", replica="r"), "engine", "engine-0", Status())
    with zmq.Context() as context, context.socket(zmq.PULL) as thief:
        thief.bind(f"ipc://{folder}/s")
        tap.put(lambda header: wire.Event(**header, kind="engine_start", detail="secret", at=0.0))
        deadline = time.monotonic() + PATIENCE_S
        while tap.status.state == "on":
            assert time.monotonic() < deadline
            time.sleep(0.01)
        tap.close(PATIENCE_S)
        assert thief.poll(0) == 0
    assert why in tap.status.reason


def test_the_default_folder_is_made_private_and_taken_again(everybodys: Path) -> None:
    """What the first start made is good enough for the second."""
    for _ in range(2):
        with zmq.Context() as context, bind(context, f"ipc://{everybodys}/moe-watch/tap.sock"):
            assert stat.S_IMODE((everybodys / "moe-watch").stat().st_mode) == 0o700
    assert ipc.folder_of(Settings().endpoint) == Path("/tmp/moe-watch")  # noqa: S108


def test_an_endpoint_in_an_open_folder_is_a_warning(
    everybodys: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the log and in doctor; a mounted volume is shared on purpose, and a private folder is fine."""
    (tmp_path / "mine").mkdir(mode=0o755)
    with structlog.testing.capture_logs() as logs, zmq.Context() as context:
        for folder in (everybodys, tmp_path / "mine"):
            bind(context, f"ipc://{folder}/tap.sock").close()
        monkeypatch.setattr(os.path, "ismount", lambda _: True)
        bind(context, f"ipc://{everybodys}/other.sock").close()
    assert [(one["log_level"], str(everybodys) in one["why"]) for one in logs] == [("warning", True)]
