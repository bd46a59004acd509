"""The middleware tells of every request, samples text only when asked to, and never touches the answer."""

from __future__ import annotations

import asyncio
import json
import re
import zlib
from typing import Any

import httpx
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette._utils import get_route_path
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

pytest.importorskip("vllm")

from fastapi import FastAPI
from vllm.entrypoints.openai.chat_completion import api_router
from vllm.entrypoints.serve.engine.serving import BaseServing

from moe_watch import wire
from moe_watch.settings import TapSettings
from moe_watch.store.write import request_rows
from moe_watch.tap import middleware
from moe_watch.tap.api import api_sender, bodies, exchange, redact
from moe_watch.tap.api import asked as asking
from moe_watch.tap.send import ids
from moe_watch.tap.send.sender import Sender
from moe_watch.tap.send.status import Status
from tests.support.fake_api import CHAT, chat
from tests.support.frames import Tap

HEADER: Any = {"replica": "r", "source": "s", "seq": 0, "sent_at": 0.0}


class Served:
    """The app behind the middleware, and the frames that would leave."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, **settings: object) -> None:
        monkeypatch.setenv("MOE_WATCH_ENDPOINT", "ipc:///tmp/nobody-listens")
        self.sender = Sender(TapSettings(**settings), "api", "api-test", Status())  # type: ignore[arg-type]
        self.builds: list[Any] = []
        monkeypatch.setattr(self.sender, "put", lambda build, _size=0: self.builds.append(build))
        monkeypatch.setattr(api_sender, "sender", lambda: self.sender)
        routes = [Route(CHAT, chat, methods=["POST"]), Route("/health", lambda _: Response())]
        self.app = middleware.Middleware(Starlette(routes=routes))

    def post(self, body: object, **headers: str) -> httpx.Response:
        async def go() -> httpx.Response:
            transport = httpx.ASGITransport(self.app)
            async with httpx.AsyncClient(transport=transport, base_url="http://vllm") as client:
                return await client.post(CHAT, json=body, headers=headers)

        return asyncio.run(go())

    def frame(self) -> wire.Request:
        built = self.builds[-1](HEADER)
        assert wire.decode(wire.encode(built)) == built
        return built


def ask(text: str = "hello ann@example.org", **more: object) -> dict[str, object]:
    return {"model": "m", "messages": [{"role": "user", "content": text}], **more}


def test_without_sampling_no_text_leaves(monkeypatch: pytest.MonkeyPatch) -> None:
    """By default a request is told by its metadata alone."""
    served = Served(monkeypatch)
    served.post(ask())
    assert served.frame().sample is None
    assert (served.frame().model, served.frame().status, served.frame().choices) == ("m", 200, 1)


def test_an_incoming_request_id_is_kept_and_a_missing_one_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    """The client finds the id that moe-watch uses in the answer's header."""
    served = Served(monkeypatch)
    assert served.post(ask(), **{"X-Request-Id": "abc-1"}).headers["x-request-id"] == "abc-1"
    assert served.frame().request_id == "chatcmpl-abc-1"
    made = served.post(ask()).headers["x-request-id"]
    assert served.frame().request_id == f"chatcmpl-{made}"


@pytest.mark.parametrize("stream", [False, True])
def test_a_sample_has_prompt_and_every_output_redacted(monkeypatch: pytest.MonkeyPatch, *, stream: bool) -> None:
    """Whole and streamed answers give the same text, and no address leaves."""
    served = Served(monkeypatch, sample_rate=1.0)
    answer = served.post(ask(n=2, stream=stream, temperature=0.5, max_completion_tokens=7))
    assert "ann@example.org" in answer.text  # the client's answer is untouched
    sample = served.frame().sample
    assert sample is not None
    assert json.loads(sample.prompt) == [{"role": "user", "content": "hello [EMAIL]"}]
    assert [text.strip() for text in sample.outputs] == ["answer 0 to [EMAIL]", "answer 1 to [EMAIL]"]
    assert sample.params == {"temperature": 0.5, "max_tokens": 7, "n": 2}
    assert sample.redactions == 3


def test_long_text_is_cut_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """A sample is never longer than the limit."""
    served = Served(monkeypatch, sample_rate=1.0, sample_max_bytes=100)
    served.post(ask("ä" * 5000))
    sample = served.frame().sample
    assert sample is not None
    assert len(sample.prompt.encode()) <= 100
    assert sample.prompt_truncated
    assert not sample.output_truncated


def test_a_redaction_that_fails_keeps_the_text_inside(monkeypatch: pytest.MonkeyPatch) -> None:
    """No text leaves unredacted; the request is told all the same."""
    served = Served(monkeypatch, sample_rate=1.0, redact="tests.tap.test_tap_samples:broken")
    assert served.post(ask()).status_code == 200
    assert served.frame().sample is None
    assert served.sender.status.errors == 1


def broken(text: str) -> tuple[str, int]:
    raise RuntimeError(text)


def test_a_redaction_that_cannot_be_loaded_switches_sampling_off(monkeypatch: pytest.MonkeyPatch) -> None:
    """A wrong setting leaks nothing."""
    served = Served(monkeypatch, sample_rate=1.0, redact="nowhere:nothing")
    served.post(ask())
    assert served.frame().sample is None


def test_a_canarys_mark_is_told_as_it_came(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether moe-watch made it, the sidecar finds out: to the tap it is a request like any other."""
    served = Served(monkeypatch, sample_rate=1.0)
    served.post(ask(), **{"X-Moe-Watch-Canary": "m" * 70})
    assert (served.frame().mark, served.frame().canary) == ("m" * 64, True)
    assert served.frame().sample is not None


def test_an_id_that_comes_again_gets_one_of_its_own_that_leads_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """One for vLLM, the frame and the answer's header; what the engine makes of it leads to the same."""
    served = Served(monkeypatch)
    told = []
    for _ in range(50):
        seen = served.post(ask(), **{"X-Request-Id": "abc-1"}).headers["x-request-id"]
        told.append(served.frame().request_id)
        assert told[-1] == f"chatcmpl-{seen}"
        assert ids.from_engine(f"chatcmpl-{seen}-0123abcd") == ids.from_frontend(told[-1]) == (told[-1], 0)
        assert ids.from_engine(f"1_cmpl-{seen}-2-0123abcd") == (f"cmpl-{seen}", 2 * wire.CHOICES + 1)
    assert told[0] == "chatcmpl-abc-1"
    assert len(set(told)) == 50
    assert all(re.fullmatch("chatcmpl-abc-1~[0-9a-f]{12}", one) for one in told[1:])


def test_of_two_id_headers_the_one_that_vllm_reads_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first; and where it is one of ours, vLLM sees no other."""
    heard: list[str | None] = []
    served = Served(monkeypatch)

    async def app(scope: Any, _: Any, send: Any) -> None:
        heard.append(BaseServing._base_request_id(Request(scope)))
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    served.app.app = app
    for first, second in ((b"a", b"b"), (b"a", b"c"), (b"", b"d"), (b"b", b"a")):
        scope = {"type": "http", "method": "POST", "path": CHAT, "headers": [(b"x-request-id", first), *HOST]}
        scope["headers"].append((b"x-request-id", second))  # type: ignore[union-attr]
        asyncio.run(served.app(scope, None, send_nothing))  # type: ignore[arg-type]
        assert served.frame().request_id == f"chatcmpl-{heard[-1]}"
    assert heard[0] == "a"
    assert heard[3] == "b"
    assert len(set(heard)) == 4


HOST = [(b"host", b"vllm")]


async def send_nothing(_: object) -> None:
    """Take a message."""


def test_which_requests_are_sampled_is_not_the_clients_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ids that a draw without a secret would choose are chosen no more often than others; one process is consistent."""
    assert len(exchange._SECRET) >= 16
    own = [f"a{n}".encode() for n in range(400_000) if zlib.crc32(f"chatcmpl-a{n}".encode()) < 2**32 // 100][:2000]
    shares = []
    for secret in (b"one", b"two"):
        monkeypatch.setattr(exchange, "_SECRET", secret)
        shares.append([exchange._is_drawn(one, 0.25) for one in own])
        assert shares[-1] == [exchange._is_drawn(one, 0.25) for one in own]
        assert 400 < sum(shares[-1]) < 600
    assert shares[0] != shares[1]


@pytest.mark.parametrize("root", ["", "/llm", "/a/b", "/"])
@pytest.mark.parametrize("stripped", [False, True])
def test_a_root_path_hides_nothing(monkeypatch: pytest.MonkeyPatch, root: str, *, stripped: bool) -> None:
    """`vllm serve --root-path`: vLLM's own router answers, and the request is told with its route."""
    served = Served(monkeypatch)
    app = FastAPI()
    app.root_path = root  # as vllm.entrypoints.launchers.app.build_app sets it
    app.include_router(api_router.router)
    app.add_middleware(middleware.Middleware)
    path = CHAT if stripped or root == "/" else root + CHAT

    async def go() -> int:
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://vllm") as client:
            return (await client.post(path, json=ask())).status_code

    assert asyncio.run(go()) != 404
    assert served.frame().endpoint == CHAT
    assert served.frame().user == ""
    assert served.frame().model == "m"


@given(st.lists(st.sampled_from(["/", "llm", "v1", "l", ""])), st.lists(st.sampled_from(["/", "llm", "v1", ""])))
def test_paths_are_matched_as_starlette_matches_them(path: list[str], root: list[str]) -> None:
    """By its own function."""
    scope = {"path": "/" + "".join(path), "root_path": "".join(root)}
    assert middleware.route(scope) == get_route_path(scope)


def test_the_trace_that_a_request_came_with_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """As it came, cut to what a frame holds; without one it is empty."""
    served = Served(monkeypatch)
    trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
    for came, told in (({"traceparent": trace}, trace), ({"traceparent": "x" * 5000}, "x" * 64), ({}, "")):
        served.post(ask(), **came)
        assert served.frame().traceparent == told


def test_images_domain_and_user_are_told_without_their_content(monkeypatch: pytest.MonkeyPatch) -> None:
    """A picture is counted, a person is a hash, a domain is the client's word."""
    served = Served(monkeypatch, sample_rate=1.0)
    content = [{"type": "text", "text": "what is this?"}, {"type": "image_url", "image_url": {"url": "data:abc"}}]
    served.post(
        {"model": "m", "messages": [{"role": "user", "content": content}], "user": "ann"},
        **{"X-Moe-Watch-Domain": "shop"},
    )
    frame = served.frame()
    assert (frame.images, frame.domain, frame.user) == (1, "shop", wire.user_hash("ann"))
    assert frame.sample is not None
    assert "data:abc" not in frame.sample.prompt
    assert "[image]" in frame.sample.prompt


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b'{"messages": 7}', b"\xff\xfe", b'{"n": "many"}'])
def test_any_body_is_borne(body: bytes) -> None:
    """What is not of the API asks for nothing."""
    asked = asking.said(body)
    assert (asked.choices, asked.images) == (1, 0)


@pytest.mark.parametrize(
    ("prompt", "prompts"),
    [("one", 1), ([5, 6, 7], 1), ([], 1), (["one"], 1), (["one", "two"], 2), ([[5, 6], [7], [8]], 3)],
)
def test_each_prompt_of_a_completion_has_n_choices(prompt: object, prompts: int) -> None:
    """A list of token ids is one prompt, a list of texts or of such lists is several."""
    asked = asking.said(json.dumps({"prompt": prompt, "n": 2}).encode())
    assert (asked.prompts, asked.choices) == (prompts, 2 * prompts)


def test_each_of_several_prompts_keeps_its_own_text() -> None:
    """A sample of several prompts lists them, each redacted, with the outputs prompt by prompt."""
    asked = asking.said(json.dumps({"prompt": ["to ann@example.org", 'say "b"'], "n": 2}).encode())
    answer = json.dumps({"choices": [{"index": index, "text": str(index)} for index in range(4)]}).encode()
    sample = bodies.sample(asked, answer, redact.redact, 1000, cut=False)
    assert (sample.prompts, sample.outputs) == (2, ["0", "1", "2", "3"])
    found = [request_rows._prompt(sample, wire.place(choice, 2, 4)[0]) for choice in (0, 1, 128, 129)]
    assert found == ["to [EMAIL]", "to [EMAIL]", 'say "b"', 'say "b"']
    assert [wire.place(choice, 2, 4)[1] for choice in (0, 1, 128, 129)] == [0, 1, 2, 3]


def test_long_outputs_of_many_choices_fit_a_frame() -> None:
    """However much a client asks for, a sample is never too large to send."""
    asked = asking.said(json.dumps({"prompt": ["p" * 10_000] * 100, "n": 8}).encode())
    answer = json.dumps({"choices": [{"index": index, "text": "o" * 60_000} for index in range(800)]}).encode()
    sample = bodies.sample(asked, answer, lambda text: (text, 0), 10**9, cut=False)
    assert len(sample.outputs) == 800
    assert sample.output_truncated
    assert len(wire._encoder.encode(sample)) < wire.MAX_FRAME_BYTES


@pytest.mark.parametrize("raw", [b"", b"data: {", b"data: []\n\n", b'{"choices": null}', b'{"choices": [7]}'])
def test_any_answer_is_borne(raw: bytes) -> None:
    """What cannot be read is an empty output."""
    assert bodies.sample(asking.said(b"{}"), raw, redact.redact, 100, cut=False).outputs == [""]


@pytest.mark.parametrize("broken_part", ["_note_request", "_note_answer", "_frame"])
def test_an_exception_in_the_middleware_leaves_the_answer_alone(
    monkeypatch: pytest.MonkeyPatch, broken_part: str
) -> None:
    """Whatever fails in here, the client gets its answer."""
    served = Served(monkeypatch)

    def fail(*_: object) -> None:
        raise RuntimeError("injected")

    monkeypatch.setattr(exchange.Exchange, broken_part, fail)
    assert served.post(ask()).json()["choices"][0]["index"] == 0


def test_other_paths_pass_untold(monkeypatch: pytest.MonkeyPatch) -> None:
    """Health checks and metrics are nobody's requests."""
    served = Served(monkeypatch)

    async def go() -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(served.app), base_url="http://vllm") as client:
            return await client.get("/health")

    assert asyncio.run(go()).status_code == 200
    assert served.builds == []


def test_without_the_switch_nothing_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """The middleware of a server without the setting is a plain call."""
    monkeypatch.delenv("MOE_WATCH_ENDPOINT", raising=False)
    assert middleware.Middleware(chat)._tap is None  # type: ignore[arg-type]


PEM = "-----BEGIN RSA PRIVATE KEY-----"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("mail ann.b+c@example.co.uk now", "mail [EMAIL] now"),
        ("call +49 (0)30 123456-78", "call [PHONE]"),
        ("call 555-123-4567", "call [PHONE]"),
        ("card 4111-1111-1111-1111", "card [CARD]"),
        ("iban DE89 3704 0044 0532 0130 00", "iban [IBAN]"),
        ("AKIAIOSFODNN7EXAMPLE and hf_abcdefghijklmnop", "[KEY] and [KEY]"),
        ('api_key = "abcdefghijklmnop123"', "api_key = [KEY]"),
        ("Authorization: Bearer abcdefghijklmnop", "Authorization: Bearer [KEY]"),
        ('OPENAI_API_KEY="abcdefghijklmnop"', "OPENAI_API_KEY=[KEY]"),
        ("export AWS_SECRET_ACCESS_KEY=wJalrXUtnFEMI/K7MDENG+bPx", "export AWS_SECRET_ACCESS_KEY=[KEY]"),
        ('{"password": "hunter2!", "n": 1}', "{password: [KEY], n: 1}"),
        ("my password correcthorse1battery", "my password [KEY]"),
        (f"{PEM}\nProc-Type: 4,ENCRYPTED\n\nMIIB+/==\n{PEM.replace('BEGIN', 'END')} then", "[KEY] then"),
        (f"{PEM}\nProc-Type: 4,ENCRYPTED\n\nMIIB+/==", "[KEY]"),
        ("the secret understanding of a token: 1024 of max_tokens=123456", None),
        ("version 1.2.3, 2026-11-24, order 1234567890123", None),
    ],
)
def test_redaction_finds_what_it_should_and_leaves_the_rest(text: str, expected: str) -> None:
    """Addresses, numbers and keys go; versions, dates and order numbers stay."""
    assert redact.redact(text)[0].replace('"', "") == (text if expected is None else expected)


def test_what_was_json_stays_json() -> None:
    """A secret that is redacted must not make an answer look broken."""
    raw = json.dumps({"api_key": "abcdefghijklmnop", "password": "hunter22", "token_count": 123456})
    assert json.loads(redact.redact(raw)[0]) == {"api_key": "[KEY]", "password": "[KEY]", "token_count": 123456}


def test_numbers_that_no_frame_holds_do_not_switch_the_tap_off(monkeypatch: pytest.MonkeyPatch) -> None:
    """A client may ask for any number of choices and tokens."""
    for body in ({"n": 2**70}, {"n": 2**40}, {"max_tokens": 2**70, "seed": -(2**70)}):
        asked = asking.said(json.dumps({"prompt": "a", **body}).encode())
        sample = bodies.sample(asked, b"{}", redact.redact, 1000, cut=False)
        frame = msgspec.structs.replace(Tap().request("a"), choices=asked.choices, sample=sample)
        assert wire.decode(wire.encode(frame)) == frame


def test_what_a_cut_leaves_of_a_number_does_not_leave() -> None:
    """Redaction that makes a text much shorter must not bring its cut edge into the sample."""
    text = f"{PEM}\n{'a' * 3000}\n{PEM.replace('BEGIN', 'END')}" + " mail ann@example.org" * 1000
    for most in range(4000, 4040):
        asked = asking.said(json.dumps({"prompt": text}).encode())
        assert "ann" not in bodies.sample(asked, b"{}", redact.redact, most, cut=False).prompt


def test_token_ids_do_not_leave() -> None:
    """Nothing can be redacted in them; the sample says that its prompt is cut, so nobody replays it."""
    for prompt, expected in (
        ([5, 6, 7], "[token ids]"),
        ([[5]], "[token ids]"),
        ([[5, 6], [7]], '["[token ids]","[token ids]"]'),
    ):
        asked = asking.said(json.dumps({"prompt": prompt}).encode())
        sample = bodies.sample(asked, b"{}", redact.redact, 1000, cut=False)
        assert (sample.prompt, sample.prompt_truncated) == (expected, True)
