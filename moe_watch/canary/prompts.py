"""The canary set: which prompts, how they are sent, and the version that follows from both."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, Literal

Endpoint = Literal["chat", "completions"]
FEWEST_PROMPTS = 20
MOST_PROMPTS = 1000


class BadCanarySet(ValueError):  # noqa: N818 - the message reads as a sentence
    """The file is no canary set; the message has the line and what is wrong with it."""


@dataclass(frozen=True)
class Prompt:
    """One canary: ``messages`` in the chat format; a plain text is a single message of the user."""

    id: str
    messages: tuple[dict[str, Any], ...]

    @property
    def text(self) -> str:
        """The last message's text, for servers without a chat template."""
        content = self.messages[-1].get("content", "")
        return content if isinstance(content, str) else json.dumps(content, ensure_ascii=False)


@dataclass(frozen=True)
class CanarySet:
    """Prompts and how each is sent; two sets of the same version make comparable replays."""

    prompts: tuple[Prompt, ...]
    endpoint: Endpoint = "chat"
    max_tokens: int = 8

    @property
    def version(self) -> str:
        """A digest of everything that decides what the server is asked, 16 hex digits."""
        asked = [self.endpoint, self.max_tokens, [[p.id, p.messages] for p in self.prompts]]
        return hashlib.sha256(json.dumps(asked, sort_keys=True, ensure_ascii=False).encode()).hexdigest()[:16]


def load(path: Path | None = None, endpoint: Endpoint = "chat", max_tokens: int = 8) -> CanarySet:
    """Return the set in ``path`` (JSON lines with "prompt" or "messages", and perhaps "id"), or the one that ships.

    Raises ``BadCanarySet`` when it has too few or too many prompts, a broken line or the same id twice.
    """
    if path is None:
        text = resources.files("moe_watch.canary").joinpath("prompts.jsonl").read_text(encoding="utf-8")
        return CanarySet(_parse(text.split("\n"), "prompts.jsonl"), endpoint, max_tokens)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise BadCanarySet(f"{path} cannot be read: {error}") from error
    return CanarySet(_parse(text.split("\n"), str(path)), endpoint, max_tokens)


def _parse(lines: Iterable[str], name: str) -> tuple[Prompt, ...]:
    prompts = [_prompt(line, f"{name}, line {number}") for number, line in enumerate(lines, 1) if line.strip()]
    if not FEWEST_PROMPTS <= len(prompts) <= MOST_PROMPTS:
        raise BadCanarySet(f"{name} has {len(prompts)} prompts; {FEWEST_PROMPTS} to {MOST_PROMPTS} make a canary set")
    seen: set[str] = set()
    for prompt in prompts:
        if prompt.id in seen:
            raise BadCanarySet(f"{name} has the id or the prompt {prompt.id!r} twice")
        seen.add(prompt.id)
    return tuple(prompts)


def _prompt(line: str, where: str) -> Prompt:
    try:
        entry = json.loads(line)
    except json.JSONDecodeError as error:
        raise BadCanarySet(f"{where}: {error}") from error
    if not isinstance(entry, dict):
        raise BadCanarySet(f'{where}: not an object with "prompt" or "messages"')
    messages = entry.get("messages")
    if messages is None and isinstance(entry.get("prompt"), str) and entry["prompt"]:
        messages = [{"role": "user", "content": entry["prompt"]}]
    if not isinstance(messages, list) or not messages or not all(_is_message(m) for m in messages):
        raise BadCanarySet(f'{where}: needs "prompt" with a text, or "messages" with role and content each')
    digest = hashlib.sha256(json.dumps(messages, sort_keys=True, ensure_ascii=False).encode()).hexdigest()[:8]
    return Prompt(str(entry.get("id") or digest), tuple(messages))


def _is_message(message: object) -> bool:
    return isinstance(message, dict) and {"role", "content"} <= message.keys()
