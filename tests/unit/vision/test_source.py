"""Every frame of files, the newest of live sources, and a thread that always ends.

What cameras do is played by `Script`, a capture that does what a list says, and once by a server on this machine.
"""

from __future__ import annotations

import contextlib
import gc
import http.server
import threading
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest

from edgeface.errors import ImageError, InputError, MissingError
from edgeface.files import FileIdentity
from edgeface.vision.image import DecodedFile
from edgeface.vision.listing import list_photos
from edgeface.vision.source import Backoff, Frame, FrameSource, open_source

pytestmark = pytest.mark.timeout(20)
QUICK = Backoff(first=0.001, longest=0.004)


class Script:
    """A capture: numbers are gray frames, events are awaited, ``lost`` ends a connection, ``refused`` opens none."""

    def __init__(self, *connections: list[int | str | threading.Event], pause: float = 0.0) -> None:
        self._connections, self._pause = iter(connections), pause
        self._now: list[int | str | threading.Event] = []
        self.opened = self.released = 0

    def __call__(self, target: str | int) -> Script:
        self.opened += 1
        self._now = list(next(self._connections, ["refused"]))
        return self

    def isOpened(self) -> bool:  # noqa: N802
        return self._now[:1] != ["refused"]

    def read(self) -> tuple[bool, np.ndarray | None]:
        time.sleep(self._pause)
        while self._now and isinstance(self._now[0], threading.Event):
            assert self._now.pop(0).wait(10)
        if not self._now or self._now[0] == "lost":
            return False, None
        return True, np.full((4, 6, 3), self._now.pop(0), np.uint8)

    def get(self, prop: int, /) -> float:
        return 0.0

    def release(self) -> None:
        self.released += 1


def wait_until(true: Callable[[], bool]) -> None:
    until = time.monotonic() + 10
    while not true():
        assert time.monotonic() < until
        time.sleep(0.005)


def reader_threads() -> list[threading.Thread]:
    return [each for each in threading.enumerate() if each.name == "edgeface-source"]


@pytest.fixture(autouse=True)
def _no_thread_is_left() -> None:
    yield
    wait_until(lambda: not reader_threads())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("b.png", "a.jpg", "sub/c.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        cv2.imwrite(str(tmp_path / name), np.full((8, 8, 3), 100, np.uint8))
    (tmp_path / "notes.txt").write_text("no picture")
    return tmp_path


def test_a_folder_gives_its_pictures_and_those_below_in_order(folder: Path) -> None:
    with open_source(folder) as frames:
        found = list(frames)
    assert [Path(each.source).name for each in found] == ["a.jpg", "b.png", "c.png"]
    assert [each.index for each in found] == [0, 1, 2]
    assert [each.timestamp for each in found] == [0.0, 1.0, 2.0]


def test_a_pattern_gives_what_it_matches(folder: Path) -> None:
    assert [each.name for each in list_photos([str(folder / "*.png")]).files] == ["b.png"]
    assert [each.name for each in list_photos([str(folder / "**/*.png")]).files] == ["b.png", "c.png"]


@pytest.mark.parametrize("place", ["nothing", "*.gif", "empty"])
def test_a_place_without_pictures_is_named(tmp_path: Path, place: str) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"expected .*, found none; check the path"):
        open_source(tmp_path / place)


def test_an_address_of_a_photo_has_to_be_downloaded_first() -> None:
    with pytest.raises(InputError, match="found an address; download the photos first"):
        list_photos(["https://host/a.jpg"])


def test_a_bad_picture_ends_the_source_with_its_error_or_is_told_and_skipped(folder: Path) -> None:
    (folder / "a.jpg").write_bytes(b"\xff\xd8 broken")
    with open_source(folder) as frames, pytest.raises(ImageError, match=r"a\.jpg"):
        list(frames)
    told: list[str] = []
    with open_source(folder, on_bad=lambda path, error: told.append(path.name)) as frames:
        assert [each.index for each in frames] == [1, 2]
    assert told == ["a.jpg"]


def test_reading_waits_for_a_slow_consumer_and_loses_nothing() -> None:
    ahead = []

    def read(stop: threading.Event):
        for index in range(50):
            ahead.append(index)
            yield Frame(np.zeros((1, 1, 3), np.uint8), index, float(index), "made")

    with FrameSource(read, live=False, capacity=3) as frames:
        wait_until(lambda: len(ahead) == 4)  # three wait, one is in hand
        time.sleep(0.05)
        assert len(ahead) == 4
        assert [each.index for each in frames] == list(range(50))
    assert frames.dropped == 0


def test_a_frame_that_leaves_no_room_for_another_is_handed_to_the_consumer() -> None:
    ahead = []

    def read(stop: threading.Event):
        for index in range(9):
            ahead.append(index)
            yield Frame(np.broadcast_to(np.uint8(0), (3000, 4000, 3)), index, float(index), "made")

    with FrameSource(read, live=False, capacity=4) as frames:
        wait_until(lambda: len(ahead) == 1)  # 12 megapixels are in hand
        time.sleep(0.05)
        assert len(ahead) == 1
        assert [each.index for each in frames] == list(range(9))


@pytest.mark.parametrize(("sides", "held"), [((3000, 4000), 2), ((300, 400), 6)])
def test_photos_that_are_decoded_ahead_of_the_consumer_are_two_or_four_more_that_are_small(
    sides: tuple[int, int], held: int
) -> None:
    begun: list[Path] = []
    image = np.broadcast_to(np.uint8(0), (*sides, 3))

    def read(path: Path) -> DecodedFile:
        begun.append(path)
        return image, FileIdentity(0, 0, ""), 1

    photos = [Path(f"{number}.jpg") for number in range(12)]
    with open_source(photos, capacity=4, read_photo=read) as frames:
        wait_until(lambda: len(begun) >= held)
        time.sleep(0.05)
        assert len(begun) == held
        assert [each.source for each in frames] == list(map(str, photos))
    assert begun == photos


def test_photos_come_in_order_whichever_is_decoded_first(tmp_path: Path) -> None:
    for name, side in (("a.png", 900), ("b.png", 2), ("c.png", 700), ("d.png", 2), ("e.png", 3)):
        cv2.imwrite(str(tmp_path / name), np.full((side, side, 3), 100, np.uint8))
    (tmp_path / "d.png").write_bytes(b"broken")
    told: list[str] = []
    with open_source(tmp_path, on_bad=lambda path, error: told.append(path.name)) as frames:
        assert [(each.index, len(each.image)) for each in frames] == [(0, 900), (1, 2), (2, 700), (4, 3)]
    assert told == ["d.png"]


def test_a_live_source_gives_the_newest_frame_and_counts_the_others() -> None:
    script = Script([0, taken := threading.Event(), *range(1, 100), "lost"], pause=0.001)
    with open_source("rtsp://somewhere/1", open_capture=script, backoff=Backoff(first=60, longest=60)) as frames:
        first = next(frames)
        taken.set()
        wait_until(lambda: script.released == 1)
        last = next(frames)
    assert first.index == 0
    assert last.index == 99 == int(last.image[0, 0, 0])
    assert last.timestamp > first.timestamp
    assert frames.dropped == 98


def test_a_lost_connection_is_opened_again_and_numbers_go_on() -> None:
    taken = [threading.Event(), threading.Event()]
    script = Script([1, taken[0], 2, taken[1], "lost"], ["refused"], ["refused"], [3, "lost"])
    with open_source("rtsp://user:secret@camera/1", open_capture=script, backoff=QUICK) as frames:
        found = []
        for event in (*taken, threading.Event()):
            found.append(next(frames))
            event.set()
    assert [int(each.image[0, 0, 0]) for each in found] == [1, 2, 3]
    assert [each.index for each in found] == [0, 1, 2]
    assert script.opened >= 4
    assert script.released == script.opened
    assert found[0].source == "rtsp://camera/1"


def test_after_the_last_attempt_the_consumer_is_told() -> None:
    script = Script()
    source = open_source(7, open_capture=script, backoff=Backoff(first=0.001, longest=0.002, attempts=3))
    with source as frames, pytest.raises(MissingError, match="camera 7: no frames in 3 attempts"):
        next(frames)
    assert script.opened == script.released == 3


def test_waits_double_up_to_the_longest_and_are_shortened_by_at_most_half() -> None:
    backoff = Backoff(first=1, longest=10)
    for failures, full in enumerate([1, 2, 4, 8, 10, 10, 10], start=1):
        assert all(full / 2 <= backoff.delay(failures) <= full for _ in range(20))
    assert backoff.delay(100_000) <= 10


@pytest.mark.alone
def test_closing_interrupts_a_long_wait_at_once() -> None:
    source = open_source("rtsp://camera", open_capture=Script(), backoff=Backoff(first=1000, longest=1000))
    started = time.monotonic()
    source.close()
    assert time.monotonic() - started < 2
    assert list(source) == []


def test_closing_frees_a_consumer_that_waits_in_another_thread() -> None:
    source = open_source("rtsp://camera", open_capture=Script(), backoff=Backoff(first=1000, longest=1000))
    answers: list[list[Frame]] = []
    waiting = threading.Thread(target=lambda: answers.append(list(source)))
    waiting.start()
    source.close()
    waiting.join(5)
    assert answers == [[]]


def test_a_forgotten_source_ends_its_thread() -> None:
    source = open_source("rtsp://camera", open_capture=Script([*range(250)] * 4, pause=0.001), backoff=QUICK)
    next(source)
    del source
    gc.collect()
    wait_until(lambda: not reader_threads())


def test_an_unforeseen_error_of_the_reader_reaches_the_consumer() -> None:
    def read(stop: threading.Event):
        yield Frame(np.zeros((1, 1, 3), np.uint8), 0, 0.0, "made")
        raise ZeroDivisionError("driver")

    with FrameSource(read, live=False) as frames:
        next(frames)
        with pytest.raises(ZeroDivisionError, match="driver"):
            next(frames)
        assert list(frames) == []


def test_a_file_that_is_no_video_is_named(tmp_path: Path) -> None:
    (tmp_path / "film.mp4").write_bytes(b"not a film")
    with open_source(tmp_path / "film.mp4") as frames, pytest.raises(InputError, match=r"film\.mp4: expected a video"):
        next(frames)


def test_a_video_without_times_counts_them_by_its_rate(tmp_path: Path) -> None:
    (tmp_path / "film.mp4").touch()
    with open_source(tmp_path / "film.mp4", open_capture=Script([1, 2, 3])) as frames:
        assert [each.timestamp for each in frames] == pytest.approx([0, 0.04, 0.08])


class _Camera(http.server.BaseHTTPRequestHandler):
    """A network camera: ten JPEGs a connection, gray by the number of the connection, and then it hangs up."""

    connections = 0

    def do_GET(self) -> None:
        _Camera.connections += 1
        self.send_response(200)
        self.send_header("Content-Type", "multipart/x-mixed-replace; boundary=frame")
        self.end_headers()
        jpeg = cv2.imencode(".jpg", np.full((64, 96, 3), 40 * _Camera.connections, np.uint8))[1].tobytes()
        part = b"--frame\r\nContent-Type: image/jpeg\r\nContent-Length: %d\r\n\r\n%s\r\n" % (len(jpeg), jpeg)
        with contextlib.suppress(OSError):  # the viewer left
            for _ in range(10):
                self.wfile.write(part)
                time.sleep(0.02)

    def log_message(self, *_: object) -> None:
        pass


def test_a_network_camera_that_hangs_up_is_opened_again() -> None:
    if "FFMPEG" not in cv2.getBuildInformation():
        pytest.skip("this OpenCV was built without FFmpeg, which reads network streams")
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Camera)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}/video?user=me&password=secret"
    frames: list[Frame] = []
    try:
        with open_source(address, backoff=QUICK) as source:
            for frame in source:
                frames.append(frame)
                if _Camera.connections == 3:
                    break
    finally:
        server.shutdown()
        server.server_close()
    grays = [int(frame.image[0, 0, 0]) for frame in frames]
    assert grays == sorted(grays)
    assert {40, 80} <= {round(gray / 40) * 40 for gray in grays}
    times, numbers = [frame.timestamp for frame in frames], [frame.index for frame in frames]
    assert times == sorted(set(times))
    assert numbers == sorted(set(numbers))
    assert {frame.source for frame in frames} == {f"http://127.0.0.1:{server.server_port}/video"}


def test_a_path_is_no_camera_and_cameras_count_from_0(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("7").mkdir()
    cv2.imwrite("7/a.png", np.full((8, 8, 3), 100, np.uint8))
    script = Script([1, "lost"])
    with open_source(Path("7"), open_capture=script) as frames:
        assert [Path(frame.source).name for frame in frames] == ["a.png"]
    with open_source("7", open_capture=script, backoff=QUICK) as frames:
        assert next(frames).source == "camera 7"
    with pytest.raises(InputError, match="camera -1: expected a number from 0"):
        open_source(-1, open_capture=script)


def test_a_film_in_a_list_of_pictures_is_a_bad_picture(tmp_path: Path) -> None:
    (tmp_path / "film.mp4").write_bytes(bytes(12) + b"no film either")
    told: list[str] = []
    with open_source([tmp_path / "film.mp4"], on_bad=lambda path, _: told.append(path.name)) as frames:
        assert list(frames) == []
    assert told == ["film.mp4"]


def test_a_gray_camera_gives_three_channels() -> None:
    class Gray(Script):
        def read(self) -> tuple[bool, np.ndarray | None]:
            ok, image = super().read()
            return ok, None if image is None else image[:, :, 0]

    with open_source(0, open_capture=Gray([9]), backoff=QUICK) as frames:
        assert next(frames).image.shape == (4, 6, 3)


def test_a_live_source_goes_on_after_empty_frames_and_opens_a_camera_anew_that_gives_nothing_else() -> None:
    class Faulty(Script):
        def read(self) -> tuple[bool, np.ndarray | None]:
            ok, image = super().read()
            value = None if image is None else image[0, 0, 0]
            return ok, {0: np.zeros((0, 0, 3), np.uint8), 1: None}.get(value, image)

    camera = Faulty([7, 0, 8, 1, 9], [0] * 50, [6, seen := threading.Event()])
    with open_source("rtsp://camera/1", open_capture=camera, backoff=QUICK) as frames:
        shown = []
        while 6 not in shown:
            shown.append(next(frames).image[0, 0, 0])
        assert camera.opened == 3
        seen.set()
    assert set(shown) <= {7, 8, 9, 6}


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        ("rtsp://user:s@cret@camera:554/1", "rtsp://camera:554/1"),
        ("http://camera/video.mjpg?user=me&password=secret", "http://camera/video.mjpg"),
        ("rtsp://camera/user=me&password=secret&channel=1", "rtsp://camera/channel=1"),
        ("rtsp://camera/live/passage@2", "rtsp://camera/live/passage@2"),
    ],
)
def test_frames_do_not_tell_the_camera_s_password(address: str, shown: str) -> None:
    script = Script([1])
    with open_source(address, open_capture=script, backoff=QUICK) as frames:
        assert next(frames).source == shown
