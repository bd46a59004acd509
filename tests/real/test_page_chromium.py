"""The report in a real browser: hostile text runs nothing and fetches nothing, and the page fits a phone."""

from __future__ import annotations

import functools
import http.server
import os
import re
import shutil
import subprocess
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from moe_watch.report.build.gather import gather
from moe_watch.report.data.review import Report
from moe_watch.report.data.sections import Mark, Suspects, Text
from moe_watch.report.data.types import Period
from moe_watch.report.render import as_html
from moe_watch.settings import Settings
from tests.support import store_factory
from tests.support.store_factory import DAY, UNTIL

pytestmark = pytest.mark.real
PHONE, DESK = 390, 1120
FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--hide-scrollbars"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
)
RUNS = "<script>document.documentElement.dataset.owned = 'yes'</script>"
MEASURE = """<!doctype html><html><body>
<iframe id=f src=report.html style="border:0;width:{width}px;height:3000px"></iframe>
<script>f.onload = () => document.body.dataset.wide = f.contentDocument.documentElement.scrollWidth</script>"""


@pytest.fixture(scope="module")
def browser() -> str:
    """Return Chromium; skip without one, but not where everything must run."""
    found = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if found is None:
        message = "no Chromium: sudo apt-get install chromium"
        if os.environ.get("CI") == "true":
            pytest.fail(message)
        pytest.skip(message)
    return found


class Site:
    """Serves one folder on loopback and remembers what was asked for."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.asked: list[str] = []
        handler = functools.partial(_Handler, directory=str(folder), site=self)
        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


class _Handler(http.server.SimpleHTTPRequestHandler):
    def __init__(self, *args: object, site: Site, **kwargs: object) -> None:
        self.site = site
        super().__init__(*args, **kwargs)  # type: ignore[arg-type]

    def do_GET(self) -> None:
        """Remember the path and answer."""
        self.site.asked.append(self.path)
        super().do_GET()

    def log_message(self, *_: object) -> None:
        """Keep the test's output clean."""


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    """Return a server of an empty folder."""
    made = Site(tmp_path)
    yield made
    made.server.shutdown()
    made.server.server_close()


def see(browser: str, tmp_path: Path, url: str, *flags: str) -> str:
    """Open ``url`` and return the document as it is after scripts and loads had their time."""
    profile = f"--user-data-dir={tmp_path / 'profile'}"
    command = [browser, *FLAGS, profile, "--virtual-time-budget=4000", *flags, url]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=90).stdout


def report() -> Report:
    """Return the shared store's week with texts."""
    settings = Settings(http={"page_samples": True})  # type: ignore[arg-type]
    return gather(store_factory.shared(), settings, Period(UNTIL - 7 * DAY, UNTIL), now=UNTIL)


def hostile(address: str) -> Report:
    """Return it with text that tries to run, to fetch from ``address``, to leave its place and to be endless."""
    attack = (
        f"</pre></title></style>{RUNS}<img src={address}/img onerror=\"document.documentElement.dataset.owned='yes'\">"
        f"<link rel=stylesheet href={address}/css><meta http-equiv=refresh content='0;url={address}/gone'>"
        f"<svg onload=\"document.documentElement.dataset.owned='yes'\"><style>@import url({address}/import)</style>"
        "\x1b[31m\u202egnp.exe\u202c\u0000\u2028 ' \" ` {{ 7 * 7 }} "
    )
    (review,) = report().reviews
    assert isinstance(review.suspects, Suspects)
    endless = Text("A" * 2**20 + attack, attack + "B" * 2**20)
    suspects = tuple(
        replace(s, request_id=attack, domain=attack, replica=attack, finish_reason=attack, text=endless)
        for s in review.suspects.requests
    )
    drift = replace(review.timeline.alarms[0], summary=attack, replica=attack)
    marks = (Mark(UNTIL - DAY, "engine_start", attack, attack),)
    made = replace(
        review,
        served=replace(review.served, name=attack, facts={"vLLM": attack}),
        suspects=replace(review.suspects, requests=suspects),
        timeline=replace(review.timeline, alarms=(drift,), marks=marks),
    )
    return replace(report(), reviews=(made,))


def without_policy(page: str) -> str:
    """Return ``page`` without its content-security policy: what escaping alone is worth."""
    bare, n = re.subn(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", page)
    assert n == 1
    return bare


@pytest.mark.parametrize("policy", [True, False], ids=["with policy", "without policy"])
def test_hostile_text_runs_nothing_and_fetches_nothing(browser: str, site: Site, *, policy: bool) -> None:
    """Script tags, handlers, images, imports and redirects in text stay text, with or without the policy."""
    page = as_html.render(hostile(site.url))
    (site.folder / "report.html").write_text(page if policy else without_policy(page))
    document = see(browser, site.folder, f"{site.url}/report.html", "--dump-dom")
    assert "data-owned" not in document.split(">", 2)[1]
    assert site.asked == ["/report.html"]
    assert "⟨U+202E⟩gnp.exe" in document
    assert "␛[31m" in document
    assert document.count("<pre") == 20
    assert len(document) < 2_000_000


def test_the_policy_stops_what_escaping_would_miss(browser: str, site: Site) -> None:
    """Were markup ever to slip through, the policy would still forbid script, image and style; without it they run."""
    slipped = f"<body>{RUNS}<img src=/slipped.png><style>@import url(/slipped.css);</style>"
    page = as_html.render(report()).replace("<body>", slipped, 1)
    (site.folder / "report.html").write_text(page)
    document = see(browser, site.folder, f"{site.url}/report.html", "--dump-dom")
    assert 'data-owned="yes"' not in document
    assert site.asked == ["/report.html"]
    (site.folder / "bare.html").write_text(without_policy(page))
    document = see(browser, site.folder, f"{site.url}/bare.html", "--dump-dom")
    assert 'data-owned="yes"' in document
    assert "/slipped.png" in site.asked


def test_the_page_opens_offline(browser: str, tmp_path: Path) -> None:
    """As a file it shows its headline and its plots, without a network."""
    path = tmp_path / "report.html"
    path.write_text(as_html.render(report()))
    document = see(browser, tmp_path, path.as_uri(), "--dump-dom", "--host-resolver-rules=MAP * ~NOTFOUND")
    assert "<h1>Traffic is unlike the baseline" in document
    assert document.count("<svg") == 14


@pytest.mark.parametrize("width", [320, PHONE, 768])
@pytest.mark.parametrize("text", ["plain", "hostile"])
def test_nothing_sticks_out_on_a_phone(browser: str, site: Site, width: int, text: str) -> None:
    """Tables, plots, ids and endless lines stay within the width of the screen."""
    made = report() if text == "plain" else hostile(site.url)
    (site.folder / "report.html").write_text(as_html.render(made))
    (site.folder / "frame.html").write_text(MEASURE.format(width=width))
    document = see(browser, site.folder, f"{site.url}/frame.html", "--dump-dom")
    wide = re.search(r'data-wide="(\d+)"', document)
    assert wide is not None
    assert int(wide[1]) <= width


@pytest.mark.parametrize(("scheme", "dark"), [("1", False), ("0", True)], ids=["light", "dark"])
def test_the_page_follows_light_and_dark(browser: str, tmp_path: Path, scheme: str, *, dark: bool) -> None:
    """The background is light or dark as the reader's system is, and plots are drawn on it."""
    path, shot = tmp_path / "report.html", tmp_path / "shot.png"
    path.write_text(as_html.render(report()))
    flags = (f"--screenshot={shot}", f"--window-size={DESK},2000", f"--blink-settings=preferredColorScheme={scheme}")
    see(browser, tmp_path, path.as_uri(), *flags)
    with Image.open(shot) as picture:
        colours = picture.convert("RGB")
        assert (sum(colours.getpixel((3, 3))) < 200) is dark  # type: ignore[arg-type]
        assert len(colours.getcolors(1 << 20) or []) > 50


def test_the_page_prints(browser: str, tmp_path: Path) -> None:
    """It becomes a PDF of a few pages."""
    path, printed = tmp_path / "report.html", tmp_path / "report.pdf"
    path.write_text(as_html.render(report()))
    see(browser, tmp_path, path.as_uri(), "--no-pdf-header-footer", f"--print-to-pdf={printed}")
    assert printed.read_bytes().startswith(b"%PDF")
    pages = re.findall(rb"/Type\s*/Page\b", printed.read_bytes())
    assert 4 <= len(pages) <= 14
