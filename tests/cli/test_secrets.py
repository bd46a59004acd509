"""Secrets are sent where they belong and shown nowhere: not in logs, errors, pages, reports or process lists."""

from __future__ import annotations

import contextlib
import http.server
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin

import httpx
import pytest
import zmq
from click.testing import CliRunner
from pydantic import BaseModel, SecretStr

from demo.servers import Server, free_port, start
from moe_watch import wire
from moe_watch.cli.main import main
from moe_watch.settings import HttpSettings, Settings, ShadowSettings
from tests.support.frames import Tap
from tests.support.patience import PATIENCE_S
from tests.support.postgres import Postgres

MARK = "hunter2"
ANYWHERE = "0.0.0.0"  # noqa: S104 - that is the point
_KEYS = (
    *("HTTP__TOKEN", "VLLM_API_KEY", "SHADOW__API_KEY", "SHADOW__JUDGE_API_KEY", "GRAFANA__TOKEN"),
    "CANARY__SECRET",
)
_URLS = ("VLLM_URL", "SHADOW__URL", "SHADOW__JUDGE_URL", "OTLP__ENDPOINT")


def secret(name: str) -> str:
    return f"{MARK}-{name.lower().replace('_', '-')}"


def test_every_setting_that_can_hold_a_secret_is_tried_here() -> None:
    """A new key or address has to be added to the tests below."""
    assert set(_secret_settings(Settings)) == {*_KEYS, *_URLS, "STORE__URL"}


def _secret_settings(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    for name, field in model.model_fields.items():
        kinds = _kinds(field.annotation)
        inner = next((kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)), None)
        if inner is not None:
            yield from _secret_settings(inner, f"{prefix}{name.upper()}__")
        elif SecretStr in kinds or not field.repr:
            yield f"{prefix}{name.upper()}"
        else:
            assert not name.endswith(("url", "token", "key", "password")) or name == "tls_key", name


def _kinds(annotation: Any) -> set[Any]:
    inner = get_args(annotation)[:1] if get_origin(annotation) is Annotated else get_args(annotation)
    return {annotation}.union(*(_kinds(kind) for kind in inner))


@pytest.fixture
def refusing() -> Iterator[int]:
    """Run a server that refuses everything with 401, as one does that was given a wrong key; return its port."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def _refuse(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            self.send_response(401)
            self.send_header("Content-Length", "0")
            self.end_headers()

        do_GET = do_POST = _refuse  # noqa: N815

        def log_message(self, *_: object) -> None:
            """Keep quiet."""

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server.server_port
    server.shutdown()


@pytest.fixture
def environment(tmp_path: Path, postgres_server: Postgres, refusing: int) -> dict[str, str]:
    """Return settings with a secret in every place that takes one."""
    names = ["-keyout", str(tmp_path / "key.pem"), "-out", str(tmp_path / "cert.pem")]
    command = [
        "openssl",
        "req",
        "-x509",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:prime256v1",
        "-nodes",
        "-days",
        "2",
        "-subj",
        "/CN=moe-watch",
    ]
    subprocess.run([*command, *names], check=True, capture_output=True)
    settings = {name: secret(name) for name in _KEYS}
    settings |= {name: f"http://ann:{secret(name)}@127.0.0.1:{refusing}" for name in _URLS}
    # This Postgres trusts everyone, so any password will do.
    settings["STORE__URL"] = postgres_server.url("secrets").replace("postgres@", f"postgres:{secret('STORE__URL')}@")
    settings |= {"HTTP__TLS_CERT": str(tmp_path / "cert.pem"), "HTTP__TLS_KEY": str(tmp_path / "key.pem")}
    settings |= {"ENDPOINT": f"ipc://{tmp_path}/tap.sock", "SPOOL_DIR": str(tmp_path / "spool")}
    settings |= {"HTTP__HOST": ANYWHERE, "HTTP__PORT": str(free_port()), "OTLP__INTERVAL_S": "0.2"}
    return {f"MOE_WATCH_{name}": value for name, value in settings.items()} | {
        "OTEL_EXPORTER_OTLP_HEADERS": f"x-key={secret('header')},authorization: Bearer {secret('malformed')}",
        "OMP_NUM_THREADS": "1",
    }


@pytest.fixture
def sidecar(tmp_path: Path, environment: dict[str, str]) -> Iterator[Server]:
    """Run ``moe-watch serve`` on all addresses, by TLS, and let it see a request whose text is sampled."""
    url = f"https://127.0.0.1:{environment['MOE_WATCH_HTTP__PORT']}"
    command = [sys.executable, "-m", "moe_watch.cli.main", "serve"]
    made = start("serve", command, url=url, work=tmp_path / "log", env=environment)
    try:
        _wait(lambda: httpx.get(f"{url}/readyz", verify=False).status_code == 200, made)  # noqa: S501 - its own
        tap, sample = Tap(), wire.Sample(prompt="a", outputs=["b"])
        with zmq.Context.instance().socket(zmq.PUSH) as socket:
            socket.connect(environment["MOE_WATCH_ENDPOINT"])
            routing, latency, _ = tap.whole("cmpl-0")
            request = tap.request("cmpl-0", sample=sample, sample_rate=1.0)
            for frame in (tap.announce(), tap.health(), routing, latency, request):
                socket.send(wire.encode(frame))
            _wait(lambda: "the OTLP collector did not take" in made.log_tail(), made)
            _wait(lambda: '"requests":1' in _get(environment, "/api/v1/status").text, made)
        yield made
    finally:
        made.stop()


def _wait(true: Any, server: Server) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while True:
        assert time.monotonic() < deadline, server.log_tail()
        assert server.process.poll() is None, server.log_tail()
        try:
            if true():
                return
        except httpx.HTTPError:
            pass
        time.sleep(0.1)


def _get(environment: dict[str, str], path: str) -> httpx.Response:
    token = environment["MOE_WATCH_HTTP__TOKEN"]
    url = f"https://127.0.0.1:{environment['MOE_WATCH_HTTP__PORT']}{path}"
    return httpx.get(url, headers={"Authorization": f"Bearer {token}"}, verify=False)  # noqa: S501


@pytest.mark.real
def test_no_secret_is_shown_by_a_sidecar_and_its_commands(
    tmp_path: Path, environment: dict[str, str], sidecar: Server, refusing: int
) -> None:
    """Logs, answers, output of real commands, files of the report, the store and all command lines are without any."""
    said = {path: _get(environment, path) for path in ("/", "/metrics", "/api/v1/status", "/api/v1/matrix")}
    assert {answer.status_code for answer in said.values()} == {200}
    shown = {path: answer.text for path, answer in said.items()}
    running = {
        words[0]: subprocess.Popen(
            [sys.executable, "-m", "moe_watch.cli.main", *words],
            env={**os.environ, **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for words in (["status"], ["doctor"], ["report", "--out", str(tmp_path / "report")])
    }
    shown["/proc"] = _command_lines(["serve", *running])
    shown |= {name: process.communicate(timeout=PATIENCE_S)[0] for name, process in running.items()}
    for words in (
        ["status", "--json"],
        ["canary", "run"],
        ["bench-servers", "--concurrency", "1", "--no-save"],
        ["provision", "--grafana", f"http://127.0.0.1:{refusing}"],
    ):
        shown[" ".join(words)] = CliRunner(env=environment).invoke(main, words).output
    sidecar.stop()
    shown |= {str(path): path.read_bytes().decode("latin-1") for path in tmp_path.rglob("*") if path.is_file()}
    assert "ok    sidecar: answers" in shown["doctor"]
    assert "fail  vLLM: http://***@127.0.0.1" in shown["doctor"]
    assert f"ok    http: {ANYWHERE}: needs the token, by TLS" in shown["doctor"]
    assert "does not know this token" in shown[f"provision --grafana http://127.0.0.1:{refusing}"]
    assert "OTEL_EXPORTER_OTLP_HEADERS: a part that is not NAME=VALUE is left out" in sidecar.log.read_text()
    assert {place: text for place, text in shown.items() if MARK in text} == {}


def _command_lines(commands: list[str]) -> str:
    """Return the command lines of moe-watch's processes once ``commands`` are among them; an exec takes a moment."""
    seen, deadline = "", time.monotonic() + PATIENCE_S
    while not all(f"moe_watch.cli.main {name}" in seen for name in commands):
        assert time.monotonic() < deadline, seen
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            with contextlib.suppress(OSError):  # it has ended
                line = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
                seen += f"{line}\n" if "moe_watch" in line and line not in seen else ""
    return seen


@pytest.mark.parametrize(
    "url",
    [
        f"postgresql+psycopg://ann:{MARK}@127.0.0.1:1/db",
        f"postgresql+psycopg://ann@127.0.0.1:1/db?password={MARK}",
        f"postgresql+psycopg://ann:with@{MARK}@127.0.0.1:1/db",
        f"postgresql+psycopg://ann:with/{MARK}@127.0.0.1:1/db",
        f"postgresql+psycopg://ann:with:{MARK}@127.0.0.1:1/db",
        f"postgresql+psycopg://ann:x@127.0.0.1:{MARK}/db",
        f"postgresql+nosuch://ann:{MARK}@127.0.0.1:1/db",
        MARK,
    ],
)
@pytest.mark.parametrize("words", [["serve"], ["doctor"], ["status"], ["db", "upgrade"]], ids=" ".join)
def test_a_store_address_that_fails_is_not_quoted(
    url: str, words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However wrong it is: a password with special characters is the usual mistake."""
    monkeypatch.chdir(tmp_path)
    # Serve would wait for the store; at this point it has tried once.
    monkeypatch.setattr("moe_watch.sidecar.receiver.FrameReceiver.take_frames", lambda _: sys.exit(1))
    env = {"MOE_WATCH_STORE__URL": url, "MOE_WATCH_HTTP__PORT": "9", "MOE_WATCH_ENDPOINT": f"ipc://{tmp_path}/s"}
    done = CliRunner(env=env).invoke(main, words)
    assert done.exit_code == 1
    assert isinstance(done.exception, SystemExit), done.exception
    assert MARK not in done.output


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("VLLM_URL", f"http://ann:{MARK}/x@h:8000"),
        ("SHADOW__URL", f"http://ann:{MARK}@[::1"),
        ("HTTP__TOKEN", f"{MARK}\né"),
        ("VLLM_API_KEY", f"a\r\n{MARK}"),
        ("HTTP", f"{{{MARK}"),
        ("HTTP__PORT", MARK),
    ],
)
def test_a_setting_that_is_refused_is_named_and_not_quoted(name: str, value: str) -> None:
    """The message says which one."""
    done = CliRunner(env={f"MOE_WATCH_{name}": value}).invoke(main, ["doctor"])
    assert done.exit_code == 1
    assert name.lower().replace("__", ".") in done.output.lower()
    assert MARK not in done.output


def test_a_file_of_settings_that_cannot_be_read_is_not_quoted(tmp_path: Path) -> None:
    """A mistake in the file names a line and a column."""
    (tmp_path / "a.toml").write_text(f'[store]\nurl = "postgresql://ann:{MARK}@db\n', encoding="utf-8")
    done = CliRunner(env={"MOE_WATCH_CONFIG": str(tmp_path / "a.toml")}).invoke(main, ["doctor"])
    assert done.exit_code == 1
    assert "line 2" in done.output
    assert MARK not in done.output


@pytest.mark.parametrize(
    "words",
    [
        ["serve", "--store", f"postgresql+psycopg://ann:{MARK}@db/a"],
        ["db", "upgrade", "--store", f"postgresql+psycopg://ann@db/a?password={MARK}"],
        ["status", "--url", f"http://ann:{MARK}@host"],
        ["export", "--to", f"ftp://ann:{MARK}@host/a"],
        ["canary", "run", "--url", f"http://:{MARK}@host"],
    ],
    ids=lambda words: words[0],
)
def test_a_password_in_a_command_line_is_refused(words: list[str]) -> None:
    """Everyone on the machine could read it."""
    done = CliRunner().invoke(main, words)
    assert done.exit_code == 2
    assert "everyone on this machine can read" in done.output
    assert MARK not in done.output


def test_a_line_break_behind_a_token_is_not_part_of_it() -> None:
    """Files end with one, and an HTTP client quotes the header that it refuses."""
    token = HttpSettings(token=SecretStr(f"{MARK}\n")).token
    assert token is not None
    assert token.get_secret_value() == MARK


def test_settings_can_be_printed() -> None:
    """A traceback or a debugger that shows them shows stars."""
    settings = Settings(
        vllm_url=f"http://{MARK}@host",
        http=HttpSettings(token=SecretStr(MARK)),
        shadow=ShadowSettings(url=f"http://{MARK}@host", api_key=SecretStr(MARK), judge_url=f"http://{MARK}@host"),
    )
    assert MARK not in repr(settings)
