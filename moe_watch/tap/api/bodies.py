"""The sample of one exchange: the redacted texts of request and answer; runs in the sender's thread.

A client chooses what there is to redact, so each request has one budget of bytes and of time: what is beyond it is cut
before anything looks for secrets in it.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

import msgspec

from moe_watch import wire
from moe_watch.tap.api.asked import UNREADABLE, Message, Part, Said, is_image, is_rich
from moe_watch.tap.api.redact import breathe

Redact = Callable[[str], tuple[str, int]]

_MOST: Final = wire.MAX_FRAME_BYTES // 4  # of a prompt, and of all outputs together: what a frame has room for
_MOST_S: Final = 0.5  # of the processor, for one request
_ROLES: Final = frozenset({"system", "developer", "user", "assistant", "tool", "function"})  # others are text
_MOST_OUTPUTS: Final = 1024
_SLACK: Final = 1024  # redacted beyond the limit too, so that nothing is cut in two before it is recognised
_EACH: Final = 24  # bytes that a text costs besides its own
_OFTEN: Final = 2048  # bytes between two breaths
_PIECES_A_BREATH: Final = 128


class _Function(msgspec.Struct, gc=False):
    arguments: str | None = None


class _Call(msgspec.Struct, gc=False):
    function: _Function | None = None


class _Told(msgspec.Struct, gc=False):
    content: str | None = None
    tool_calls: list[_Call] | None = None


class _Choice(msgspec.Struct, gc=False):
    index: int = 0
    text: str | None = None
    delta: _Told | None = None
    message: _Told | None = None


class _Answer(msgspec.Struct, gc=False):
    """The few fields of an answer, or of a piece of a stream, that are read."""

    choices: list[_Choice] | None = None


_answer = msgspec.json.Decoder(_Answer)


def sample(asked: Said, response: bytes, redact: Redact, most: int, *, cut: bool) -> wire.Sample:
    """Return the redacted texts of one exchange, prompt and outputs of ``most`` bytes each.

    ``cut``: the response was not kept whole. Raises whatever ``redact`` raises: then no text may leave.
    """
    most = min(most, _MOST)
    clean = _Clean(redact, most)
    prompt = _prompt(asked, clean)
    prompt_cut = clean.cut or asked.unread or len(prompt.encode()) > most
    clean.renew()
    texts, whole = _outputs(response, asked.choices)
    outputs = [clean(text) for text in texts]
    return wire.Sample(
        prompt=_shorten(prompt, most),
        outputs=outputs,
        prompts=1 if prompt_cut else asked.prompts,
        params=asked.params,
        prompt_truncated=prompt_cut,
        output_truncated=clean.cut or cut or not whole,
        redactions=clean.found,
    )


class _Clean:
    """Redacts text after text within the budget, and remembers whether it had to cut and how much it found."""

    def __init__(self, redact: Redact, most: int) -> None:
        self._redact, self._most = redact, most
        self._until = time.thread_time() + _MOST_S
        self._since = 0  # bytes since the last breath
        self.found = 0
        self.renew()

    def renew(self) -> None:
        """Begin with the outputs, which have as many bytes as the prompt; the time goes on."""
        self._left, self.cut = self._most, False

    @property
    def is_spent(self) -> bool:
        """Say whether nothing more can be redacted."""
        return self._left <= 0 or time.thread_time() > self._until

    def __call__(self, text: str) -> str:
        if self.is_spent:
            self.cut = self.cut or bool(text)
            return ""
        given = text[: self._left + _SLACK]
        redacted, found = self._redact(given)
        if len(text) > len(given):  # what the cut left of a number or a key cannot be recognised
            redacted = redacted[:-_SLACK]
        short = _shorten(redacted, self._left)
        self.found += found
        self.cut = self.cut or len(text) > len(given) or len(short) < len(redacted)
        self._spend(len(short.encode()) + _EACH, len(given) + _EACH)
        return short

    def _spend(self, kept: int, read: int) -> None:
        self._left -= max(kept, read)
        self._since += read
        if self._since >= _OFTEN:
            self._since = 0
            breathe()


def _shorten(text: str, most: int) -> str:
    """Return as much of ``text`` as fits ``most`` bytes of UTF-8."""
    raw = text.encode("utf-8", "replace")
    return raw.decode() if len(raw) <= most else raw[:most].decode("utf-8", "ignore")


def _prompt(asked: Said, clean: _Clean) -> str:
    """Return the messages as JSON, images left out, or the prompt of a completion as it is.

    Token ids are left out, since nothing can be redacted in them, and the prompt counts as cut.
    """
    if not asked.messages:
        texts = ["[token ids]" if text is None else clean(text) for text in asked.texts[:_MOST_OUTPUTS]]
        clean.cut = clean.cut or None in asked.texts or len(asked.texts) > _MOST_OUTPUTS
        return msgspec.json.encode(texts).decode() if len(asked.texts) > 1 else texts[0]
    told: list[dict[str, str]] = []
    for message in asked.messages:
        if clean.is_spent:
            clean.cut = True
            break
        told.append({"role": message.role if message.role in _ROLES else "other", "content": clean(_content(message))})
    return msgspec.json.encode(told).decode()


def _content(message: Message) -> str:
    content = message.content
    return content or "" if not isinstance(content, list) else "".join(map(_text, content))


def _text(part: Part | str) -> str:
    if isinstance(part, str):
        return part
    return "[image]" if is_image(part) else part.text or ""


def _outputs(raw: bytes, choices: int) -> tuple[list[str], bool]:
    """Return the text of each choice of a whole answer or of a stream, and whether all of it could be read."""
    found: dict[int, list[str]] = {}
    pieces = _pieces(raw)
    for number, piece in enumerate(pieces):
        for choice in _choices(piece):
            found.setdefault(choice.index, []).append(_said(choice))
        if number % _PIECES_A_BREATH == _PIECES_A_BREATH - 1:
            breathe()
    most = min(max([choices, *(index + 1 for index in found)]), _MOST_OUTPUTS)
    return ["".join(found.get(index, [])) for index in range(most)], not any(map(is_rich, pieces))


def _pieces(raw: bytes) -> list[bytes]:
    """Return the documents of an answer: one, or those of its server-sent events."""
    if raw[:64].lstrip().startswith(b"{"):
        return [raw]
    return [line[5:] for line in raw.split(b"\n") if line.startswith(b"data:")]


def _choices(piece: bytes) -> list[_Choice]:
    """Return the choices in one document; none in [DONE], in the end of what was kept, and in one that is too rich."""
    if is_rich(piece):
        return []
    try:
        return _answer.decode(piece).choices or []
    except UNREADABLE:
        return []


def _said(choice: _Choice) -> str:
    """Return the text of a choice or of a piece of one: its content, then the arguments of its tool calls."""
    if choice.text is not None:
        return choice.text
    told = choice.delta or choice.message or _Told()
    calls = [call.function.arguments or "" for call in told.tool_calls or () if call.function is not None]
    return "".join([told.content or "", *calls])
