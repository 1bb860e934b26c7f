"""A door with the real models: who is known, which photos are refused, and how soon."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

import edgeface
from edgeface.analyzer import FaceAnalyzer
from edgeface.gallery.index.live import LiveIndex
from edgeface.gallery.opening import create_gallery
from edgeface.gallery.records import NewTemplate
from edgeface.kiosk.outcome import VisitEvent
from edgeface.kiosk.settings import WatchSettings
from edgeface.kiosk.watch import DoorWatch

pytestmark = pytest.mark.real
RATE = 15


@pytest.fixture(scope="module")
def analyzer(real_ir: Path, liveness_irs: Path) -> Iterator[FaceAnalyzer]:
    with edgeface.load(real_ir, liveness=liveness_irs, min_size=64) as loaded:
        yield loaded


def film(photos: list[Any], *, frames: int) -> Iterator[Any]:
    """Show each photo for some frames, moved by a few pixels and with a camera's noise."""
    height, width = photos[0].shape[:2]
    rng = np.random.default_rng(1)
    for number in range(frames * len(photos)):
        shift = np.array([[1, 0, 2 * np.sin(number / 7)], [0, 1, 2 * np.cos(number / 5)]], np.float32)
        frame = cv2.warpAffine(photos[number // frames], shift, (width, height), borderMode=cv2.BORDER_REPLICATE)
        yield np.clip(frame + rng.normal(0, 2, frame.shape), 0, 255).astype(np.uint8)


def write_clip(path: Path, photos: list[Any], *, frames: int) -> str:
    height, width = photos[0].shape[:2]
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), RATE, (width, height))
    for frame in film(photos, frames=frames):
        writer.write(frame)
    writer.release()
    return str(path)


def watch(folder: Path, analyzer: FaceAnalyzer, clip: str, enrolled: list[Any], **decision: Any) -> list[VisitEvent]:
    settings = WatchSettings.model_validate({"cameras": {"door": {"source": clip}}, "decision": decision})
    with create_gallery(folder / "people.gallery", contract=analyzer.contract, key=None) as store:
        for number, photo in enumerate(enrolled):
            store.add_person(f"Person {number}", templates=[NewTemplate(embedding=analyzer.embed(photo))])
        with DoorWatch(settings, analyzer, LiveIndex(store)) as watching:
            return list(watching)


@pytest.mark.parametrize(("name", "kind"), [("F1", "spoof"), ("F2", "spoof"), ("T1", "known")])
def test_a_photo_of_an_enrolled_person_is_refused_and_the_person_is_known(
    data: Path, tmp_path: Path, analyzer: FaceAnalyzer, name: str, kind: str
) -> None:
    photo = cv2.imread(str(data / "liveness" / f"image_{name}.jpg"))
    clip = write_clip(tmp_path / "clip.avi", [photo], frames=2 * RATE)
    events = watch(tmp_path, analyzer, clip, [photo])
    assert [event.kind.value for event in events] == [kind]
    assert (events[0].name == "Person 0") == (kind == "known")
    if kind != "known":  # the same photo opens a door that does not ask for liveness: what refused it was liveness
        (tmp_path / "open").mkdir()
        (event,) = watch(tmp_path / "open", analyzer, clip, [photo], liveness=False)
        assert event.name == "Person 0"


def test_a_person_on_other_photos_is_known_within_a_second_of_the_first_usable_face(
    data: Path, tmp_path: Path, analyzer: FaceAnalyzer
) -> None:
    person = data / "lfw" / "images" / "George_W_Bush"
    photos = [cv2.imread(str(path)) for path in sorted(person.glob("*.jpg"))[:2]]
    clip = write_clip(tmp_path / "clip.avi", photos[1:], frames=RATE)  # one second, and no more
    events = watch(tmp_path, analyzer, clip, [photos[0]], liveness=False)
    assert [event.name for event in events] == ["Person 0"]
