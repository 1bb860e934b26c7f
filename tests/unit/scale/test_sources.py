"""Photos named by folders, lists and shards are found and read; damaged lists and shards are told by name."""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import tarfile
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeface.errors import ImageError, InputError
from edgeface.scale.sources import list_places, read_place


def png(value: int) -> bytes:
    return cv2.imencode(".png", np.full((8, 8, 3), value, np.uint8))[1].tobytes()


def write_shard(path: Path, members: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size, info.mtime = len(content), 1_700_000_000
            archive.addfile(info, io.BytesIO(content))
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "photos").mkdir()
    for number in range(3):
        (tmp_path / "photos" / f"{number}.png").write_bytes(png(50 * number))
    return tmp_path


def test_a_folder_gives_its_files(folder: Path) -> None:
    found = list_places([folder / "photos"])
    assert [photo.source for photo in found.photos] == [str(folder / "photos" / f"{n}.png") for n in range(3)]
    assert all(photo.offset == -1 and photo.size == len(png(50 * n)) for n, photo in enumerate(found.photos))


def test_a_list_names_photos_from_its_own_folder_and_each_counts_once(folder: Path) -> None:
    (folder / "list.csv").write_text(f"id,path\n1,photos/2.png\n2,{folder}/photos/0.png\n3,photos/2.png\n4,\n")
    sources = [photo.source for photo in list_places([folder / "list.csv"]).photos]
    assert sources == [str(folder / "photos/2.png"), str(folder / "photos/0.png")]
    mixed = list_places([folder / "list.csv", folder / "photos"]).photos
    assert [Path(photo.source).name for photo in mixed] == ["2.png", "0.png", "1.png"]


def test_a_list_in_parquet_names_the_same(folder: Path) -> None:
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    parquet.write_table(arrow.table({"n": [1, 2, 3], "path": ["photos/1.png", None, "gone.png"]}), folder / "l.parquet")
    found = list_places([folder / "l.parquet"]).photos
    assert [photo.source for photo in found] == [str(folder / "photos/1.png"), str(folder / "gone.png")]
    with pytest.raises(ImageError, match=r"gone\.png: expected a photo, found no such file"):
        read_place(found[1])
    for name, column in (("n", [1]), ("path", [b"photos/1.png"]), ("path", [7])):
        parquet.write_table(arrow.table({name: column}), folder / "wrong.parquet")
        with pytest.raises(InputError, match=r"wrong\.parquet: expected a list of photos in Parquet"):
            list_places([folder / "wrong.parquet"])


@pytest.mark.parametrize("text", [b"", b"name\na.png\n", b"\x00\x01", b'path\n"' + b"a" * 200_000])
def test_what_is_no_list_is_refused(text: bytes, tmp_path: Path) -> None:
    (tmp_path / "list.csv").write_bytes(text)
    with pytest.raises(InputError, match=r"list\.csv: expected a list of photos in CSV, with a column 'path'"):
        list_places([tmp_path / "list.csv"])


@given(content=st.binary(max_size=200))
def test_a_list_of_any_bytes_is_read_or_refused(content: bytes, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.getbasetemp() / "any.csv"
    path.write_bytes(b"path\n" + content)
    with contextlib.suppress(InputError):
        assert all(photo.offset == -1 for photo in list_places([path]).photos)


def test_the_photos_of_a_shard_are_its_members_by_their_names(tmp_path: Path) -> None:
    members = {"a/1.png": png(10), "a/1.json": b"{}", "a/._1.png": b"mac", "a/2.jpg": b"no photo", "3.PNG": png(30)}
    shard = write_shard(tmp_path / "000.tar", members)
    found = list_places([str(tmp_path / "*.tar")])
    assert [photo.source for photo in found.photos] == [f"{shard}/a/1.png", f"{shard}/a/2.jpg", f"{shard}/3.PNG"]
    image, made_of, _ = read_place(found.photos[2])
    assert image.mean() == 30
    assert (made_of.size, made_of.sha256) == (len(png(30)), hashlib.sha256(png(30)).hexdigest())
    assert made_of.modified == 1_700_000_000 * 10**9
    with pytest.raises(ImageError, match=r"000\.tar/a/2\.jpg: expected"):
        read_place(found.photos[1])


def test_a_second_entry_of_one_name_in_a_shard_is_left_out_and_told(tmp_path: Path) -> None:
    shard = write_shard(tmp_path / "000.tar", {"a.png": png(10), "b.png": png(20)})
    with tarfile.open(shard, "a") as archive:
        info = tarfile.TarInfo("./a.png")
        info.size = len(png(30))
        archive.addfile(info, io.BytesIO(png(30)))
    found = list_places([shard, str(tmp_path / "*.tar")])
    assert [read_place(photo)[0].mean() for photo in found.photos] == [10, 20]
    assert found.left_out == {shard / "a.png": "an earlier entry of its shard has this name"}


def test_a_member_that_claims_to_be_elsewhere_is_only_a_name(tmp_path: Path) -> None:
    (tmp_path / "secret.png").write_bytes(png(99))
    shard = write_shard(tmp_path / "000.tar", {"../secret.png": png(10), "/etc/x.png": png(20)})
    with tarfile.open(shard, "a") as archive:
        link = tarfile.TarInfo("link.png")
        link.type, link.linkname = tarfile.SYMTYPE, str(tmp_path / "secret.png")
        archive.addfile(link)
    found = list_places([shard]).photos
    assert [read_place(photo)[0].mean() for photo in found] == [10, 20]


@pytest.mark.parametrize("time", ["nan", "inf", "1e30", "-1e30"])
def test_a_member_of_no_time_at_all_is_read_as_any_other(time: str, tmp_path: Path) -> None:
    info = tarfile.TarInfo("a.png")
    info.size, info.pax_headers = len(png(1)), {"mtime": time}
    with tarfile.open(tmp_path / "a.tar", "w", format=tarfile.PAX_FORMAT) as archive:
        archive.addfile(info, io.BytesIO(png(1)))
    (found,) = list_places([tmp_path / "a.tar"]).photos
    assert found.modified == 0
    assert read_place(found)[1].modified == 0


def test_a_shard_that_ends_early_gives_what_it_has_and_is_a_failure(tmp_path: Path) -> None:
    shard = write_shard(tmp_path / "000.tar", {f"{n}.png": png(n) for n in range(4)})
    content = shard.read_bytes()
    shard.write_bytes(content[: 1024 + 300])
    found = list_places([shard])
    assert len(found.photos) <= 2
    assert list(found.failures) == [shard]
    gone = list_places([write_shard(tmp_path / "1.tar", {"0.png": png(0)})]).photos[0]
    (tmp_path / "1.tar").unlink()
    with pytest.raises(ImageError, match=r"1\.tar/0\.png: cannot read"):
        read_place(gone)


@pytest.mark.parametrize("place", ["none.tar", "*.tar", "none.csv", "none.parquet", "none"])
def test_a_place_that_does_not_exist_is_refused(place: str, tmp_path: Path) -> None:
    if place.endswith("parquet"):
        pytest.importorskip("pyarrow")
    with pytest.raises(InputError, match=str(tmp_path)):
        list_places([tmp_path / place])


def mutate(content: bytes, count: int, path: Path) -> None:
    random = np.random.default_rng(count)
    for _ in range(count):
        damaged = bytearray(content)
        for _ in range(random.integers(1, 8)):
            damaged[random.integers(len(damaged))] = random.integers(256)
        path.write_bytes(bytes(damaged[: random.integers(1, len(damaged) + 1)] if random.integers(2) else damaged))
        with contextlib.suppress(InputError):
            for photo in list_places([path]).photos:
                with contextlib.suppress(ImageError):
                    assert read_place(photo)[0].ndim == 3


@pytest.mark.parametrize("count", [60, pytest.param(2000, marks=pytest.mark.nightly)])
def test_damaged_shards_and_lists_end_in_no_other_error(count: int, tmp_path: Path) -> None:
    shard = write_shard(tmp_path / "s.tar", {f"{n}.png": png(n) for n in range(3)} | {"long" * 60 + ".png": png(9)})
    mutate(shard.read_bytes(), count, shard)
    (tmp_path / "l.csv").write_text("path,who\n" + "\n".join(f"{n}.png,{n}" for n in range(9)))
    mutate((tmp_path / "l.csv").read_bytes(), count, tmp_path / "l.csv")


def test_a_damaged_list_of_parquet_ends_in_no_other_error(tmp_path: Path) -> None:
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "l.parquet"
    parquet.write_table(arrow.table({"path": [f"{n}.png" for n in range(50)]}), path)
    mutate(path.read_bytes(), 60, path)


def test_a_pipe_is_no_list(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "list.csv")
    with pytest.raises(InputError, match="found a device, pipe or socket"):
        list_places([tmp_path / "list.csv"])
