"""Every form that a picture comes in: what is read, what is refused, and how it is said."""

from __future__ import annotations

import io
import struct
import warnings
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from profiles import examples

from edgeface.errors import ImageError
from edgeface.vision.headers import read_header
from edgeface.vision.image import ImageLimits, read_image, read_photo_file


@pytest.fixture(scope="module")
def picture() -> np.ndarray:
    """Smooth (60, 80, 3): what JPEG keeps to within a few levels; no two corners alike."""
    y, x = np.mgrid[0:60, 0:80].astype(np.float32)
    return np.stack([x * 3, y * 4, (x + y) * 1.5], axis=2).astype(np.uint8)


def encode(picture: np.ndarray, suffix: str, *options: int) -> bytes:
    return cv2.imencode(suffix, picture, options)[1].tobytes()


def exif(orientation: int, order: str = "<", *, kind: int = 3, count: int = 1, code: str = "H") -> bytes:
    magic = b"II*\0" if order == "<" else b"MM\0*"
    value = struct.pack(order + code, orientation).ljust(4, b"\0")
    return magic + struct.pack(f"{order}IHHHI", 8, 1, 0x0112, kind, count) + value + bytes(4)


def with_exif(jpeg: bytes, *blocks: bytes) -> bytes:
    bodies = [b"Exif\0\0" + block for block in blocks]
    added = b"".join(b"\xff\xe1" + struct.pack(">H", len(body) + 2) + body for body in bodies)
    return jpeg[:2] + added + jpeg[2:]


def png_chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


@pytest.mark.parametrize(
    ("suffix", "options"), [(".png", ()), (".bmp", ()), (".webp", (cv2.IMWRITE_WEBP_QUALITY, 101))]
)
def test_lossless_formats_come_back_as_they_were(picture: np.ndarray, suffix: str, options: tuple[int, ...]):
    assert np.array_equal(read_image(encode(picture, suffix, *options)), picture)


@pytest.mark.parametrize("progressive", [0, 1])
def test_baseline_and_progressive_jpeg_are_close(picture: np.ndarray, progressive: int):
    data = encode(picture, ".jpg", cv2.IMWRITE_JPEG_QUALITY, 95, cv2.IMWRITE_JPEG_PROGRESSIVE, progressive)
    assert (b"\xff\xc2" in data) == bool(progressive)
    assert np.abs(read_image(data).astype(int) - picture).mean() < 2


def test_files_bytes_and_arrays_give_one_result(picture: np.ndarray, tmp_path: Path):
    path = tmp_path / "no_suffix_needed"
    path.write_bytes(encode(picture, ".png"))
    assert np.array_equal(read_image(path), picture)
    assert np.array_equal(read_image(str(path)), picture)
    assert read_image(picture) is picture


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp"])
def test_gray_becomes_three_equal_channels(picture: np.ndarray, suffix: str):
    image = read_image(encode(picture[:, :, 0], suffix))
    assert image.shape == (60, 80, 3)
    assert np.array_equal(image[:, :, 0], image[:, :, 2])


def test_sixteen_bits_keep_black_white_and_every_level(picture: np.ndarray):
    assert np.array_equal(read_image(encode(picture.astype(np.uint16) * 257, ".png")), picture)


@pytest.mark.parametrize("depth", [np.uint8, np.uint16])
def test_transparency_is_laid_over_white(picture: np.ndarray, depth: type):
    alpha = np.zeros((60, 80, 1), np.uint8)
    alpha[20:40], alpha[40:] = 102, 255
    with_alpha = np.concatenate([picture, alpha], axis=2).astype(depth) * (257 if depth is np.uint16 else 1)
    image = read_image(encode(with_alpha, ".png")).astype(int)
    assert (image[:20] == 255).all()
    assert np.abs(image[20:40] - (picture[20:40] * 0.4 + 255 * 0.6)).max() <= 1
    assert np.array_equal(image[40:], picture[40:])


def test_cmyk_jpeg_shows_the_colours_that_pillow_shows(picture: np.ndarray, tmp_path: Path):
    pillow = pytest.importorskip("PIL.Image")
    path = tmp_path / "cmyk.jpg"
    pillow.fromarray(picture[:, :, ::-1]).convert("CMYK").save(path, quality=95)
    shown = np.asarray(pillow.open(path).convert("RGB")).astype(int)
    assert np.abs(read_image(path)[:, :, ::-1] - shown).mean() < 3


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_sets_the_picture_upright(picture: np.ndarray, orientation: int, order: str):
    stored = {
        1: picture,
        2: picture[:, ::-1],
        3: picture[::-1, ::-1],
        4: picture[::-1],
        5: picture.transpose(1, 0, 2),
        6: np.rot90(picture),
        7: np.rot90(picture, 2).transpose(1, 0, 2),
        8: np.rot90(picture, -1),
    }[orientation]
    jpeg = encode(np.ascontiguousarray(stored), ".jpg", cv2.IMWRITE_JPEG_QUALITY, 95)
    image = read_image(with_exif(jpeg, exif(orientation, order)))
    assert image.shape == picture.shape
    assert np.abs(image.astype(int) - picture).mean() < 2


_FIELDS = st.tuples(
    st.sampled_from([(1, "B"), (2, "B"), (3, "H"), (4, "I"), (6, "b"), (7, "B"), (8, "h"), (9, "i"), (12, "d")]),
    st.integers(0, 9),
    st.sampled_from("<>"),
    st.sampled_from([1, 1, 1, 2]),
)


@given(fields=st.lists(_FIELDS, min_size=1, max_size=3), cut=st.sampled_from([0, 0, 1, 20]))
@settings(max_examples=examples(200))
def test_orientation_of_any_type_and_in_several_blocks_is_read_as_pillow_reads_it(fields: list, cut: int):
    pillow = pytest.importorskip("PIL.Image")
    blocks = [
        exif(value, order, kind=kind, count=count, code=code)[: 26 if code != "d" else 34]
        for (kind, code), value, order, count in fields
    ]
    first, rest = blocks[0], blocks[1:]
    data = with_exif(_TINY_JPEG, *((first[:-cut], first[-cut:]) if cut else (first,)), *rest)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of Pillow, about damage
        found = pillow.open(io.BytesIO(data)).getexif().get(0x0112, 1)
    expected = found if isinstance(found, int) and 1 <= found <= 8 else 1
    assert read_header(data).orientation == expected


_TINY_JPEG = encode(np.full((8, 8, 3), 90, np.uint8), ".jpg")


def test_orientation_of_a_png_is_honoured_too(picture: np.ndarray):
    png = encode(np.ascontiguousarray(np.rot90(picture)), ".png")
    data = png[:33] + png_chunk(b"eXIf", exif(6)) + png[33:]
    assert np.array_equal(read_image(data), picture)


@pytest.mark.parametrize("damaged", [exif(9), exif(0), b"II*\0\xff\xff\xff\xff", b"II", b""])
def test_senseless_exif_is_ignored(picture: np.ndarray, damaged: bytes):
    png = encode(picture, ".png")
    assert np.array_equal(read_image(png[:33] + png_chunk(b"eXIf", damaged) + png[33:]), picture)


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp", ".bmp"])
def test_every_truncation_is_an_error_and_never_a_half_picture(picture: np.ndarray, suffix: str):
    data = encode(picture, suffix)
    for length in range(0, len(data), 7):
        with pytest.raises(ImageError):
            read_image(data[:length])


def test_bytes_after_the_end_do_no_harm(picture: np.ndarray):
    assert read_image(encode(picture, ".jpg") + b"MotionPhoto" * 9).shape == picture.shape


@pytest.mark.parametrize(("side", "allowed", "reduced"), [(1279, 8, 1), (1283, 8, 2), (1283, 1, 1), (2561, 8, 4)])
def test_a_jpeg_that_is_read_reduced_shows_the_averages_of_its_areas_upright(
    picture: np.ndarray, tmp_path: Path, side: int, allowed: int, reduced: int
):
    path = tmp_path / "a.jpg"
    large = cv2.resize(picture, (side, 403), interpolation=cv2.INTER_CUBIC)
    path.write_bytes(with_exif(encode(large, ".jpg", cv2.IMWRITE_JPEG_QUALITY, 98), exif(6)))
    (whole, same, _), (image, identity, found) = read_photo_file(path), read_photo_file(path, reduced=allowed)
    assert (identity, found, image.shape) == (same, reduced, (-(-side // reduced), -(-403 // reduced), 3))
    averaged = cv2.resize(whole, image.shape[1::-1], interpolation=cv2.INTER_AREA)
    assert np.abs(image.astype(int) - averaged).max() <= 6
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(ImageError, match=r"a\.jpg: truncated"):
        read_photo_file(path, reduced=allowed)


def test_other_formats_are_read_whole_and_limits_are_those_of_the_whole_photo(picture: np.ndarray, tmp_path: Path):
    for suffix in (".png", ".jpg"):
        path = tmp_path / f"a{suffix}"
        path.write_bytes(encode(cv2.resize(picture, (1400, 9)), suffix))
        with pytest.raises(ImageError, match="at most 12,599 pixels, found 1400x9"):
            read_photo_file(path, reduced=8, limits=ImageLimits(max_pixels=12_599))
        image, _, reduced = read_photo_file(path, reduced=8)
        assert (reduced, image.shape) == ((1, (9, 1400, 3)) if suffix == ".png" else (2, (5, 700, 3)))


def test_gray_and_cmyk_jpegs_are_read_reduced_in_their_colours(picture: np.ndarray, tmp_path: Path):
    pillow = pytest.importorskip("PIL.Image")
    for mode in ("L", "CMYK"):
        path = tmp_path / f"{mode}.jpg"
        pillow.fromarray(cv2.resize(picture, (1280, 60))[:, :, ::-1]).convert(mode).save(path, quality=98)
        whole, (image, *_) = read_photo_file(path)[0], read_photo_file(path, reduced=2)
        averaged = cv2.resize(whole, (640, 30), interpolation=cv2.INTER_AREA)
        assert np.abs(image.astype(int) - averaged).max() <= 8


def test_a_marker_may_follow_fill_bytes_as_the_standard_allows(picture: np.ndarray):
    data = encode(picture, ".jpg")
    scan = data.rindex(b"\xff\xda")
    filled = data[:scan] + b"\xff\xff" + data[scan:-2] + b"\xff" + data[-2:]
    assert np.array_equal(read_image(filled), read_image(data))
    with pytest.raises(ImageError, match="its end marker is missing"):
        read_image(filled[:-1])


def test_a_png_of_60000_pixels_a_side_is_refused_by_its_header():
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0))
    body = png_chunk(b"IDAT", zlib.compress(bytes(1000))) + png_chunk(b"IEND", b"")
    with pytest.raises(ImageError, match="at most 64,000,000 pixels, found 60000x60000"):
        read_image(b"\x89PNG\r\n\x1a\n" + header + body)


def test_limits_hold_for_files_and_for_arrays(picture: np.ndarray, tmp_path: Path):
    path = tmp_path / "a.png"
    path.write_bytes(encode(picture, ".png"))
    with pytest.raises(ImageError, match=r"a\.png: expected at most 10 bytes"):
        read_image(path, limits=ImageLimits(max_bytes=10))
    for source in (path, picture):
        with pytest.raises(ImageError, match="at most 4,799 pixels, found 80x60"):
            read_image(source, limits=ImageLimits(max_pixels=4799))
    with pytest.raises(ImageError, match="positive"):
        ImageLimits(max_pixels=0)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (b"", "found 0 bytes"),
        (b"GIF89a" + bytes(50), "expected a JPEG, PNG, WebP, BMP, TIFF, PGM or PPM image, found a GIF; save it"),
        (b"\xff\xd8\xff\xd9", "has no image data"),
        (np.zeros((4, 4, 3), np.float32), r"found \(4, 4, 3\) float32; convert the array"),
        (np.zeros((0, 4, 3), np.uint8), r"\(0, 4, 3\)"),
        (np.zeros((4, 4, 2), np.uint8), r"\(4, 4, 2\)"),
        (Path("absent.jpg"), "absent.jpg: expected a photo, found no such file; check its path"),
        (Path("/"), "/: expected a photo, found a folder; name one of the photos in it"),
        (Path("http://host/a.jpg"), "found an address; download the photo first"),
        (Path("x" * 300), "cannot read: File name too long"),
        (Path("a\0b"), "cannot read: embedded null byte"),
    ],
)
def test_what_is_no_image_is_named(source: object, message: str):
    with pytest.raises(ImageError, match=message):
        read_image(source)  # type: ignore[arg-type]


@pytest.mark.parametrize("lossless", [80, 101])
def test_headers_tell_the_size_without_decoding(picture: np.ndarray, lossless: int):
    for data in (
        encode(picture, ".jpg"),
        encode(picture, ".png"),
        encode(picture, ".bmp"),
        encode(picture, ".webp", cv2.IMWRITE_WEBP_QUALITY, lossless),
    ):
        header = read_header(data)
        assert (header.width, header.height, header.orientation) == (80, 60, 1)


def test_a_jpeg_of_thousands_of_scans_is_refused_before_it_is_decoded(picture: np.ndarray):
    data = encode(picture, ".jpg", cv2.IMWRITE_JPEG_PROGRESSIVE, 1)
    last = data.rindex(b"\xff\xda")
    repeated = data[:-2] + data[last:-2] * 2000 + data[-2:]
    with pytest.raises(ImageError, match="expected at most 100 scans"):
        read_image(repeated)
