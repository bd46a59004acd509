"""Settings: defaults, then the file, then the environment, then flags; wrong ones are named."""

from __future__ import annotations

from pathlib import Path

import pytest
from click import ClickException
from hypothesis import given
from hypothesis import strategies as st

from moe_watch.cli import setup
from moe_watch.settings import Settings, TapSettings


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run where there is no configuration file."""
    monkeypatch.chdir(tmp_path)


def test_the_tap_is_off_without_its_one_setting() -> None:
    """Nothing of it runs until it has an endpoint."""
    assert TapSettings().endpoint is None


def test_nothing_is_open_by_default() -> None:
    """Loopback, no samples, no remote taps."""
    settings = Settings()
    assert settings.http.host == "127.0.0.1"
    assert not settings.allow_remote_taps
    assert not settings.http.page_samples
    assert TapSettings().sample_rate == 0


def test_later_sources_win(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file over the defaults, the environment over the file, flags over both."""
    (tmp_path / "moe-watch.toml").write_text(
        "window_s = 10\njoin_timeout_s = 1\n[http]\nport = 1\n[store]\nurl = 'a'\n"
    )
    monkeypatch.setenv("MOE_WATCH_HTTP__PORT", "2")
    monkeypatch.setenv("MOE_WATCH_JOIN_TIMEOUT_S", "2")
    settings = Settings(join_timeout_s=3)
    assert (settings.window_s, settings.http.port, settings.join_timeout_s, settings.store.url) == (10, 2, 3, "a")


def test_another_file_can_be_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """MOE_WATCH_CONFIG says which."""
    (tmp_path / "other.toml").write_text("window_s = 5\n")
    monkeypatch.setenv("MOE_WATCH_CONFIG", "other.toml")
    assert Settings().window_s == 5


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("MOE_WATCH_WINDOW_S", "-1", "window_s: Input should be greater than 0"),
        ("MOE_WATCH_HTTP__PORT", "x", "http.port"),
        ("MOE_WATCH_DETECT__OOD_ALPHA", "2", "detect.ood_alpha"),
        ("MOE_WATCH_HTTP", "not json", "http"),
    ],
)
def test_a_wrong_setting_is_named(name: str, value: str, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The message has its path and what is wrong with it."""
    monkeypatch.setenv(name, value)
    with pytest.raises(ClickException, match="settings") as error:
        setup.settings()
    assert said in error.value.message


@given(st.text(alphabet=st.characters(blacklist_characters="\0", blacklist_categories=["Cs"]), max_size=30))
def test_no_text_in_a_setting_is_a_stack_trace(value: str) -> None:
    """Whatever stands in the environment is taken or refused with a message."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("MOE_WATCH_WINDOW_S", "MOE_WATCH_HTTP", "MOE_WATCH_STORE__KEEP_SAMPLES_DAYS"):
            patch.setenv(name, value)
        try:
            setup.settings()
        except ClickException as error:
            assert error.message.startswith("settings")  # noqa: PT017


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    """A syntax error in the file is no stack trace."""
    (tmp_path / "moe-watch.toml").write_text("window_s = = 1")
    with pytest.raises(ClickException, match="settings"):
        setup.settings()
