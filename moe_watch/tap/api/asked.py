"""What the body of a request to the OpenAI API asks for; runs in the sender's thread, on bytes that were kept.

A client chooses the body, and decoding holds the interpreter: what is done with it is bounded by its size and shape
before it is read. Each field is read on its own and as leniently as vLLM reads it, by the same pydantic.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from math import isfinite
from typing import Any, Final

import msgspec
from msgspec import Raw
from pydantic import TypeAdapter

from moe_watch import wire

MOST_SHAPE: Final = 512 * 1024  # bytes that make the shape of a document: reading so many takes some 5 ms at most
_MOST_VALUES: Final = 1 << 14  # objects that are built, or texts of a list
_MOST_STRANGE: Final = 64 * 1024  # bytes of a body that only Python's own decoder takes: NaN, UTF-16
_MOST_CHOICES: Final = 2**31 - 1  # what a frame holds
_PLAIN: Final = bytes({*b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz+/=", *range(0x80, 0x100)})
_PIECE: Final = 256 * 1024


class Part(msgspec.Struct, gc=False):
    """One part of a message's content."""

    type: str = ""
    text: str | None = None


class Message(msgspec.Struct, gc=False):
    """One message; ``content`` is None also where it cannot be read."""

    role: str = ""
    content: str | list[Part | str] | None = None


class _Body(msgspec.Struct, gc=False):
    """The few fields that are read, not decoded yet; everything else is passed over without being built."""

    model: Raw = Raw()
    stream: Raw = Raw()
    n: Raw = Raw()
    user: Raw = Raw()
    messages: Raw = Raw()
    prompt: Raw = Raw()
    temperature: Raw = Raw()
    top_p: Raw = Raw()
    top_k: Raw = Raw()
    max_tokens: Raw = Raw()
    max_completion_tokens: Raw = Raw()
    seed: Raw = Raw()
    response_format: Raw = Raw()


class _Format(msgspec.Struct, gc=False):
    type: str = ""


_body = msgspec.json.Decoder(_Body)
_text = msgspec.json.Decoder(str | None)
_number = msgspec.json.Decoder(int | float | str | bool | None)
_format = msgspec.json.Decoder(_Format | None)
_message = msgspec.json.Decoder(Message)
_messages = msgspec.json.Decoder(list[Message] | None)
_texts = msgspec.json.Decoder(list[str])
_raws = msgspec.json.Decoder(list[Raw])
_whole: Final[TypeAdapter[int | None]] = TypeAdapter(int | None)
_real: Final[TypeAdapter[float | None]] = TypeAdapter(float | None)
_truth: Final[TypeAdapter[bool | None]] = TypeAdapter(bool | None)
_PARAMS: Final[dict[str, TypeAdapter[Any]]] = {
    "temperature": _real,
    "top_p": _real,
    "top_k": _whole,
    "max_tokens": _whole,
    "seed": _whole,
}
UNREADABLE: Final = (msgspec.DecodeError, UnicodeError, RecursionError, OverflowError, ValueError)


@dataclass
class Said:
    """What the client asked for."""

    model: str = ""
    stream: bool = False
    choices: int = 1  # in all, of all prompts
    images: int = 0
    user: str = ""  # hash
    params: dict[str, Any] = field(default_factory=dict)
    messages: list[Message] = field(default_factory=list)
    texts: list[str | None] = field(default_factory=lambda: [None])  # the prompts of a completion; None: token ids
    unread: bool = False  # too large or of a shape too rich to be read whole

    @property
    def prompts(self) -> int:
        """Return the number of prompts."""
        return len(self.texts)


def said(raw: bytes, *, chat: bool = False) -> Said:
    """Return what ``raw`` asks for; of a body that is none of the API's, that it asks for nothing."""
    if is_rich(raw):
        return Said(unread=True)
    body = _fields(raw)
    found = Said(
        model=(_read(_text, body.model) or "")[:255],
        stream=bool(_lax(_truth, body.stream)),
        user=wire.user_hash(_read(_text, body.user) or ""),
        params=_params(body),
    )
    if chat:
        _read_messages(found, bytes(body.messages))
    else:
        _read_prompts(found, bytes(body.prompt).lstrip())
    n = _lax(_whole, body.n)
    found.choices = min(max(n or 1, 1) * found.prompts, _MOST_CHOICES)
    return found


def is_rich(raw: bytes) -> bool:
    """Say whether so much of ``raw`` is punctuation that reading it would take long; long plain texts are cheap."""
    shape = 0
    for start in range(0, len(raw) if len(raw) > MOST_SHAPE else 0, _PIECE):
        shape += len(raw[start : start + _PIECE].translate(None, _PLAIN))
    return shape > MOST_SHAPE


def is_image(part: Part | str) -> bool:
    """Say whether a part of a message is a picture."""
    return isinstance(part, Part) and "image" in part.type


def _fields(raw: bytes) -> _Body:
    try:
        return _body.decode(raw)
    except UNREADABLE:
        return _strange(raw) if len(raw) <= _MOST_STRANGE else _Body()


def _strange(raw: bytes) -> _Body:
    """Read what Python's own decoder takes and msgspec refuses, as vLLM does."""
    try:
        document = json.loads(raw)
    except UNREADABLE:
        return _Body()
    body = _Body()
    for name in _Body.__struct_fields__ if isinstance(document, dict) else ():
        try:
            setattr(body, name, Raw(msgspec.json.encode(document[name])) if name in document else Raw())
        except UNREADABLE:
            continue
    return body


def _read(decoder: msgspec.json.Decoder[Any], raw: Raw) -> Any:
    """Return a field's value, None where there is none or it is of another kind."""
    try:
        return decoder.decode(raw) if raw else None
    except UNREADABLE:
        return None


def _lax(adapter: TypeAdapter[Any], raw: Raw) -> Any:
    """Return a number as pydantic takes it: 2.0 and "2" are 2."""
    try:
        return adapter.validate_python(_read(_number, raw))
    except ValueError:
        return None


def _params(body: _Body) -> dict[str, Any]:
    """Return the sampling parameters that were given, each a value that a frame can hold."""
    given = {name: _lax(adapter, getattr(body, name)) for name, adapter in _PARAMS.items()}
    given["n"] = _lax(_whole, body.n)
    most = _lax(_whole, body.max_completion_tokens)
    given["max_tokens"] = given["max_tokens"] if most is None else most
    bounded = {name: _bounded(value) for name, value in given.items() if value is not None}
    params = {name: value for name, value in bounded.items() if isfinite(value)}
    wanted = _read(_format, body.response_format)
    if wanted is not None:
        params["response_format"] = wanted.type[:64]
    return params


def _bounded(value: Any) -> Any:
    """Return a number that a frame can hold: a client may ask for any."""
    return max(min(value, 2**63 - 1), -(2**63)) if isinstance(value, int) else value


def _read_messages(found: Said, raw: bytes) -> None:
    """Put the messages into ``found``; those that cannot be read are empty ones, and what is too rich is left out."""
    if raw.count(b"{") > _MOST_VALUES:
        found.unread = True
        return
    try:
        found.messages = (_messages.decode(raw) if raw else None) or []
    except UNREADABLE:
        found.unread, found.messages = True, _one_by_one(raw)
    parts = (part for message in found.messages if isinstance(message.content, list) for part in message.content)
    found.images = sum(map(is_image, parts))


def _one_by_one(raw: bytes) -> list[Message]:
    if raw.count(b",") > _MOST_VALUES:
        return []
    return [_read(_message, one) or Message() for one in _read(_raws, Raw(raw)) or ()]


def _read_prompts(found: Said, raw: bytes) -> None:
    """Put the prompts of a completion into ``found``: texts, or lists of token ids, in a list; else it is one."""
    if not raw.startswith(b"["):
        found.texts = [_read(_text, Raw(raw))]
    elif b'"' not in raw:  # token ids, of which nothing but the number of their lists is of use
        found.texts = [None] * max(raw.count(b"[") - 1, 1)
    elif raw.count(b",") > _MOST_VALUES:
        found.unread = True
    else:
        texts = _read(_texts, Raw(raw))
        found.unread, found.texts = texts is None, texts or [None]
