"""The page /door, in a real browser that follows a real stream: it shows what is decided, else that it is closed."""

from __future__ import annotations

import datetime
import json
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from browser import CHROMIUM, Browser, browser
from tiny_ir import TEAL
from unit.serve.conftest import MakeService, jpeg, serving

from edgeface.serve import pages
from edgeface.serve.app import create_app
from edgeface.serve.keys import Role
from edgeface.serve.server import make_server

pytestmark = [pytest.mark.timeout(120), pytest.mark.slow]
FOLDER = Path(pages.__file__).with_name("page")
WORDS: dict[str, dict[str, str]] = json.loads(
    re.search(r"const WORDS = (\{.*\});", (FOLDER / "words.js").read_text(), re.DOTALL)[1]  # type: ignore[index]
)
SIZES = {"phone": (400, 800), "panel": (800, 480), "desk": (1280, 800)}
needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")


class Script:
    """Decisions and cameras as the test says; see `edgeface.serve.doors.EventSource`."""

    gallery, names, most_streams, closed, pins = "default", True, 4, "", False

    def __init__(self) -> None:
        self.told: list[dict[str, Any]] = []
        self.sent = 0
        self.state, self.shown = "connected", ""

    @property
    def last(self) -> int:
        return len(self.told)

    def cameras(self) -> dict[str, dict[str, Any]]:
        return {"door": {"state": self.state, "picture": self.shown}}

    @property
    def decisions(self) -> dict[tuple[str, str], int]:
        return {}

    def outbox(self) -> dict[str, tuple[int, int]]:
        return {}

    def picture(self, camera: str) -> bytes:
        return jpeg(TEAL)

    def events(self, *, after: int, **_: Any) -> list[tuple[int, dict[str, Any]]]:
        self.sent = self.last
        return [*enumerate(self.told[after:], after + 1)]

    def say(self, kind: str, name: str | None = None, *, age: float = 0.0) -> None:
        when = datetime.datetime.now(datetime.timezone.utc) - datetime.timedelta(seconds=age)
        self.told.append({"kind": kind, "name": name, "camera": "door", "time": when.isoformat()})


class Panel:
    """The page in a browser, and what it follows."""

    def __init__(self, page: Browser, script: Script, address: str, key: str) -> None:
        self.page, self.script, self.address, self.key = page, script, address, key

    def open(self, size: str = "panel", query: str = "?lang=en", *, dark: bool = False) -> None:
        width, height = SIZES[size]
        self.page.open(f"{self.address}/door{query}", width=width, dark=dark)
        self.page.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600
        )

    def enter(self, key: str | None = None, *, keep: bool = False) -> None:
        """Type the key and press Enter, with the keyboard alone."""
        self.page.evaluate(f"document.getElementById('keep').checked = {str(keep).lower()}")
        assert self.page.evaluate("document.activeElement.id") == "key"
        self.page.type(key or self.key)
        self.page.press("Enter")

    @property
    def state(self) -> str:
        return str(self.page.evaluate("document.body.dataset.state"))

    def wait_for(self, state: str) -> str:
        """Return what is to be read once the page shows this."""
        until = time.monotonic() + 10
        while self.state != state:
            assert time.monotonic() < until, self.state
            time.sleep(0.02)
        return str(self.page.evaluate("document.getElementById('shown').innerText"))

    def wait_until_sent(self) -> None:
        """Wait until all that was said has gone to the page: what the cameras do comes after it."""
        until = time.monotonic() + 10
        while self.script.sent != self.script.last:
            assert time.monotonic() < until, self.script.sent
            time.sleep(0.02)


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with browser(tmp_path_factory.mktemp("profile")) as page:
        yield page


@pytest.fixture
def panel(make_service: MakeService, chromium: Browser) -> Iterator[Panel]:
    service, script = make_service(), Script()
    _, key = service.keys.add("panel", Role.recognise)
    with serving(service, make_server(create_app(service, script), service.settings)) as port:
        yield Panel(chromium, script, f"http://127.0.0.1:{port}", key)
        chromium.open("about:blank", width=800)


def test_every_language_says_all() -> None:
    assert set(WORDS) == {"de", "en", "fr", "es", "pl", "ar"}
    for language, words in WORDS.items():
        assert words.keys() == WORDS["en"].keys(), language
        assert all(text.strip() for text in words.values())
    used = set(re.findall(r'data-word="([^"]+)"', (FOLDER / "door.html").read_text()))
    assert used <= WORDS["en"].keys()


@needs_browser
def test_decisions_are_text_and_icon_and_what_is_late_is_not_shown(panel: Panel) -> None:
    panel.open()
    panel.enter()
    assert "Look here" in panel.wait_for("wait")
    panel.page.picture("panel-wait")
    panel.script.say("known", "Ada", age=30)
    panel.script.say("unknown")
    assert "Not recognised" in panel.wait_for("unknown")
    panel.script.say("known", "<b>Ada</b>")
    assert "<b>Ada</b>" in panel.wait_for("known")
    panel.page.picture("panel-known")
    assert panel.page.evaluate("document.getElementById('icon').getAttribute('href')") == "#icon-known"
    panel.script.state = "lost"
    assert "Closed" in panel.wait_for("closed")
    panel.script.say("known", "Ada")
    panel.wait_until_sent()
    panel.script.state = "connected"
    assert "Look here" in panel.wait_for("wait")
    panel.script.say("spoof")
    assert "A photo or a screen" in panel.wait_for("spoof")
    assert panel.page.complaints() == []
    assert {url.partition("/door")[0].partition("/page")[0].partition("/api")[0] for url in panel.page.requested()} <= {
        panel.address,
        "data:,",
    }


@needs_browser
def test_the_picture_of_the_camera_is_shown_and_a_pin_can_be_given(panel: Panel) -> None:
    panel.script.shown, panel.script.pins = "shown", True
    for size in SIZES:
        panel.open(size, "?lang=ar" if size == "phone" else "?lang=en")
        panel.enter()
        panel.wait_for("wait")
        panel.page.wait_for("document.getElementById('picture').naturalWidth === 40")
        panel.page.picture(f"{size}-picture")
        assert panel.page.evaluate("document.getElementById('look').offsetHeight") > 100
        assert panel.page.evaluate("document.documentElement.scrollHeight - innerHeight") <= 0
        assert panel.page.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0
    panel.page.evaluate("document.getElementById('by-pin').click()")
    assert panel.page.evaluate("document.activeElement.id") == "number"
    panel.page.picture("panel-pin")
    assert panel.page.barriers() == []
    assert panel.page.complaints() == []


@needs_browser
def test_a_stream_that_is_lost_closes_the_door(panel: Panel) -> None:
    panel.open()
    panel.enter(keep=True)
    panel.wait_for("wait")
    panel.script.gallery = "other"  # ends the stream
    assert "Closed" in panel.wait_for("closed")
    panel.script.gallery = "default"
    panel.wait_for("wait")


@needs_browser
def test_a_key_is_kept_only_if_that_is_ticked_and_a_wrong_one_is_asked_for_again(panel: Panel) -> None:
    panel.open()
    panel.enter("00000000-0000-4000-8000-000000000000")
    until = time.monotonic() + 10
    while "not accepted" not in panel.page.evaluate("document.getElementById('why').innerText"):
        assert time.monotonic() < until
        time.sleep(0.02)
    panel.enter()
    panel.wait_for("wait")
    assert panel.page.evaluate("sessionStorage.length") == panel.page.evaluate("localStorage.length") == 0
    panel.open()
    panel.enter(keep=True)
    panel.wait_for("wait")
    panel.open()
    panel.wait_for("wait")
    panel.page.evaluate("document.getElementById('leave').click()")
    assert panel.page.evaluate("sessionStorage.length") == 0


@needs_browser
@pytest.mark.parametrize("size", SIZES)
def test_all_fits_in_every_language_with_targets_of_44_pixels(size: str, panel: Panel) -> None:
    panel.open(size)
    panel.page.picture(f"{size}-key")
    if size == "phone":
        assert panel.page.barriers() == []
    panel.enter(keep=True)
    for language in WORDS:
        panel.open(size, f"?lang={language}", dark=language in ("ar", "fr"))
        panel.wait_for("wait")
        assert panel.page.evaluate("document.documentElement.dir") == ("rtl" if language == "ar" else "ltr")
        for kind in ("inconclusive", "known"):
            panel.script.say(kind, "Maximiliane Wolkenstein-Hohenfels" if kind == "known" else None)
            panel.wait_for(kind)
            wide, high = panel.page.evaluate(
                "((all) => [all.scrollWidth - innerWidth, all.scrollHeight - innerHeight])(document.documentElement)"
            )
            panel.page.picture(f"{size}-{language}-{kind}")
            assert (wide <= 0, high <= 0) == (True, True), (language, kind, wide, high)
        if size == "phone" and language in ("de", "ar"):  # light, and dark
            assert panel.page.barriers() == [], language
        small = panel.page.evaluate(
            "[...document.querySelectorAll('button, select')].filter((each) => each.offsetParent)"
            ".filter((each) => Math.min(each.offsetWidth, each.offsetHeight) < 44).map((each) => each.id)"
        )
        assert small == []
    panel.page.evaluate("sessionStorage.clear()")
