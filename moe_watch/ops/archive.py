"""The history as Parquet at any fsspec address, partitioned by model and day, and fingerprints back from it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np

from moe_watch import wire
from moe_watch.detect.common.batch import Batch
from moe_watch.domain import private_files
from moe_watch.ops.backtest import Recorded
from moe_watch.store.codecs import arrays
from moe_watch.store.lifecycle.forget import Who
from moe_watch.store.lifecycle.prune import DAY_S
from moe_watch.store.read.requests import unpack_confidence
from moe_watch.store.schema import Model

_COLUMNS = (
    *("replica", "request_id", "choice", "finished_at", "outcome", "prompt_tokens", "output_tokens", "domain"),
    *("images", "canary", "user_hash", "ood_p", "ttft_s", "tpot_s", "prompt", "decode", "confidence"),
)


class HistoryError(RuntimeError):
    """An address that cannot be read or written; the message says why."""


@dataclass(frozen=True)
class Shape:
    """Of which model the fingerprints are."""

    identity: str
    layers: int
    experts: int
    top_k: int


def write(chunks: Iterable[Any], model: Model, address: str) -> int:
    """Write chunks of ``store.history.rows`` to ``address``, over what is there of the same days; return the rows."""
    import pyarrow as pa  # noqa: PLC0415 - an extra
    from pyarrow import dataset  # noqa: PLC0415

    written = 0
    schema = _schema()

    def batches() -> Iterator[Any]:
        nonlocal written
        for chunk in chunks:
            written += len(chunk)
            table = {name: [getattr(row, name) for row in chunk] for name in _COLUMNS}
            table["day"] = [_day(row.finished_at) for row in chunk]
            table["model"] = [_safe(model.name)] * len(chunk)
            for name in ("identity", "layers", "experts", "top_k"):
                table[name] = [getattr(model, name)] * len(chunk)
            yield pa.RecordBatch.from_pydict(table, schema=schema)

    filesystem, path = _filesystem(address)
    with private_files.umask():
        dataset.write_dataset(
            batches(),
            path,
            schema=schema,
            filesystem=filesystem,
            format="parquet",
            partitioning=dataset.partitioning(
                pa.schema([("model", pa.string()), ("identity", pa.string()), ("day", pa.string())]), flavor="hive"
            ),
            existing_data_behavior="delete_matching",
        )
    return written


def shapes(address: str) -> dict[str, Shape]:
    """Return the models found at ``address`` by identity; raise ``HistoryError`` when there is no file."""
    found = _open(address)
    if not found.files:
        raise HistoryError(f"there is no history at {address}: `moe-watch export --to {address}` writes one")
    table = found.to_table(columns=["identity", "layers", "experts", "top_k"])
    unique = table.group_by(["identity", "layers", "experts", "top_k"]).aggregate([])
    return {row["identity"]: Shape(**row) for row in unique.to_pylist()}


def replicas(address: str, identity: str) -> list[str]:
    """Return the replicas of one model at ``address``."""
    from pyarrow import compute  # noqa: PLC0415

    table = _open(address).to_table(columns=["replica"], filter=compute.field("identity") == identity)
    return sorted(set(table["replica"].to_pylist()))


@dataclass(frozen=True)
class ParquetSource:
    """Reads one replica's stream; it is small and pickles, so that a worker elsewhere can read for itself."""

    address: str
    shape: Shape
    since: float = 0.0
    until: float = float("inf")

    def __call__(self, replica: str) -> Iterator[Recorded]:
        """Yield the replica's fingerprints a day at a time, in the order of time, canaries left out."""
        from pyarrow import compute  # noqa: PLC0415

        found = _open(self.address)
        field = compute.field
        mine = (field("identity") == self.shape.identity) & (field("replica") == replica) & ~field("canary")
        mine &= (field("finished_at") >= self.since) & (field("finished_at") < self.until)
        columns = ["request_id", "finished_at", "prompt", "decode", "confidence"]
        days = found.to_table(columns=["day"], filter=mine).column("day").unique().to_pylist()
        for day in sorted(days):
            rows = found.to_table(columns=columns, filter=mine & (field("day") == day)).sort_by("finished_at")
            yield _recorded(rows.to_pylist(), self.shape)


def _recorded(rows: list[dict[str, Any]], shape: Shape) -> Recorded:
    def counts(name: str) -> np.ndarray[Any, np.dtype[np.uint32]]:
        return np.stack([arrays.unpack_counts(row[name], shape.layers, shape.experts) for row in rows])

    nothing = np.full((2, shape.layers), np.nan, np.float32)
    known = [unpack_confidence(row["confidence"], shape.layers) for row in rows]
    both = np.stack([nothing if one is None else one for one in known])
    finished = np.array([row["finished_at"] for row in rows])
    batch = Batch(counts("prompt"), counts("decode"), shape.top_k, both[:, 0], both[:, 1], finished)
    return Recorded(batch, [row["request_id"] for row in rows])


def forget(address: str, who: Who) -> int:
    """Write every file at ``address`` again that holds ``who``, without their rows; return how many rows went.

    A file is replaced by its new version when that is whole, so that an interruption loses nobody else's rows.
    """
    from pyarrow import parquet  # noqa: PLC0415

    filesystem, _ = _filesystem(address)
    gone = 0
    for path, table, kept in _holding(address, who):
        folder, _, name = path.rpartition("/")
        part = f"{folder}/.{name}.part"  # a dot hides it from readers
        with private_files.umask(), filesystem.open(part, "wb") as file:
            parquet.write_table(kept, file)
        filesystem.mv(part, path)
        gone += table.num_rows - kept.num_rows
    return gone


def count(address: str, who: Who) -> int:
    """Read everything at ``address`` again; return how many rows there are of ``who``."""
    return sum(table.num_rows - kept.num_rows for _, table, kept in _holding(address, who))


def absolute(address: str) -> str:
    """Return ``address`` as it is known from any working directory."""
    filesystem, path = _filesystem(address)
    return str(filesystem.unstrip_protocol(path))


def exists(address: str) -> bool:
    """Say whether there is anything at ``address``."""
    filesystem, path = _filesystem(address)
    return bool(filesystem.exists(path))


def _holding(address: str, who: Who) -> Iterator[tuple[str, Any, Any]]:
    """Yield the path, the table and the table without ``who`` for each file that has rows of them."""
    from pyarrow import compute, dataset  # noqa: PLC0415

    filesystem, _ = _filesystem(address)
    mine = compute.field("user_hash") == who.user_hash
    if who.user_hash is None:
        name, asked = compute.field("request_id"), who.request_id or ""
        again = compute.starts_with(name, f"{asked}~") & (compute.utf8_length(name) == len(asked) + wire.AGAIN)
        mine = (name == asked) | again
    for fragment in _open(address).get_fragments():
        table = dataset.dataset(fragment.path, filesystem=filesystem, format="parquet").to_table()
        kept = table.filter(~mine)
        if kept.num_rows < table.num_rows:
            yield fragment.path, table, kept


def _schema() -> Any:
    import pyarrow as pa  # noqa: PLC0415

    text, whole, real, raw = pa.string(), pa.int32(), pa.float64(), pa.binary()
    kinds = dict.fromkeys(_COLUMNS, text)
    kinds |= dict.fromkeys(("choice", "prompt_tokens", "output_tokens", "images"), whole)
    kinds |= dict.fromkeys(("finished_at", "ood_p", "ttft_s", "tpot_s"), real)
    kinds |= dict.fromkeys(("prompt", "decode", "confidence"), raw)
    kinds |= {"canary": pa.bool_(), "day": text, "model": text, "identity": text}
    kinds |= dict.fromkeys(("layers", "experts", "top_k"), whole)
    return pa.schema(list(kinds.items()))


def _open(address: str) -> Any:
    from pyarrow import dataset  # noqa: PLC0415

    filesystem, path = _filesystem(address)
    if not filesystem.exists(path):
        raise HistoryError(f"there is no history at {address}: `moe-watch export --to {address}` writes one")
    return dataset.dataset(path, filesystem=filesystem, format="parquet", partitioning="hive")


def _filesystem(address: str) -> tuple[Any, str]:
    try:
        import fsspec  # noqa: PLC0415
    except ImportError as error:
        raise HistoryError("Parquet needs an extra: pip install 'moe-watch[history]'") from error
    try:
        filesystem, path = fsspec.core.url_to_fs(address)
    except (ImportError, ValueError) as error:
        raise HistoryError(f"{address}: {error}") from error
    return filesystem, str(path)


def whole_days(since: float, until: float, oldest: float) -> tuple[float, float]:
    """Return a period in whole days (UTC) around another, without the day of ``oldest`` unless it is the last.

    >>> day = 86_400
    >>> [edge / day for edge in whole_days(2.6 * day, 5.5 * day, oldest=0)]
    [2.0, 6.0]
    >>> [edge / day for edge in whole_days(2.6 * day, 5.5 * day, oldest=2.1 * day)]
    [3.0, 6.0]
    """
    end = -(-until // DAY_S) * DAY_S
    return max(since // DAY_S * DAY_S, min(-(-oldest // DAY_S) * DAY_S, end - DAY_S)), end


def _day(finished_at: float) -> str:
    return datetime.fromtimestamp(finished_at, UTC).date().isoformat()


def _safe(name: str) -> str:
    """Return a model's name as one path component."""
    return name.replace("/", "--")
