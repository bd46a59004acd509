"""The key of the join is the id that the client sees, whoever says it."""

from __future__ import annotations

import pytest

from moe_watch.tap.send import ids


@pytest.mark.parametrize(
    ("engine_id", "seen"),
    [
        ("chatcmpl-abc-1-0123abcd", ("chatcmpl-abc-1", 0)),
        ("1_chatcmpl-abc-0123abcd", ("chatcmpl-abc", 1)),
        ("cmpl-abc-0-0123abcd", ("cmpl-abc", 0)),
        ("cmpl-abc-3-0123abcd", ("cmpl-abc", 3)),
        ("2_cmpl-abc-0-0123abcd", ("cmpl-abc", 2)),
        ("17-0123abcd", ("17", 0)),
    ],
)
def test_an_engine_id_becomes_what_the_client_sees(engine_id: str, seen: tuple[str, int]) -> None:
    """The random suffix goes; n > 1 and several prompts become the choice."""
    assert ids.from_engine(engine_id) == seen


def test_statistics_and_worker_agree() -> None:
    """Ids with and without the engine's suffix lead to the same key."""
    for named in ("chatcmpl-a", "cmpl-a-0", "cmpl-a-2", "chatcmpl-" + "x" * 400):
        assert ids.from_engine(f"{named}-0123abcd") == ids.from_frontend(named)


def test_a_long_id_is_cut_to_what_a_frame_holds_and_stays_its_own() -> None:
    """Two long ids that differ at their ends stay two."""
    one, other = ids.bounded("x" * 400 + "1"), ids.bounded("x" * 400 + "2")
    assert len(one) == len(other) == 240
    assert one != other
