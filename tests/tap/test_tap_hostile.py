"""Whatever a client sends, the tap reads it as vLLM does where it reads it, and has a bound on what it does with it."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("vllm")

from pydantic import ValidationError
from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
from vllm.entrypoints.openai.completion.protocol import CompletionRequest
from vllm.exceptions import VLLMValidationError

from moe_watch import wire
from moe_watch.tap.api import asked, bodies, redact

MIB = 1024 * 1024
numbers = st.one_of(
    st.integers(-3, 9),
    st.sampled_from([2.0, 2.5, 0.7, 1e3, True, False, None, "2", " 3 ", "2.0", "0.7", "1_0", "many", "", [], {}, [2]]),
)
words = st.one_of(st.text(max_size=6), st.sampled_from([None, 7, True, ["a"], {}, "tiny", "ann\x00"]))
truths = st.sampled_from([True, False, None, 0, 1, 1.0, "true", "no", "on", "2", 2, []])
messages = st.lists(
    st.fixed_dictionaries({"role": st.sampled_from(["user", "system"]), "content": st.text(max_size=4)}), min_size=1
)
prompts = st.one_of(
    st.text(max_size=5),
    st.lists(st.text(max_size=5), max_size=4),
    st.lists(st.integers(0, 9), max_size=4),
    st.lists(st.lists(st.integers(0, 9), min_size=1, max_size=3), min_size=1, max_size=4),
)
fields = {"model": words, "user": words, "n": numbers, "stream": truths, "temperature": numbers, "max_tokens": numbers,
          "seed": numbers, "top_p": numbers, "unknown": st.sampled_from([None, float("nan"), [[]], 2**80])}  # fmt: skip


def taken(model: type[Any], body: dict[str, Any]) -> Any:
    """Return how vLLM reads ``body``, None where it refuses it."""
    try:
        return model.model_validate(json.loads(json.dumps(body)))
    except (ValidationError, VLLMValidationError):
        return None


def check(theirs: Any, ours: asked.Said) -> None:
    """Compare what the frames say."""
    assert ours.model == (theirs.model or "")
    assert ours.user == wire.user_hash(theirs.user or "")
    assert ours.stream == bool(theirs.stream)
    for name in ("temperature", "max_tokens", "seed", "top_p"):
        assert ours.params.get(name) == getattr(theirs, name) or (name, getattr(theirs, name)) == ("max_tokens", 16)


@settings(max_examples=150, deadline=None)
@given(st.fixed_dictionaries({"messages": messages}, optional=fields))
def test_a_chat_that_vllm_takes_is_read_as_vllm_reads_it(body: dict[str, Any]) -> None:
    """By vLLM's own request model: numbers in words, whole floats, NaN in a field that nobody knows."""
    theirs, ours = taken(ChatCompletionRequest, body), asked.said(json.dumps(body).encode(), chat=True)
    if theirs is not None:
        check(theirs, ours)
        assert ours.choices == max(theirs.n or 1, 1)
        assert [message.content for message in ours.messages] == [one["content"] for one in theirs.messages]


@settings(max_examples=150, deadline=None)
@given(st.fixed_dictionaries({"prompt": prompts}, optional=fields))
def test_a_completion_that_vllm_takes_is_read_as_vllm_reads_it(body: dict[str, Any]) -> None:
    """The number of prompts, too: each has n choices."""
    theirs, ours = taken(CompletionRequest, body), asked.said(json.dumps(body).encode())
    if theirs is not None:
        check(theirs, ours)
        several = isinstance(theirs.prompt, list) and theirs.prompt and isinstance(theirs.prompt[0], (str, list))
        assert ours.choices == max(theirs.n, 1) * (len(theirs.prompt) if several else 1)


@pytest.mark.parametrize("field", ["n", "temperature", "stream", "messages", "response_format", "max_tokens", "seed"])
@pytest.mark.parametrize("value", ["[[]]", '{"a": 1}', '"\\ud800"', "1e999", '"x"', str(10**400), f'"-{10**400}"'])
def test_a_field_that_cannot_be_read_costs_itself_alone(field: str, value: str) -> None:
    """The person stays known, so that they can be forgotten, and so does the model."""
    raw = f'{{"user": "ann", "{field}": {value}, "model": "m"}}'.encode()
    for chat in (False, True):
        read = asked.said(raw, chat=chat)
        assert (read.user, read.model) == (wire.user_hash("ann"), "m")


def test_one_message_that_cannot_be_read_costs_itself_alone() -> None:
    """Its place stays, and the frame says that not all was read."""
    body = {"user": "ann", "messages": [{"role": "user", "content": "a"}, {"content": 7}, 8, {"content": ["b"]}]}
    read = asked.said(json.dumps(body).encode(), chat=True)
    assert [message.content for message in read.messages] == ["a", None, None, ["b"]]
    assert (read.unread, read.user) == (True, wire.user_hash("ann"))


def test_a_role_of_the_clients_own_does_not_leave() -> None:
    """It is text like any other, and too short to be redacted."""
    body = {"messages": [{"role": "ann@example.org", "content": "a"}, {"role": "user", "content": "b"}]}
    sample = bodies.sample(asked.said(json.dumps(body).encode(), chat=True), b"{}", redact.redact, 1000, cut=False)
    assert [message["role"] for message in json.loads(sample.prompt)] == ["other", "user"]


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32"])
def test_a_body_in_another_encoding_is_read_as_vllm_reads_it(encoding: str) -> None:
    """Python's decoder guesses it."""
    read = asked.said(json.dumps({"user": "ann", "n": 2}).encode(encoding))
    assert (read.user, read.choices) == (wire.user_hash("ann"), 2)


HOSTILE = {
    "empty lists": b'{"prompt": [' + b"[]," * MIB + b"[]]}",
    "empty objects": b'{"messages": [' + b"{}," * MIB + b"{}]}",
    "numbers": b'{"prompt": [' + b"1," * (2 * MIB) + b"1]}",
    "keys": b"{" + b",".join(b'"%d":1' % number for number in range(400_000)) + b"}",
    "one key": b"{" + b'"user":"a",' * 300_000 + b'"n":1}',
    "escapes": b'{"prompt": "' + rb"\"" * (2 * MIB) + b'"}',
    "depth": b'{"prompt": ' + b"[" * MIB + b"]" * MIB + b"}",
    "blanks": b'{"prompt": ' + b" " * (3 * MIB) + b"1}",
}


class Counting:
    """A decoder that counts the bytes that it is given."""

    def __init__(self, real: Any, most: int) -> None:
        self.real, self.most = real, most

    def decode(self, raw: Any) -> Any:
        """Decode what is small enough."""
        assert len(bytes(raw)) <= self.most
        return self.real.decode(raw)


@pytest.mark.parametrize("kind", HOSTILE)
@pytest.mark.parametrize("chat", [False, True])
def test_a_rich_body_is_not_read_and_says_so(kind: str, monkeypatch: pytest.MonkeyPatch, *, chat: bool) -> None:
    """4 MB of punctuation are weighed, and no decoder sees them."""
    for name in ("_body", "_messages", "_texts", "_raws"):
        monkeypatch.setattr(asked, name, Counting(getattr(asked, name), 0))
    monkeypatch.setattr(json, "loads", None)
    assert asked.said(HOSTILE[kind], chat=chat) == asked.Said(unread=True)


@pytest.mark.parametrize(
    ("chat", "body"),
    [(True, b'{"user": "ann", "messages": [' + b"{}," * 50_000 + b"{}]}"),
     (True, b'{"user": "ann", "messages": [' + b"7," * 50_000 + b"7]}"),
     (False, b'{"user": "ann", "prompt": [' + b'"",' * 50_000 + b'""]}')],
)  # fmt: skip
def test_what_would_become_too_many_values_is_left_out(body: bytes, *, chat: bool) -> None:
    """The frame says so, and the rest is known."""
    read = asked.said(body, chat=chat)
    assert (read.unread, read.user) == (True, wire.user_hash("ann"))
    assert (read.messages, read.texts) == ([], [None])


def test_a_large_picture_hides_nobody() -> None:
    """Plain text is cheap to pass over, however long."""
    url = {"url": "data:image/png;base64," + "iVBOR/w0+KGgo" * 290_000}
    parts = [{"type": "image_url", "image_url": url}, {"type": "text", "text": "what is this?"}]
    raw = json.dumps({"messages": [{"role": "user", "content": parts}], "user": "ann", "n": 3}).encode()
    assert len(raw) > 3 * MIB
    read = asked.said(raw, chat=True)
    assert (read.user, read.images, read.choices, read.unread) == (wire.user_hash("ann"), 1, 3, False)


class Ledger:
    """A redaction that writes down how much it was given."""

    def __init__(self) -> None:
        self.given: list[int] = []

    def __call__(self, text: str) -> tuple[str, int]:
        self.given.append(len(text))
        return text, 0


@pytest.mark.parametrize("chat", [False, True])
@pytest.mark.parametrize("texts", [60, 10_000])
def test_redaction_has_one_budget_for_all_texts_of_a_request(texts: int, *, chat: bool) -> None:
    """60 texts of 66 kB cost what one costs, and ten thousand short ones no more."""
    long = "a" * (4_000_000 // texts)
    said = [{"role": "user", "content": long}] * texts
    read = asked.said(json.dumps({"messages": said, "prompt": [long] * texts, "n": 2}).encode(), chat=chat)
    answer = json.dumps({"choices": [{"index": number, "text": long} for number in range(60)]}).encode()
    ledger = Ledger()
    sample = bodies.sample(read, answer, ledger, 65_536, cut=False)
    slack = bodies._SLACK * 2
    assert sum(ledger.given) <= 2 * 65_536 + slack
    assert len(ledger.given) <= 2 * 65_536 / bodies._EACH
    assert (sample.prompt_truncated, sample.output_truncated) == (True, texts == 60)


def test_redaction_stops_when_its_time_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is left is cut, and the sample says so."""
    clock = 0.0

    def slow(text: str) -> tuple[str, int]:
        nonlocal clock
        clock += 0.4 * bodies._MOST_S
        return text, 0

    monkeypatch.setattr(bodies.time, "thread_time", lambda: clock)
    read = asked.said(json.dumps({"prompt": ["a"] * 7}).encode())
    sample = bodies.sample(read, b"{}", slow, 1000, cut=False)
    assert json.loads(sample.prompt) == ["a"] * 3 + [""] * 4
    assert sample.prompt_truncated


class Searched:
    """A pattern that notes how many characters one search may look at."""

    def __init__(self, real: re.Pattern[str], note: list[int]) -> None:
        self.real, self.note = real, note

    def search(self, text: str, start: int, end: int) -> re.Match[str] | None:
        """Search, and note it."""
        self.note.append(min(end, len(text)) - start)
        return self.real.search(text, start, end)


def test_no_search_is_long_and_others_have_their_turn_between_two(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each sees a window and what a match may need beyond it; behind each window without a match is a breath."""
    note, breaths = list[int](), list[int]()
    kinds = [
        redact._Kind(Searched(kind.pattern, note), kind.instead, kind.longest, checked=kind.checked)  # type: ignore[arg-type]
        for kind in redact._KINDS
    ]
    monkeypatch.setattr(redact, "_KINDS", kinds)
    monkeypatch.setattr(redact, "breathe", lambda: breaths.append(len(note)))
    redact.redact("token_" * 10_000)
    assert max(note) <= redact._WINDOW + max(kind.longest for kind in kinds)
    assert len(breaths) >= len(kinds) * 60_000 // redact._WINDOW
    assert max(after - before for before, after in zip([0, *breaths], breaths, strict=False)) <= 2


SECRETS = ["ann@example.org", "sk-abcdefghijklmnop", "+49 30 1234567", "4111 1111 1111 1111", "password: hunter2x",
           "eyJhbGciOiJI.eyJzdWIiOiIx.SflKxwRJSMeK", "DE89 3704 0044 0532 0130 00", "Bearer abcdefghijklmnop",
           "-----BEGIN PRIVATE KEY-----\nMIIB\n-----END PRIVATE KEY-----"]  # fmt: skip


@settings(max_examples=100, deadline=None)
@given(st.lists(st.one_of(st.sampled_from(SECRETS), st.text("a1 .-_@:=\n", max_size=9)), max_size=12))
def test_windows_find_what_one_search_finds(parts: list[str]) -> None:
    """Wherever their edges fall."""
    text, found = " ".join(parts), []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(redact, "breathe", lambda: None)
        for window in (3, 7, 1 << 20):
            patch.setattr(redact, "_WINDOW", window)
            found.append(redact.redact(text))
    assert found[0] == found[1] == found[2]


def test_what_a_cut_leaves_of_a_long_key_does_not_leave() -> None:
    """A web token may be longer than what is redacted beyond the limit: its beginning is known as one, too."""
    token = f"eyJ{'a' * 2000}.{'b' * 4000}.{'c' * 2000}"
    for before in range(0, 4000, 450):
        text = "x " * (before // 2) + token + " mail" * 3000
        read = asked.said(json.dumps({"prompt": text}).encode())
        sample = bodies.sample(read, b"{}", redact.redact, 4000, cut=False)
        assert not re.search("a{8}|b{8}|c{8}", sample.prompt)


def test_a_rich_answer_is_left_out_and_says_so() -> None:
    """A client can ask for log-probabilities by the megabyte."""
    answer = b'{"choices": [{"index": 0, "text": "a", "logprobs": [' + b"[]," * MIB + b"1]}]}"
    sample = bodies.sample(asked.Said(), answer, redact.redact, 1000, cut=False)
    assert (sample.outputs, sample.output_truncated) == ([""], True)
