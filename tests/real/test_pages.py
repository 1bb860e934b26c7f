"""The golden path in a real browser with the real models: enrol, recognise, forget, not know; and refuse a photo."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import httpx
import pytest
from browser import CHROMIUM, browser
from kiosk_door import wait_until
from real.test_watch import film

pytest.importorskip("fastapi", reason="the extra 'serve' is not installed")
pytest.importorskip("httptools", reason="the extra 'serve' is not installed")
from unit.serve.conftest import serving
from unit.serve.test_desk import Desk

from edgeface.kiosk.doorkeeper import Doorkeeper, KioskServiceSettings
from edgeface.serve.app import create_app
from edgeface.serve.keys import Role
from edgeface.serve.openapi import PREFIX
from edgeface.serve.server import make_server
from edgeface.serve.service import Service

pytestmark = [
    pytest.mark.real,
    pytest.mark.slow,
    pytest.mark.timeout(300),
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed"),
]
PERSON = "Amelia_Vega"
STATE = "document.body.dataset.state"


def write_clip(path: Path, photos: list[Any], *, frames: int) -> Path:
    """Write a clip for the browser's camera."""
    path.write_bytes(b"".join(cv2.imencode(".jpg", each)[1].tobytes() for each in film(photos, frames=frames)))
    return path


def before_a_wall(photo: Any) -> Any:
    """Put a photo of LFW into a picture as a camera takes it, in which there is room around the face."""
    large = cv2.resize(photo, (476, 476), interpolation=cv2.INTER_CUBIC)
    return cv2.copyMakeBorder(large, 2, 2, 82, 82, cv2.BORDER_REFLECT_101)


@pytest.fixture(scope="module")
def service(
    real_ir: Path, liveness_irs: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Service, Doorkeeper, int]]:
    folder = tmp_path_factory.mktemp("pages")
    decision = {"liveness_models": liveness_irs, "cooldown": 1.0}
    given = {
        "state": folder / "state",
        "models": {"default": {"model": str(real_ir), "min_size": 64}},
        "cache": folder / "cache",
        "kiosk": {"cameras": {"door": {"source": "browser"}}, "decision": decision, "names": True},
    }
    with (
        Service(KioskServiceSettings.model_validate(given)) as opened,
        Doorkeeper(opened) as keeper,
        serving(opened, make_server(create_app(opened, keeper), opened.settings)) as port,
    ):
        yield opened, keeper, port


def stand_at_the_door(desk: Desk, *states: str) -> str:
    """Open the page of the door, wait until it shows one of these states, and return its text."""
    desk.page.open(f"{desk.address}/desk", width=800)
    desk.page.evaluate(f"sessionStorage.setItem('edgeface-key', '{desk.keys[Role.recognise]}')")
    desk.page.open(f"{desk.address}/door?camera=door&lang=en", width=800)
    desk.page.call("Emulation.setDeviceMetricsOverride", width=800, height=480, deviceScaleFactor=1, mobile=False)
    shown = desk.page.wait_for(f"{list(states)}.includes({STATE}) && document.body.innerText", 60)
    desk.page.picture(f"door-{states[0]}")
    desk.check()
    return str(shown)


def test_who_is_enrolled_is_recognised_until_forgotten(
    data: Path, tmp_path: Path, service: tuple[Service, Doorkeeper, int]
) -> None:
    opened, keeper, port = service
    files = sorted((data / "lfw/images" / PERSON).glob("*.jpg"))[:3]  # on the next one is somebody else, too
    photos = [before_a_wall(cv2.imread(str(file))) for file in files]
    clip = write_clip(tmp_path / "person.mjpeg", photos, frames=45)
    with browser(tmp_path / "profile", clip) as page:
        desk = Desk(page, opened, f"http://127.0.0.1:{port}")
        desk.open("enrol", Role.enrol)
        desk.fill("name", "Amelia Vega")
        page.evaluate("document.getElementById('agreed').click()")
        page.evaluate("document.querySelector('form.card').requestSubmit()")
        page.wait_for("document.querySelectorAll('.shots li').length >= 1", 60)
        page.picture("enrol-photos")
        page.wait_for("document.querySelector('button[data-word=save]:not(:disabled)') !== null", 60)
        desk.click("save")
        code = page.wait_for("document.getElementById('told-code')?.textContent", 60)
        desk.check()
        assert "Amelia Vega" in stand_at_the_door(desk, "known")
        page.open(f"{desk.address}/forget?lang=en", width=800)
        desk.fill("code", code)
        desk.click("forget-me")
        page.wait_for("document.querySelector('.proof.good') !== null", 30)
        desk.check()
        wait_until(lambda: keeper.cameras()["door"]["state"] == "lost")  # who stays before it is not decided on again
        assert "Not recognised" in stand_at_the_door(desk, "unknown")


@pytest.mark.parametrize("name", ["F1", "F2"])
def test_a_photo_of_an_enrolled_person_is_refused_at_the_door(
    name: str, data: Path, tmp_path: Path, service: tuple[Service, Doorkeeper, int]
) -> None:
    opened, _, port = service
    file = data / "liveness" / f"image_{name}.jpg"
    clip = write_clip(tmp_path / "photo.mjpeg", [cv2.imread(str(file))], frames=30)
    with browser(tmp_path / "profile", clip) as page:
        desk = Desk(page, opened, f"http://127.0.0.1:{port}")
        answer = httpx.post(
            f"{desk.address}{PREFIX}/galleries/default/people",
            headers={"x-api-key": desk.keys[Role.enrol]},
            files={"photo": file.read_bytes()},
            data={"name": name},
            timeout=30,
        )
        assert answer.status_code == 201, answer.text
        shown = stand_at_the_door(desk, "spoof", "known")
        assert "A photo or a screen was seen" in shown
        assert name not in shown
