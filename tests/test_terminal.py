"""What clients and taps wrote is printed as it is: it neither changes colours, moves the cursor nor ends a command."""

from __future__ import annotations

from io import StringIO
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from rich.console import Console
from sqlalchemy.orm import Session

from moe_watch import status
from moe_watch.cli import main
from moe_watch.commands.status import view
from moe_watch.detect.baseline import BaselineBuilder
from moe_watch.detect.batch import Batch
from moe_watch.store import baselines, canaries, engine, migrate, served
from moe_watch.store.models import CanaryRun, Model

HOSTILE = "tiny[/bold][awq] \x1b[2J\u202e"


def a_replica(text: str) -> status.Replica:
    """Return a replica of which every text is ``text``."""
    tap = status.Tap(False, text, text, 1.0, None, text, text, text)  # noqa: FBT003
    return status.Replica(
        model=text, identity="i", replica=text, layers=2, experts=4, top_k=1, verdict="traffic", reason=text, since=0.0,
        tap=tap, baseline=None, requests=1, routed=1, coverage=1.0, join_ratio=1.0, evidence=0.0, channels={},
        ood=status.Share(0.5, 0.1, 0.9, 3), movers=[], suspects=[status.Suspect(text, 0.001, 0.0)],
        episodes=[status.Episode(text, 0.0, 0.0, text)],
    )  # fmt: skip


def test_a_hostile_status_is_shown_as_text() -> None:
    """Brackets stay, escapes and overrides are made visible, and nothing is read as markup."""
    screen = StringIO()
    store = status.Store("sqlite://", True, 0, 0)  # noqa: FBT003
    seen = status.Status("0", 9.0, 0.0, "ipc://x", store, {}, {}, {}, 0, [a_replica(HOSTILE)])
    Console(width=300, file=screen).print(view(seen))
    shown = screen.getvalue()
    assert shown.count("tiny[/bold][awq]") >= 5
    assert "\x1b" not in shown
    assert "\u202e" not in shown


@pytest.mark.parametrize("arguments", [["canary", "list"], ["baseline", "list"], ["baseline", "show", "1"]])
def test_lists_show_names_and_notes_as_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str]
) -> None:
    """A model called [awq] keeps its brackets, and a note is no markup."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "400")
    monkeypatch.setenv("MOE_WATCH_STORE__URL", f"sqlite:///{tmp_path}/a.db")
    store = engine.connect(f"sqlite:///{tmp_path}/a.db")
    migrate.upgrade(store)
    with Session(store) as session, session.begin():
        row = Model(identity="i", name="m", layers=2, experts=4, top_k=1, first_seen=0.0, detail={"revision": HOSTILE})
        session.add(row)
    model = served.by_name(store, "m")[0]
    builder = BaselineBuilder(minimum=50)
    counts = np.random.default_rng(0).multinomial(40, [0.4, 0.3, 0.2, 0.1], size=(200, 2)).astype(np.uint32)
    builder.add(Batch(counts, counts, 1))
    baselines.save(store, model, builder.build(0), now=1.0, note=HOSTILE)
    columns = {"set_version": "v", "engine": "vllm", "load": "idle", "first_layer": None, "blob": b"", "evidence": {}}
    found = {"verdict": "healthy", "effect": 0.0, "summary": HOSTILE, "replica": "r"}
    canaries.save(store, CanaryRun(model_id=model.id, at=1.0, reference=False, **columns, **found))
    done = CliRunner().invoke(main, arguments)
    assert done.exit_code == 0, done.output
    assert "tiny[/bold][awq]" in done.output
    assert "\x1b" not in done.output
