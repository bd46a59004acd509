"""Batches of rows as the spool keeps them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import msgspec

from moe_watch.domain.plain import encodable
from moe_watch.store.write.batch import NewModel, Writes

_encoder = msgspec.msgpack.Encoder(enc_hook=encodable)
_decoder: msgspec.msgpack.Decoder[Writes] = msgspec.msgpack.Decoder(Writes)


def pack(batch: Writes) -> bytes:
    """Return ``batch`` for the spool."""
    return _encoder.encode(batch)


def unpack(payload: bytes) -> Writes:
    """Return what ``pack`` was given; raise ``msgspec.MsgspecError`` for what another version packed."""
    return _decoder.decode(payload)


def whole(
    batch: Writes, models: Mapping[str, NewModel], refuse: Callable[[Writes, Exception], None]
) -> Iterator[bytes]:
    """Yield ``batch`` for the spool; in parts where it has rows that cannot be packed, which go to ``refuse``.

    Each part has its models: their own batch may be lost, or the store another one by then.
    """
    needed = batch.identities() - {model.identity for model in batch.models}
    known = [models[identity] for identity in needed & models.keys()]
    try:
        payload = pack(msgspec.structs.replace(batch, models=known + batch.models))
    except Exception as error:  # noqa: BLE001 - a row that nobody can pack must not end the process
        halves = batch.halves()
        if halves is None:
            refuse(batch, error)
            return
        for half in halves:
            yield from whole(half, models, refuse)
    else:
        yield payload


def ended(batch: Writes, now: float) -> Writes:
    """End the alarms that were flagged before ``now``, as those in the store are at a start: detectors begin anew."""
    for alarm in batch.alarms:
        alarm.values.setdefault("ending", None)  # spooled by a version that did not tell
        if alarm.values["ended_at"] is None and alarm.values["flagged_at"] < now:
            alarm.values.update(ended_at=now, ending="sidecar_stopped")
    return batch
