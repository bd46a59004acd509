"""Print all rows of a SQLite store as JSON: ``python tests/corpus/dump.py STORE.db > tests/corpus/schema/0004.json``.

Needs nothing of moe-watch, so that a store of any version is dumped as it is.
"""

from __future__ import annotations

import base64
import json
import sqlite3
import sys
from typing import Any

TABLES = (  # those that are pointed at come first
    *("models", "baselines", "requests", "fingerprints", "samples", "shadows", "windows", "alarms", "events"),
    *("canary_runs", "server_benches", "meta"),
)


def dump(path: str) -> dict[str, list[dict[str, Any]]]:
    """Return the rows of each table; bytes as ``{"base64": ...}``."""
    with sqlite3.connect(path) as connection:
        connection.row_factory = sqlite3.Row
        return {table: _rows(connection, table) for table in TABLES}


def _rows(connection: sqlite3.Connection, table: str) -> list[dict[str, Any]]:
    kinds = {row["name"]: row["type"] for row in connection.execute(f"PRAGMA table_info({table})")}
    rows = connection.execute(f"SELECT * FROM {table}")  # noqa: S608 - one of the names above
    return [{name: _plain(row[name], kinds[name]) for name in kinds} for row in rows]


def _plain(value: Any, kind: str) -> Any:
    if isinstance(value, bytes):
        return {"base64": base64.b64encode(value).decode()}
    return bool(value) if kind == "BOOLEAN" else value


if __name__ == "__main__":
    json.dump(dump(sys.argv[1]), sys.stdout, indent=1)
    sys.stdout.write("\n")
