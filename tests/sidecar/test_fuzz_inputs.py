"""HTTP, settings and command lines: whatever comes, the answer is an answer, never a stack trace."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote

import click
import pytest
from click.testing import CliRunner
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from starlette.testclient import TestClient

from moe_watch.cli import main, setup
from moe_watch.settings import Settings, TapSettings
from tests.sidecar.test_http import client

__all__ = ["client"]
_SAME = settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
_PATHS = ("/metrics", "/healthz", "/readyz", "/api/v1/status", "/api/v1/matrix", "/", "/nowhere")
_TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=40)
_HEADER = st.binary(max_size=60).map(lambda raw: raw.translate(None, b"\r\n\0").strip())


@pytest.fixture(params=[None, "sesame-of-sixteen"], ids=["open", "guarded"])
def server(client: Callable[..., TestClient], request: pytest.FixtureRequest) -> tuple[TestClient, bool]:
    """Return a server, and whether it wants a token; an exception in it is one in the test."""
    return client(token=request.param), request.param is not None


@_SAME
@given(
    asked=st.tuples(
        st.sampled_from(["GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "BREW"]),
        st.sampled_from(_PATHS) | _TEXT.map(lambda text: "/" + quote(text)),
        st.dictionaries(st.sampled_from(["replica", "x"]), _TEXT, max_size=2),
        st.dictionaries(st.sampled_from([b"authorization", b"accept", b"accept-encoding", b"range", b"x"]), _HEADER),
        st.binary(max_size=50),
    )
)
def test_no_request_makes_the_server_fail(server: tuple[TestClient, bool], asked: Any) -> None:
    """Any method, path, query, header and body is answered, and without the token not with anything of use."""
    made, guarded = server
    method, path, query, headers, body = asked
    answer = made.request(method, path, params=query, headers=dict(headers), content=body)
    is_page = not path.strip("/")  # as lowest versions of the client send "//"
    assert answer.status_code < 500 or (is_page and answer.status_code == 503)  # with an empty store
    if guarded and answer.status_code == 200:
        assert path in {"/healthz", "/readyz"}


def _names() -> list[str]:
    names = []
    for name, field in Settings.model_fields.items():
        inner = getattr(field.annotation, "model_fields", None)
        names += [f"{name}__{one}" for one in inner] if inner else [name]
    return [f"MOE_WATCH_{name.upper()}" for name in names] + [
        f"MOE_WATCH_{n.upper()}" for n in TapSettings.model_fields
    ]


def _complaint() -> str:
    """Return what is said of the settings as they are; nothing when they can be used."""
    try:
        setup.settings()
    except click.ClickException as error:
        return error.message
    return ""


@_SAME
@given(st.dictionaries(st.sampled_from(_names()), _TEXT | st.sampled_from(["-1", "nan", "1e400", "[]", "{", "0"])))
def test_settings_are_taken_or_refused_by_name(tmp_path: Path, values: dict[str, str]) -> None:
    """Any value of any variable makes settings, or a message of one line that says where to read."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MOE_WATCH_CONFIG", str(tmp_path / "none.toml"))
        for name, value in values.items():
            patch.setenv(name, value)
        complaint = _complaint()
    assert not complaint or complaint.startswith("settings: ")


@_SAME
@given(raw=st.binary(max_size=200))
def test_a_damaged_file_of_settings_is_explained(tmp_path: Path, raw: bytes) -> None:
    """Any bytes in the file make settings or a message."""
    path = tmp_path / "moe-watch.toml"
    path.write_bytes(raw)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MOE_WATCH_CONFIG", str(path))
        complaint = _complaint()
    assert not complaint or complaint.startswith("settings: ")


# Those that only read, and end by themselves.
_COMMANDS = ("status", "explain", "report", "export", "forget", "backtest", "baseline", "db", "canary", "doctor")
_WORDS = ("--since", "7d", "--model", "--to", "x")


@settings(max_examples=120, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(_COMMANDS), st.lists(_TEXT | st.sampled_from(_WORDS), max_size=5))
def test_no_command_line_ends_in_a_stack_trace(tmp_path: Path, name: str, words: list[str]) -> None:
    """Wrong words are usage errors; right ones against an empty folder say what is missing."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        patch.setenv("MOE_WATCH_STORE__URL", f"sqlite:///{tmp_path}/none.db")
        patch.setenv("MOE_WATCH_HTTP__PORT", "1")
        patch.setenv("MOE_WATCH_VLLM_URL", "http://127.0.0.1:1")
        done = CliRunner().invoke(main.main, [name, *words])
    shown = f"{shlex.join([name, *words])}: {done.output}"
    assert done.exception is None or isinstance(done.exception, SystemExit), shown
    assert done.exit_code in {0, 1, 2}, shown
