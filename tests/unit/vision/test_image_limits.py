"""Small files that would make OpenCV allocate or compute much: refused by their header, at no cost."""

from __future__ import annotations

import struct
import subprocess
import sys
import time
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest

from edgeface.errors import ImageError
from edgeface.vision import image
from edgeface.vision.headers import read_header
from edgeface.vision.image import read_image
from edgeface.vision.load import load_detector

HUGE = 6000


def peak_mb(*, anew: bool = False) -> int:
    """Highest resident memory of this process so far, or from now on."""
    if anew:
        Path("/proc/self/clear_refs").write_text("5")
    return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) >> 10


def tiff(*fields: tuple[int, int, int | bytes]) -> bytes:
    """A TIFF of fields (tag, type, value); those that hold `bytes` hold many values, and 273 and 324 are filled in."""
    sizes = {1: 1, 3: 2, 4: 4, 9: 4}

    def write(offset: int) -> bytes:
        entries, beyond = b"", b""
        for tag, kind, value in fields:
            raw = value if isinstance(value, bytes) else struct.pack("<I", value)
            if tag in (273, 324):
                raw = struct.pack("<I", offset) * (len(raw) // 4)
            if len(raw) > 4:
                place = 8 + 2 + 12 * len(fields) + 4 + len(beyond)
                entries += struct.pack("<HHII", tag, kind, len(raw) // sizes[kind], place)
                beyond += raw
            else:
                entries += struct.pack("<HHI", tag, kind, 1) + raw
        return b"II*\0\x08\0\0\0" + struct.pack("<H", len(fields)) + entries + bytes(4) + beyond

    return write(len(write(0)))


def tiff_photo(width: int, height: int, *, rows: int = 64, extra: tuple[tuple[int, int, int], ...] = ()) -> bytes:
    """Black, deflated, in strips that all are one; `extra` fields go before the others that follow the size."""
    count, strip = -(-height // rows), zlib.compress(bytes(width * rows * 3), 9)
    size = [(256, 4, width), (257, 4, height)]
    others = [(258, 3, struct.pack("<HHH", 8, 8, 8)), (259, 3, 8), (262, 3, 2)]
    strips = [(273, 4, bytes(4 * count)), (277, 3, 3), (278, 4, rows), (279, 4, struct.pack("<I", len(strip)) * count)]
    return tiff(*size, *extra, *others, *strips) + strip


def tiff_tile(side: int, tile: int) -> bytes:
    """A black image of one deflated tile."""
    body = zlib.compress(bytes(tile * tile * 3), 9)
    others = [(258, 3, struct.pack("<HHH", 8, 8, 8)), (259, 3, 8), (262, 3, 2), (277, 3, 3)]
    tiles = [(322, 4, tile), (323, 4, tile), (324, 4, bytes(4)), (325, 4, len(body))]
    return tiff((256, 4, side), (257, 4, side), *others, *tiles) + body


def webp_canvas(flags: int) -> bytes:
    """A WebP whose canvas is of 10 x 10, before an image, or a frame, of 6,000 x 6,000."""
    image = cv2.imencode(".webp", np.zeros((HUGE, HUGE, 3), np.uint8), [cv2.IMWRITE_WEBP_QUALITY, 101])[1].tobytes()[
        12:
    ]
    if flags:
        side = (HUGE - 1).to_bytes(3, "little")
        frame = bytes(6) + side + side + bytes(4) + image
        image = b"ANIM" + struct.pack("<I", 6) + bytes(6) + b"ANMF" + struct.pack("<I", len(frame)) + frame
    canvas = b"VP8X" + struct.pack("<IB", 10, flags) + bytes(3) + (9).to_bytes(3, "little") * 2
    return b"RIFF" + struct.pack("<I", len(canvas + image) + 4) + b"WEBP" + canvas + image


@pytest.mark.parametrize(
    ("make", "message"),
    [
        pytest.param(
            lambda: tiff_photo(HUGE, HUGE, extra=((256, 4, 10), (257, 4, 10))),
            "damaged TIFF: expected one value of field 256",
            id="a TIFF of two sizes",
        ),
        pytest.param(
            lambda: tiff_photo(HUGE, HUGE, extra=((256, 9, 10),)), "one value of field 256", id="a second size signed"
        ),
        pytest.param(lambda: tiff_tile(100, HUGE), "tiles no larger than its 100x100 pixels", id="a TIFF's large tile"),
        pytest.param(lambda: webp_canvas(0), "damaged WebP", id="a WebP's small canvas"),
        pytest.param(lambda: webp_canvas(2), "damaged WebP", id="a WebP's small canvas, animated"),
        pytest.param(lambda: b"P6 6000#6000 255\n1 255\n" + bytes(18000), "damaged PNM", id="a PNM's glued comment"),
        pytest.param(
            lambda: b"P6\n#\r6000 6000 255\n10 10 255\n" + bytes(18000),
            "truncated PNM",
            id="a PNM's comment that a carriage return ends",
        ),
    ],
)
def test_what_opencv_would_take_for_another_size_is_refused_before_it_is_decoded(make, message):
    data = make()
    before = peak_mb(anew=True)
    with pytest.raises(ImageError, match=message):
        read_image(data)
    assert peak_mb() - before < 64


def test_strips_and_tiles_that_reach_beyond_an_image_are_read():
    assert read_image(tiff_photo(30, 20)).shape == (20, 30, 3)
    assert read_image(tiff_tile(100, 256)).shape == (100, 100, 3)


def progressive(side: int, repeats: int) -> bytes:
    """A JPEG whose last scan, of the first component, is there `repeats` times more."""
    data = cv2.imencode(".jpg", np.zeros((side, side, 3), np.uint8), [cv2.IMWRITE_JPEG_PROGRESSIVE, 1])[1].tobytes()
    last = data.rindex(b"\xff\xda")
    return data[:-2] + data[last:-2] * repeats + data[-2:]


def test_a_large_jpeg_may_have_fewer_scans_than_a_small_one():
    assert read_header(progressive(200, 90)).width == 200
    assert read_header(progressive(5000, 6)).width == 5000
    with pytest.raises(ImageError, match="at most 12 scans of a component for 5000x5000 pixels"):
        read_image(progressive(5000, 90))
    with pytest.raises(ImageError, match="at most 100 scans of a component for 200x200 pixels"):
        read_image(progressive(200, 100))


@pytest.mark.parametrize(
    "data",
    [
        b"\xff\xd8" + b"\xff\xfe\0\2" * 2_000_000,
        cv2.imencode(".png", np.zeros((9, 9), np.uint8))[1].tobytes()[:33]
        + struct.pack(">I4sI", 0, b"teSt", zlib.crc32(b"teSt")) * 10**6,
        b"RIFF" + struct.pack("<I4s4sI", 8_000_022, b"WEBP", b"VP8X", 10) + bytes(10) + b"test\0\0\0\0" * 10**6,
    ],
    ids=["JPEG", "PNG", "WebP"],
)
def test_a_file_of_a_million_empty_parts_is_refused_at_once(data):
    started = time.process_time()
    with pytest.raises(ImageError, match="at most 100,000 segments"):
        read_image(data)
    assert time.process_time() - started < 1


_SHORT = """
import resource, sys
import cv2, numpy as np
import edgeface.vision.image as image
from edgeface.errors import ImageError

data = cv2.imencode(".jpg", np.zeros((6000, 8000, 3), np.uint8))[1].tobytes()
used = int(open("/proc/self/status").read().split("VmSize:")[1].split()[0]) << 10
resource.setrlimit(resource.RLIMIT_AS, (used + (180 << 20),) * 2)
for available in (image.memory_available, lambda: None):
    image.memory_available = available
    try:
        image.read_image(data)
    except ImageError as error:
        print(error)
"""


def test_a_photo_that_does_not_fit_into_memory_is_named_before_and_while_it_is_decoded():
    done = subprocess.run([sys.executable, "-c", _SHORT], capture_output=True, text=True, check=True)
    checked, tried = done.stdout.splitlines()
    needs = "expected about 275 MB of free memory to decode 8000x6000 pixels, found "
    assert checked.startswith(needs + "1")
    assert checked.endswith(" MB left of what this process may use; scale the photo down, or allow more memory")
    assert tried == needs + "less; scale the photo down, or allow more memory"


@pytest.mark.slow
def test_a_search_for_faces_that_does_not_fit_into_memory_is_refused(monkeypatch):
    monkeypatch.setattr(image, "memory_available", lambda: 200 << 20)
    photo = np.zeros((2000, 3000, 3), np.uint8)
    with load_detector("mtcnn", min_size=20) as detector:
        assert len(detector.detect([photo])[0]) == 0
    with (
        load_detector("mtcnn", min_size=6) as detector,
        pytest.raises(ImageError, match=r"about 248 MB .* to find faces from 6 pixels on in a photo of 6\.0"),
    ):
        detector.detect([photo])


@pytest.mark.parametrize(
    ("suffix", "options", "pixels", "decoding"),
    [
        (".jpg", (), (30, 20, 3), 6),
        (".jpg", (cv2.IMWRITE_JPEG_PROGRESSIVE, 1), (30, 20, 3), 9),
        (".png", (), (30, 20, 3), 6),
        (".png", (), (30, 20, 4), 8),
        (".webp", (), (30, 20, 3), 12),
        (".bmp", (), (30, 20, 3), 8),
        (".ppm", (), (30, 20, 3), 6),
    ],
)
def test_the_header_tells_what_decoding_needs(suffix, options, pixels, decoding):
    assert read_header(cv2.imencode(suffix, np.zeros(pixels, np.uint8), options)[1].tobytes()).decoding == decoding
