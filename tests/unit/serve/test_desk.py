"""The pages /desk and /forget, in a real browser with a camera: from the consent to the proof that all is erased."""

from __future__ import annotations

import csv
import datetime
import json
import re
from collections.abc import Iterator
from typing import Any

import cv2
import numpy as np
import pytest
from browser import CHROMIUM, Browser, browser
from tiny_ir import GREEN, RED, SIDE, TEAL, draw, write_tiny_ir
from unit.serve.conftest import OPEN, enrol, load_squares, serving
from unit.serve.test_door_page import FOLDER, SIZES, WORDS, Script

from edgeface.serve.app import create_app
from edgeface.serve.keys import Role
from edgeface.serve.server import make_server
from edgeface.serve.service import Service
from edgeface.serve.settings import Settings

PINK = (180, 100, 220)
pytestmark = [
    pytest.mark.timeout(120),
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed"),
]


def film(colour: tuple[int, int, int], frames: int = 300) -> list[bytes]:
    """Return JPEG files of a square of this colour, as sharp and lit as a face has to be; no two are equal."""
    rng, made = np.random.default_rng(5), []
    coarse, frame = rng.uniform(0.45, 1, (4, 4)).repeat(10, 0).repeat(10, 1), draw(None, margin=1)
    for _ in range(frames):
        fine = rng.uniform(0.7, 1, (20, 20)).repeat(2, 0).repeat(2, 1)
        frame[SIDE : 2 * SIDE, SIDE : 2 * SIDE] = np.array(colour) * (coarse * fine)[..., np.newaxis]
        made.append(cv2.imencode(".jpg", frame)[1].tobytes())
    return made


class Desk:
    """The page in a browser whose camera shows a face, and the service."""

    def __init__(self, page: Browser, service: Service, address: str) -> None:
        self.page, self.service, self.address = page, service, address
        self.keys = {role: service.keys.add(role.value, role)[1] for role in Role}

    def open(
        self, view: str, role: Role | None = Role.admin, *, size: str = "desk", lang: str = "en", dark: bool = False
    ) -> None:
        """Open a view with a key that this tab keeps; None: keep the one before."""
        width, height = (SIZES | {"wall": (3840, 2160)})[size]
        self.page.open(f"{self.address}/door", width=width, dark=dark)  # another page, so that the view is loaded anew
        if role is not None:
            self.page.evaluate(f"sessionStorage.setItem('edgeface-key', '{self.keys[role]}')")
        self.page.open(f"{self.address}/desk?lang={lang}#{view}", width=width, dark=dark)
        self.page.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600
        )
        self.page.wait_for("document.querySelector('h1[tabindex]') !== null")

    def click(self, word: str) -> None:
        self.page.wait_for(f"document.querySelector('button[data-word=\"{word}\"]:not(:disabled)') !== null")
        self.page.evaluate(f"document.querySelector('button[data-word=\"{word}\"]').click()")

    def fill(self, name: str, value: str) -> None:
        self.page.wait_for(f"document.getElementById('{name}') !== null")
        self.page.evaluate(f"document.getElementById('{name}').value = {json.dumps(value)}")

    @property
    def text(self) -> str:
        return str(self.page.evaluate("document.body.innerText"))

    def check(self) -> None:
        """Nothing complained, and nothing was asked of another address."""
        assert self.page.complaints() == []
        asked = {url for url in self.page.requested() if not url.startswith((self.address, "blob:", "data:"))}
        assert asked == set()


class Log(Script):
    """What was decided at two doors, one of whose cameras is lost."""

    def __init__(self) -> None:
        super().__init__()
        now = datetime.datetime.now(datetime.timezone.utc)
        fields = {"contract_id": "c" * 64, "frames": 3, "liveness": 0.9, "threshold": 0.5}
        for number, kind in enumerate(["known", "unknown", "spoof", "inconclusive"], 1):
            who = (
                {"person_id": 1, "name": "=Grace", "score": 0.75}
                if kind == "known"
                else dict.fromkeys(("person_id", "name", "score"))
            )
            told = {"sequence": number, "id": f"{number:032x}", "time": now.isoformat(), "camera": "door", "kind": kind}
            self.told.append(told | who | fields | {"reason": "score above the threshold"})

    def cameras(self) -> dict[str, dict[str, Any]]:
        numbers = {"age": 0.1, "analyzed": 1200, "dropped": 3, "latency": 0.031, "slowest": 0.21}
        numbers |= {"reconnects": 2, "freezes": 0}
        door = {"state": "connected", "source": "rtsp://camera.local/1", "error": "", "picture": "shown", **numbers}
        lost = {"state": "lost", "age": None, "error": "no frame for 3 s", "picture": ""}
        return {"door": door, "back": door | lost}

    def picture(self, camera: str) -> bytes:
        return film(PINK, 1)[0]

    def events(
        self, *, after: int, kind: str | None = None, limit: int = 100, **_: Any
    ) -> list[tuple[int, dict[str, Any]]]:
        found = [each for each in self.told if each["sequence"] > after and kind in (None, each["kind"])]
        return [(each["sequence"], each) for each in found[:limit]]


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    folder = tmp_path_factory.mktemp("profile")
    clip = folder / "face.mjpeg"
    clip.write_bytes(b"".join(film(TEAL)))
    with browser(folder / "profile", clip) as page:
        yield page


@pytest.fixture(scope="module")
def desk(chromium: Browser, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Desk]:
    folder = tmp_path_factory.mktemp("desk")
    given = {
        "state": folder / "state",
        "models": {"default": {"model": str(write_tiny_ir(folder))}},
        "galleries": {"default": OPEN | {"keep_images": True}},
        "limits": {"workers": 2},
    }
    with Service(Settings.model_validate(given), load=load_squares) as service:
        enrol(service, "Grace Hopper", RED)
        server = make_server(create_app(service, Log()), service.settings)
        with serving(service, server) as port:
            yield Desk(chromium, service, f"http://127.0.0.1:{port}")
            chromium.open("about:blank", width=800)


def test_somebody_is_enrolled_with_consent_and_forgotten_by_the_code(desk: Desk) -> None:
    desk.open("enrol", Role.enrol)
    desk.page.wait_for("document.activeElement.id === 'name'")
    desk.page.type("Ada Lovelace")  # from here to the camera by keyboard alone
    desk.page.press("Enter")
    assert desk.page.evaluate("document.querySelector('video') === null"), "without the tick there is no photo"
    desk.page.evaluate("document.getElementById('name').focus()")
    for key in ("Tab", " ", "Tab", "Enter"):
        desk.page.press(key)
    desk.page.wait_for("document.querySelectorAll('.shots li').length >= 1")
    assert desk.page.barriers() == []
    desk.click("save")
    code = desk.page.wait_for("document.getElementById('told-code')?.textContent")
    desk.page.picture("desk-receipt")
    assert desk.page.barriers() == []
    served = desk.service.gallery(None)
    (ada,) = [each for each in served.store.people() if each.name == "Ada Lovelace"]
    consent = ada.metadata["consent"]
    assert (consent["text_version"], consent["expires"] > consent["recorded"]) == ("edgeface-1/en", True)
    assert 3 <= len(served.store.templates_of(ada.id)) <= 5
    desk.check()

    desk.page.open(f"{desk.address}/forget?lang=en", width=400)
    desk.fill("code", code[:-1])
    desk.click("forget-me")
    desk.page.wait_for("document.querySelector('.wrong').textContent")
    assert "not known" in desk.text
    desk.fill("code", code)
    desk.click("forget-me")
    desk.page.wait_for("document.querySelector('.proof') !== null")
    assert "Erased, and proved" in desk.text
    assert desk.page.barriers() == []
    assert [each.name for each in served.store.people()] == ["Grace Hopper"]


def test_photos_are_taken_with_the_camera_of_the_server_too(desk: Desk) -> None:
    desk.open("enrol", Role.enrol)
    desk.fill("name", "Marie Curie")
    desk.page.evaluate("document.getElementById('agreed').click()")
    desk.page.evaluate("document.querySelector('form.card').requestSubmit()")
    desk.page.wait_for("document.querySelectorAll('#which option').length === 2")
    desk.fill("which", "door")
    desk.page.evaluate("document.getElementById('which').dispatchEvent(new Event('change'))")
    desk.page.wait_for("document.querySelector('.mirror img').naturalWidth === 120")
    desk.click("again")
    desk.click("save")
    desk.page.wait_for("document.getElementById('told-code')?.textContent")
    desk.check()
    marie = desk.service.gallery(None).store.find("Marie Curie")
    assert marie is not None
    desk.service.gallery(None).store.forget(marie.id)


def test_a_wrong_name_is_corrected_and_a_person_forgotten_with_the_proof(desk: Desk) -> None:
    linus = enrol(desk.service, "Linus Pawling", GREEN)
    desk.open("people", Role.enrol)
    desk.fill("search", "lin")
    desk.click("find")
    desk.page.wait_for("document.querySelectorAll('.entry').length === 1")
    desk.page.evaluate("document.querySelector('.entry').click()")
    desk.fill("person-name", "Linus Pauling")
    desk.fill("person-groups", "lab, night")
    desk.click("save")
    desk.page.wait_for("document.querySelector('.person .good')?.textContent === 'Saved.'")
    person = desk.service.gallery(None).store.person(linus)
    assert (person.name, person.labels) == ("Linus Pauling", ("lab", "night"))
    desk.fill("person-name", "Grace Hopper")
    desk.click("save")
    desk.page.wait_for("document.querySelector('.person .wrong').textContent === 'Somebody else has this name.'")
    desk.page.picture("desk-person")
    assert desk.page.barriers() == []
    desk.click("forget-person")
    desk.page.wait_for("document.querySelector('dialog[open]') !== null")
    assert desk.page.barriers() == []
    desk.page.press("Enter")  # the first choice, which keeps
    desk.page.wait_for("document.querySelector('dialog') === null")
    assert desk.service.gallery(None).store.person(linus).name == "Linus Pauling"
    desk.click("forget-person")
    desk.click("yes")
    desk.page.wait_for("document.querySelector('.proof') !== null")
    desk.page.picture("desk-proof")
    assert "Erased, and proved" in desk.text
    assert desk.service.gallery(None).store.find("Linus Pauling") is None
    # 409: the name was taken, which the console shows as a failed request
    assert [each["params"]["entry"]["source"] for each in desk.page.complaints()] == ["network"]


def test_events_are_filtered_and_exported(desk: Desk) -> None:
    desk.open("events", Role.enrol)
    desk.page.wait_for("document.querySelectorAll('tbody tr').length === 4")
    desk.page.evaluate("URL.createObjectURL = (blob) => { window.made = blob.text(); return 'blob:none'; }")
    desk.page.evaluate("HTMLAnchorElement.prototype.click = function () { window.named = this.download; }")
    desk.fill("kind", "known")
    desk.click("find")
    desk.page.wait_for("document.querySelectorAll('tbody tr').length === 1")
    for kind in ("csv", "ndjson"):
        desk.page.evaluate("delete window.made")
        desk.click(kind)
        desk.page.wait_for("window.made !== undefined")
        text = desk.page.call("Runtime.evaluate", expression="made", awaitPromise=True)["result"]["value"]
        assert desk.page.evaluate("named").endswith(kind)
        if kind == "ndjson":
            assert [json.loads(line)["name"] for line in text.splitlines()] == ["=Grace"]
        else:
            (row,) = csv.DictReader(text.splitlines())
            assert (row["kind"], row["name"], row["score"]) == ("known", "'=Grace", "0.75")
    desk.check()


@pytest.mark.parametrize("size", [*SIZES, "wall"])
def test_every_view_fits_in_every_language_and_has_no_barrier(size: str, desk: Desk) -> None:
    for view, shown in {"enrol": "form.card", "people": ".entry", "events": "tbody tr", "health": ".card"}.items():
        desk.open(view, size=size, dark=size == "panel")
        for language in WORDS if size == "phone" else ("de", "ar"):
            desk.fill("language", language)
            desk.page.evaluate("document.getElementById('language').dispatchEvent(new Event('change'))")
            desk.page.wait_for(f"document.querySelector('{shown}') !== null")
            desk.page.picture(f"{size}-{language}-{view}")
            assert desk.page.evaluate("document.documentElement.dir") == ("rtl" if language == "ar" else "ltr")
            assert desk.page.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0, (language, view)
            small = desk.page.evaluate(
                "[...document.querySelectorAll('button, select, input, nav a')].filter((each) => each.offsetParent)"
                ".map((each) => each.type === 'checkbox' ? each.parentElement : each)"
                ".filter((each) => Math.min(each.offsetWidth, each.offsetHeight) < 44).map((each) => each.outerHTML)"
            )
            assert small == [], (language, view)
            if language in ("de", "ar") and size in ("phone", "panel"):  # light, and dark
                assert desk.page.barriers() == [], (language, view)
        desk.check()


def test_a_key_sees_the_views_of_its_role(desk: Desk) -> None:
    desk.open("health", Role.enrol)  # which it may not see: the first one is shown
    views = "[...document.querySelectorAll('nav a')].map((each) => each.hash).join()"
    assert desk.page.evaluate(views) == "#enrol,#people,#events"
    desk.page.evaluate(f"sessionStorage.setItem('edgeface-key', '{desk.keys[Role.recognise]}')")
    desk.page.open(f"{desk.address}/desk?lang=en", width=800)
    desk.page.wait_for("document.getElementById('why').textContent.startsWith('This key may not')")
    assert desk.page.evaluate("sessionStorage.length") == 0
    assert desk.page.barriers() == []


def test_every_word_is_in_every_language_and_used() -> None:
    source = "".join(file.read_text() for file in FOLDER.iterdir() if file.name != "words.js")
    literal = set(re.findall(r"""["`]([a-z][a-z-]*)["`]""", source))
    made = {f"{kind}-detail" for kind in ("wait", "known", "unknown", "inconclusive", "spoof", "closed")}
    made |= {f"kind-{kind}" for kind in ("known", "unknown", "inconclusive", "spoof")}
    made |= {f"camera-{state}" for state in ("connected", "frozen", "lost")}
    made |= {word for word in WORDS["en"] if word.startswith("problem-")}
    made |= {"dir", "called", *("wait", "unknown", "inconclusive", "spoof", "known", "closed")}
    assert WORDS["en"].keys() - literal - made == set()
    for language, words in WORDS.items():
        for name, text in words.items():
            assert set(re.findall(r"\{\w+\}", text)) == set(re.findall(r"\{\w+\}", WORDS["en"][name])), (language, name)
