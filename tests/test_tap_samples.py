"""The middleware tells of every request, samples text only when asked to, and never touches the answer."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import httpx
import msgspec
import pytest
from starlette.applications import Starlette
from starlette.responses import Response
from starlette.routing import Route

from moe_watch import rows, wire
from moe_watch.settings import TapSettings
from moe_watch.tap import bodies, exchange, frontend, redact, samples
from moe_watch.tap.sender import Sender
from moe_watch.tap.status import Status
from tests.fake_api import CHAT, chat
from tests.frames import Tap

HEADER: Any = {"replica": "r", "source": "s", "seq": 0, "sent_at": 0.0}


class Served:
    """The app behind the middleware, and the frames that would leave."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, **settings: object) -> None:
        monkeypatch.setenv("MOE_WATCH_ENDPOINT", "ipc:///tmp/nobody-listens")
        self.sender = Sender(TapSettings(**settings), "api", "api-test", Status())  # type: ignore[arg-type]
        self.builds: list[Any] = []
        monkeypatch.setattr(self.sender, "put", lambda build, _size=0: self.builds.append(build))
        monkeypatch.setattr(frontend, "sender", lambda: self.sender)
        routes = [Route(CHAT, chat, methods=["POST"]), Route("/health", lambda _: Response())]
        self.app = samples.Middleware(Starlette(routes=routes))

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
    served = Served(monkeypatch, sample_rate=1.0, redact="tests.test_tap_samples:broken")
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


def test_canaries_are_marked_and_not_sampled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Their text is known anyway."""
    served = Served(monkeypatch, sample_rate=1.0)
    served.post(ask(), **{"X-Moe-Watch-Canary": "1"})
    assert served.frame().canary
    assert served.frame().sample is None


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
    asked = bodies.said(body)
    assert (asked.choices, asked.images) == (1, 0)


@pytest.mark.parametrize(
    ("prompt", "prompts"),
    [("one", 1), ([5, 6, 7], 1), ([], 1), (["one"], 1), (["one", "two"], 2), ([[5, 6], [7], [8]], 3)],
)
def test_each_prompt_of_a_completion_has_n_choices(prompt: object, prompts: int) -> None:
    """A list of token ids is one prompt, a list of texts or of such lists is several."""
    asked = bodies.said(json.dumps({"prompt": prompt, "n": 2}).encode())
    assert (asked.prompts, asked.choices) == (prompts, 2 * prompts)


def test_each_of_several_prompts_keeps_its_own_text() -> None:
    """A sample of several prompts lists them, each redacted, with the outputs prompt by prompt."""
    asked = bodies.said(json.dumps({"prompt": ["to ann@example.org", 'say "b"'], "n": 2}).encode())
    answer = json.dumps({"choices": [{"index": index, "text": str(index)} for index in range(4)]}).encode()
    sample = bodies.sample(asked, answer, redact.redact, 1000, cut=False)
    assert (sample.prompts, sample.outputs) == (2, ["0", "1", "2", "3"])
    found = [rows._prompt(sample, wire.place(choice, 2, 4)[0]) for choice in (0, 1, 128, 129)]
    assert found == ["to [EMAIL]", "to [EMAIL]", 'say "b"', 'say "b"']
    assert [wire.place(choice, 2, 4)[1] for choice in (0, 1, 128, 129)] == [0, 1, 2, 3]


def test_long_outputs_of_many_choices_fit_a_frame() -> None:
    """However much a client asks for, a sample is never too large to send."""
    asked = bodies.said(json.dumps({"prompt": ["p" * 10_000] * 100, "n": 8}).encode())
    answer = json.dumps({"choices": [{"index": index, "text": "o" * 60_000} for index in range(800)]}).encode()
    sample = bodies.sample(asked, answer, lambda text: (text, 0), 10**9, cut=False)
    assert len(sample.outputs) == 800
    assert sample.output_truncated
    assert len(wire._encoder.encode(sample)) < wire.MAX_FRAME_BYTES


@pytest.mark.parametrize("raw", [b"", b"data: {", b"data: []\n\n", b'{"choices": null}', b'{"choices": [7]}'])
def test_any_answer_is_borne(raw: bytes) -> None:
    """What cannot be read is an empty output."""
    assert bodies.sample(bodies.said(b"{}"), raw, redact.redact, 100, cut=False).outputs == [""]


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
    assert samples.Middleware(chat)._sender is None  # type: ignore[arg-type]


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
        asked = bodies.said(json.dumps({"prompt": "a", **body}).encode())
        sample = bodies.sample(asked, b"{}", redact.redact, 1000, cut=False)
        frame = msgspec.structs.replace(Tap().request("a"), choices=asked.choices, sample=sample)
        assert wire.decode(wire.encode(frame)) == frame


def test_what_a_cut_leaves_of_a_number_does_not_leave() -> None:
    """Redaction that makes a text much shorter must not bring its cut edge into the sample."""
    text = f"{PEM}\n{'a' * 3000}\n{PEM.replace('BEGIN', 'END')}" + " mail ann@example.org" * 1000
    for most in range(4000, 4040):
        asked = bodies.said(json.dumps({"prompt": text}).encode())
        assert "ann" not in bodies.sample(asked, b"{}", redact.redact, most, cut=False).prompt


def test_token_ids_do_not_leave() -> None:
    """Nothing can be redacted in them; the sample says that its prompt is cut, so nobody replays it."""
    for prompt, expected in (
        ([5, 6, 7], "[token ids]"),
        ([[5]], "[token ids]"),
        ([[5, 6], [7]], '["[token ids]","[token ids]"]'),
    ):
        asked = bodies.said(json.dumps({"prompt": prompt}).encode())
        sample = bodies.sample(asked, b"{}", redact.redact, 1000, cut=False)
        assert (sample.prompt, sample.prompt_truncated) == (expected, True)
