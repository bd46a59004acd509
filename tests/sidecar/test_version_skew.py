"""Tap and sidecar of different versions: frames of every earlier shape count, newer ones too; refusals are counted."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any, get_args

import msgspec
import pytest

from moe_watch import wire
from moe_watch.metrics.board import Board
from moe_watch.settings import Settings
from moe_watch.sidecar.intake import Intake
from moe_watch.sidecar.join import Join
from moe_watch.sidecar.monitor.replicas import ReplicaMonitors
from tests.support.frames import Tap

CORPUS = sorted((Path(__file__).parents[1] / "corpus" / "wire").glob("*.json"), key=lambda path: int(path.stem))
Refused = str | None


def frames(path: Path) -> list[tuple[bytes, Refused]]:
    """Return the frames of one shape, each with the reason for which it is refused, if it is."""
    raw = json.loads(path.read_text(encoding="utf-8"))
    return [(base64.b64decode(one["frame"]), one["refused"]) for one in raw["frames"]]


def fields(raw: bytes) -> dict[str, Any]:
    found: dict[str, Any] = msgspec.msgpack.decode(raw)
    return found


@pytest.mark.parametrize("path", CORPUS, ids=lambda path: path.stem)
def test_frames_of_an_earlier_shape_say_today_what_they_said(path: Path) -> None:
    """Every field that was sent has its value, what was not known then its default; others are malformed."""
    for raw, refused in frames(path):
        if refused is not None:
            with pytest.raises(wire.WireError) as error:
                wire.decode(raw)
            assert error.value.reason == refused
            continue
        sent, read = fields(raw), fields(wire.encode(wire.decode(raw)))
        assert _only(read, sent) == sent
        for name in set(read) - set(sent):
            assert read[name] == _default(sent["type"], name)


def _only(read: Any, sent: Any) -> Any:
    """Return what of ``read`` is named in ``sent``, likewise within."""
    if not isinstance(sent, dict):
        return read
    return {name: _only(read[name], value) for name, value in sent.items()}


def _default(tag: str, name: str) -> Any:
    (frame,) = [one for one in get_args(wire.AnyFrame) if one.__struct_config__.tag == tag]
    (default,) = [field.default for field in msgspec.structs.fields(frame) if field.name == name]
    return default


@pytest.mark.parametrize("path", CORPUS, ids=lambda path: path.stem)
def test_an_older_tap_is_judged_and_stored_by_todays_sidecar(path: Path) -> None:
    """Its requests are joined, complete and become rows; what is refused is counted by its reason."""
    intake, join, monitors = Intake(), Join(5.0), ReplicaMonitors(Settings(), Board(started_at=0.0))
    known = frames(path)
    taken = intake.take([raw for raw, _ in known], now=0.0)
    expected = [refused for _, refused in known if refused is not None]
    assert dict(intake.refused) == ({"malformed": len(expected)} if expected else {})
    (model,) = [frame for frame in taken if isinstance(frame, wire.Model)]
    monitors.announce(model, 1.0)
    joined = join.add(taken, 0.0)
    assert all(request.complete for request in joined)
    writes = monitors.process(joined, 1_790_000_002.0)
    assert [row.values["request_id"] for row in writes.requests] == ["cmpl-full", "cmpl-0", "cmpl-1", "cmpl-2"]
    assert all(row.fingerprint is not None for row in writes.requests)
    assert writes.requests[0].sample is not None
    assert writes.requests[0].sample["output"] == "it is"


def test_the_newest_shape_is_todays() -> None:
    """A field that is added to a frame needs a corpus that has it: see tests/corpus/README.md."""
    sent: dict[str, set[str]] = {}
    for raw, _ in frames(CORPUS[-1]):
        found = fields(raw)
        sent.setdefault(found["type"], set()).update(found)
        for name, inner in found.items():
            if name in {"prompt", "decode", "sample"} and inner is not None:
                sent.setdefault(name, set()).update(inner)
    structs = {one.__struct_config__.tag: one for one in get_args(wire.AnyFrame)}
    structs |= {"sample": wire.Sample, "prompt": wire.Counts, "decode": wire.Counts}
    today = {name: {field.encode_name for field in msgspec.structs.fields(one)} for name, one in structs.items()}
    assert {name: known - {"type"} for name, known in sent.items()} == today


_TAP = Tap()
_TODAY: list[wire.AnyFrame] = [
    _TAP.announce(),
    _TAP.routing("a"),
    _TAP.latency("a"),
    _TAP.request("a", sample=wire.Sample(prompt="p", outputs=["o"])),
    _TAP.health(),
    wire.Event(**_TAP.engine(), kind="engine_start", at=1.0),
]


@pytest.mark.parametrize("frame", _TODAY, ids=lambda frame: type(frame).__name__)
def test_a_newer_frame_is_taken_without_what_is_new(frame: wire.AnyFrame) -> None:
    """Unknown fields are passed over, in the frame and within it."""
    newer = fields(wire.encode(frame)) | {"added_later": {"deep": [1, {"er": None}]}}
    for name, inner in newer.items():
        if isinstance(inner, dict) and name in {"prompt", "decode", "sample"}:
            newer[name] = inner | {"added_later": 1.5}
    assert wire.decode(msgspec.msgpack.encode(newer)) == frame


def test_a_newer_kind_of_frame_and_a_newer_version_are_refused_and_counted_apart() -> None:
    """The first as malformed, the second as of an unknown version; frames around them count."""
    intake, tap = Intake(), Tap()
    first, second = tap.whole("a")[:1], tap.whole("b")[:1]
    kind = fields(wire.encode(tap.health())) | {"type": "brand-new"}
    version = fields(wire.encode(tap.health())) | {"version": wire.WIRE_VERSION + 1, "type": "brand-new"}
    raws = [wire.encode(first[0]), *map(msgspec.msgpack.encode, (kind, version)), wire.encode(second[0])]
    assert intake.take(raws, now=0.0) == [*first, *second]
    assert dict(intake.refused) == {"malformed": 1, "unknown_version": 1}
