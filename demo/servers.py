"""Start and stop the real servers that the demo, the tests and the benches run: vLLM and the sidecar.

Every process is its own group, so that vLLM's engine process goes with it, and is stopped by its pid.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import httpx

VLLM_ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
}
# As they were when this process began: tests start servers from a thread while others change variables for themselves.
SURROUNDINGS = dict(os.environ)
_ANSWER_S = 2  # a server that starts may take a connection and not answer it
# vLLM would bind every server of the machine to the same core, and threads that are not bound fight for all of them.
_cores = itertools.cycle(sorted(os.sched_getaffinity(0)))


class ServerError(RuntimeError):
    """A server ended or did not become ready; the message has the end of its log."""


@dataclass
class Server:
    """A running process that answers HTTP at ``url`` and logs to ``log``."""

    name: str
    process: subprocess.Popen[bytes]
    url: str
    log: Path
    _stopped: bool = False

    def wait_ready(self, path: str, timeout_s: float) -> None:
        """Return when ``GET path`` answers 200; raise ``ServerError`` when the process ends or time is up."""
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            if not self.unready(path):
                return
            time.sleep(0.25)
        raise ServerError(f"{self.name} was not ready after {timeout_s:.0f} s.\n{self.log_tail()}")

    def unready(self, path: str) -> str:
        """Return why ``GET path`` does not answer 200 yet, empty when it does; ``ServerError`` when it ended."""
        self.check()
        try:
            answer = httpx.get(self.url + path, timeout=_ANSWER_S)
        except httpx.HTTPError:
            return "no answer yet"
        return "" if answer.status_code == httpx.codes.OK else f"it answers {answer.status_code}"

    def check(self, wait_s: float = 0) -> None:
        """Raise ``ServerError`` when the process has ended, or ends within ``wait_s``."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            code = self.process.wait(wait_s)
            raise ServerError(f"{self.name} ended with code {code}.\n{self.log_tail()}")

    def log_tail(self, lines: int = 25) -> str:
        """Return the last ``lines`` lines of the log with its path."""
        text = self.log.read_text(encoding="utf-8", errors="replace").splitlines()[-lines:]
        return "\n".join([f"The end of {self.log}:", *text])

    def stop(self, timeout_s: float = 15) -> None:
        """End the process politely, then its whole group for good; once, since its number may be another's later."""
        if self._stopped:
            return
        self._stopped = True
        if self.process.poll() is None:
            self.process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(timeout_s)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(timeout_s)


def free_port() -> int:
    """Return a TCP port that nobody listens on at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def start(name: str, command: Sequence[str], *, url: str, work: Path, env: Mapping[str, str]) -> Server:
    """Start ``command`` in a process group of its own, logging to ``work/<name>.log``."""
    work.mkdir(parents=True, exist_ok=True)
    log = work / f"{name}.log"
    with log.open("ab") as out:
        own = {**SURROUNDINGS, **env}
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=out, stderr=out, env=own, start_new_session=True
        )
    return Server(name, process, url, log)


def start_vllm(
    name: str,
    model: Path,
    *,
    work: Path,
    served_name: str,
    args: Sequence[str] = (),
    env: Mapping[str, str] | None = None,
    port: int | None = None,
) -> Server:
    """Start a real vLLM on the CPU; ``env`` with ``MOE_WATCH_ENDPOINT`` switches the tap on."""
    port = port or free_port()
    command = [
        sys.executable,
        *("-m", "vllm.entrypoints.openai.api_server"),
        *("--model", str(model), "--served-model-name", served_name),
        *("--host", "127.0.0.1", "--port", str(port)),
        *("--max-model-len", "1024", "--enforce-eager", "--disable-uvicorn-access-log"),
        *args,
    ]
    return start(
        name,
        command,
        url=f"http://127.0.0.1:{port}",
        work=work,
        env={**VLLM_ENVIRONMENT, "VLLM_CPU_OMP_THREADS_BIND": str(next(_cores)), **(env or {})},
    )


def start_sidecar(work: Path, *, env: Mapping[str, str], port: int | None = None, name: str = "sidecar") -> Server:
    """Start ``moe-watch serve`` with the settings in ``env``, on a free port."""
    port = port or free_port()
    return start(
        name,
        [sys.executable, "-m", "moe_watch.cli.main", "serve"],
        url=f"http://127.0.0.1:{port}",
        work=work,
        env={**env, "MOE_WATCH_HTTP__PORT": str(port)},
    )
