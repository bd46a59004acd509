"""What request and response bodies of the OpenAI API say; runs in the sender's thread, on bytes that were kept."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import msgspec

from moe_watch import wire

Redact = Callable[[str], tuple[str, int]]

_PARAMS: Final = ("temperature", "top_p", "top_k", "max_tokens", "seed", "n")
_MOST: Final = wire.MAX_FRAME_BYTES // 4  # of a prompt, and of all outputs together: what a frame has room for
_MOST_OUTPUTS: Final = 1024
_SLACK: Final = 1024  # redacted beyond the limit too, so that nothing is cut in two before it is recognised
_MOST_CHOICES: Final = 2**31 - 1  # what a frame holds


class _Message(msgspec.Struct):
    role: str = ""
    content: str | list[Any] | None = None


class _Body(msgspec.Struct):
    """The few fields that are read; everything else is passed over without being built."""

    model: str | None = None
    stream: bool | None = None
    n: int | None = None
    user: str | None = None
    messages: list[_Message] = []
    prompt: Any = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    seed: int | None = None
    response_format: dict[str, Any] | None = None


_body = msgspec.json.Decoder(_Body)
_any = msgspec.json.Decoder()


@dataclass(frozen=True)
class Said:
    """What the client asked for."""

    model: str
    stream: bool
    prompts: int
    choices: int  # in all, of all prompts
    images: int
    user: str
    body: _Body


def said(raw: bytes) -> Said:
    """Return what ``raw`` asks for; of a body that is none of the API's, that it asks for nothing."""
    try:
        body = _body.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        body = _Body()
    prompts = len(_prompts(body))
    images = sum(_is_image(part) for message in body.messages for part in _parts(message))
    return Said(
        model=(body.model or "")[:255],
        stream=bool(body.stream),
        prompts=prompts,
        choices=min(max(body.n or 1, 1) * prompts, _MOST_CHOICES),
        images=images,
        user=wire.user_hash(body.user or ""),
        body=body,
    )


def _prompts(body: _Body) -> list[Any]:
    """Return the prompts of a completion: texts, or lists of token ids, in a list; else it has one, as a chat has."""
    prompt = body.prompt
    listed = isinstance(prompt, list) and prompt and all(isinstance(one, (str, list)) for one in prompt)
    return list(prompt) if listed and not body.messages else [prompt]


def sample(asked: Said, response: bytes, redact: Redact, most: int, *, cut: bool) -> wire.Sample:
    """Return the redacted texts of one exchange, each at most ``most`` bytes; ``cut``: the response was not kept whole.

    Raises whatever ``redact`` raises: then no text may leave.
    """
    most = min(most, _MOST)
    clean = _Clean(redact, most)
    prompt = _prompt(asked.body, clean)
    prompt_cut, clean.cut = clean.cut or len(prompt.encode()) > most, False
    outputs, left = [], _MOST
    for text in _outputs(response, asked.choices):
        outputs.append(clean(text, left))
        left -= len(outputs[-1].encode())
    body = asked.body
    params = {name: _bounded(getattr(body, name)) for name in _PARAMS if getattr(body, name) is not None}
    if body.max_completion_tokens is not None:
        params["max_tokens"] = _bounded(body.max_completion_tokens)
    if body.response_format is not None:
        params["response_format"] = str(body.response_format.get("type", ""))[:64]
    return wire.Sample(
        prompt=_shorten(prompt, most),
        outputs=outputs,
        prompts=1 if prompt_cut else asked.prompts,
        params=params,
        prompt_truncated=prompt_cut,
        output_truncated=clean.cut or cut,
        redactions=clean.found,
    )


class _Clean:
    """Redacts and shortens text after text, and remembers whether and how often it did."""

    def __init__(self, redact: Redact, most: int) -> None:
        self._redact, self._most = redact, most
        self.found = 0
        self.cut = False

    def __call__(self, text: str, left: int = _MOST) -> str:
        redacted, found = self._redact(text[: self._most + _SLACK])
        if len(text) > self._most + _SLACK:  # what the cut left of a number or a key cannot be recognised
            redacted = redacted[:-_SLACK]
        self.found += found
        short = _shorten(redacted, min(self._most, left))
        self.cut = self.cut or len(text) > self._most + _SLACK or len(short) < len(redacted)
        return short


def _bounded(value: Any) -> Any:
    """Return a number that a frame can hold: a client may ask for any."""
    return max(min(value, 2**63 - 1), -(2**63)) if isinstance(value, int) else value


def _shorten(text: str, most: int) -> str:
    """Return as much of ``text`` as fits ``most`` bytes of UTF-8."""
    raw = text.encode("utf-8", "replace")
    return raw.decode() if len(raw) <= most else raw[:most].decode("utf-8", "ignore")


def _prompt(body: _Body, clean: _Clean) -> str:
    """Return the messages as JSON, images left out, or the prompt of a completion as it is.

    Token ids are left out, since nothing can be redacted in them, and the prompt counts as cut.
    """
    if not body.messages:
        prompts = _prompts(body)
        clean.cut = not all(isinstance(one, str) for one in prompts)
        texts = [clean(one) if isinstance(one, str) else "[token ids]" for one in prompts]
        return msgspec.json.encode(texts).decode() if len(texts) > 1 else texts[0]
    told: list[dict[str, str]] = []
    for message in body.messages:
        text = message.content if isinstance(message.content, str) else "".join(map(_text, _parts(message)))
        told.append({"role": message.role[:32], "content": clean(text)})
    return msgspec.json.encode(told).decode()


def _parts(message: _Message) -> list[dict[str, Any]]:
    content = message.content if isinstance(message.content, list) else []
    return [part for part in content if isinstance(part, dict)]


def _is_image(part: dict[str, Any]) -> bool:
    return "image" in str(part.get("type", ""))


def _text(part: dict[str, Any]) -> str:
    return "[image]" if _is_image(part) else str(part.get("text") or "")


def _outputs(raw: bytes, choices: int) -> list[str]:
    """Return the text of each choice of a whole answer or of a stream of server-sent events."""
    found: dict[int, list[str]] = {}
    for document in _documents(raw):
        for choice in document.get("choices") or []:
            if isinstance(choice, dict) and isinstance(choice.get("index"), int):
                found.setdefault(choice["index"], []).append(_said(choice))
    return [
        "".join(found.get(index, []))
        for index in range(min(max([choices, *(index + 1 for index in found)]), _MOST_OUTPUTS))
    ]


def _documents(raw: bytes) -> list[dict[str, Any]]:
    pieces = [raw]
    if not raw.lstrip().startswith(b"{"):
        pieces = [line[5:] for line in raw.split(b"\n") if line.startswith(b"data:")]
    documents = []
    for piece in pieces:
        try:
            document = _any.decode(piece)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            continue  # [DONE], or the end of what was kept
        if isinstance(document, dict):
            documents.append(document)
    return documents


def _said(choice: dict[str, Any]) -> str:
    """Return the text of a choice or of a piece of one: its content, then the arguments of its tool calls."""
    if isinstance(choice.get("text"), str):
        return str(choice["text"])
    message = choice.get("delta") or choice.get("message") or {}
    calls = [call.get("function") or {} for call in message.get("tool_calls") or [] if isinstance(call, dict)]
    return "".join([message.get("content") or "", *(str(call.get("arguments") or "") for call in calls)])
