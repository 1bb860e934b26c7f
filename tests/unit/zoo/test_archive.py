"""Archives from strangers: what they may not do."""

from __future__ import annotations

import contextlib
import io
import stat
import tarfile
import tempfile
import zipfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from profiles import examples

from edgeface.errors import ArchiveError
from edgeface.zoo import archive
from edgeface.zoo.archive import unpack


def make_zip(path: Path, members: dict[str, bytes], **modes: int) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            info = zipfile.ZipInfo("x")
            info.filename = name  # past the constructor, which would clean it
            info.compress_type = zipfile.ZIP_DEFLATED
            info.external_attr = modes.get(name, 0) << 16
            archive.writestr(info, content)
    return path


def make_tar(path: Path, *members: tuple[tarfile.TarInfo, bytes]) -> Path:
    with tarfile.open(path, "w:gz") as archive:
        for info, content in members:
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def link(kind: bytes, target: str) -> tarfile.TarInfo:
    info = tarfile.TarInfo("link")
    info.type, info.linkname = kind, target
    return info


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "inside"
    made.mkdir()
    return made


def files_under(path: Path) -> set[str]:
    return {str(found.relative_to(path)) for found in path.rglob("*") if found.is_file()}


def test_a_zip_is_unpacked_with_its_folders(tmp_path: Path, folder: Path) -> None:
    archive = make_zip(tmp_path / "a.zip", {"model/a.pb": b"graph", "model/b.txt": b""})
    unpack(archive, folder, format="zip")
    assert files_under(folder) == {"model/a.pb", "model/b.txt"}
    assert (folder / "model/a.pb").read_bytes() == b"graph"


def test_a_compressed_tar_is_unpacked(tmp_path: Path, folder: Path) -> None:
    unpack(make_tar(tmp_path / "a.tgz", (tarfile.TarInfo("d/a"), b"x")), folder, format="gztar")
    assert (folder / "d/a").read_bytes() == b"x"


@pytest.mark.parametrize("name", ["../evil", "a/../../evil", "/evil", "C:/evil", "..\\evil", "a\\..\\..\\evil", "a\0b"])
def test_a_zip_name_that_leads_out_is_refused(tmp_path: Path, folder: Path, name: str) -> None:
    with pytest.raises(ArchiveError, match="expected a relative path"):
        unpack(make_zip(tmp_path / "a.zip", {name: b"x"}), folder, format="zip")
    assert files_under(tmp_path) == {"a.zip"}


def test_a_zip_with_a_symbolic_link_is_refused(tmp_path: Path, folder: Path) -> None:
    archive = make_zip(tmp_path / "a.zip", {"link": b"/etc/passwd"}, link=stat.S_IFLNK | 0o777)
    with pytest.raises(ArchiveError, match="a link or device"):
        unpack(archive, folder, format="zip")


@pytest.mark.parametrize(
    "member",
    [link(tarfile.SYMTYPE, "/etc"), link(tarfile.LNKTYPE, "/etc/passwd"), link(tarfile.CHRTYPE, ""),
     link(tarfile.FIFOTYPE, "")],
)  # fmt: skip
def test_a_tar_with_a_link_or_device_is_refused(tmp_path: Path, folder: Path, member: tarfile.TarInfo) -> None:
    with pytest.raises(ArchiveError, match="a link or device"):
        unpack(make_tar(tmp_path / "a.tgz", (member, b"")), folder, format="gztar")
    assert not any(folder.iterdir())


def test_a_tar_name_that_leads_out_is_refused(tmp_path: Path, folder: Path) -> None:
    with pytest.raises(ArchiveError, match="expected a relative path"):
        unpack(make_tar(tmp_path / "a.tgz", (tarfile.TarInfo("../evil"), b"x")), folder, format="gztar")
    assert not (tmp_path / "evil").exists()


def test_a_bomb_is_refused_before_it_fills_the_disk(tmp_path: Path, folder: Path) -> None:
    archive = make_zip(tmp_path / "bomb.zip", {"zeros": bytes(40 << 20)})
    with pytest.raises(ArchiveError, match="decompression bomb"):
        unpack(archive, folder, format="zip")
    assert sum(path.stat().st_size for path in folder.iterdir()) <= 17 << 20


def test_the_limits_on_bytes_and_files_hold(tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = make_zip(tmp_path / "a.zip", {f"{number}": b"12345" for number in range(5)})
    monkeypatch.setattr(archive, "ARCHIVE_BYTES", 12)
    with pytest.raises(ArchiveError, match="at most 12 bytes"):
        unpack(path, folder, format="zip")
    monkeypatch.undo()
    monkeypatch.setattr(archive, "ARCHIVE_FILES", 3)
    (other := tmp_path / "other").mkdir()
    with pytest.raises(ArchiveError, match="at most 3 files"):
        unpack(path, other, format="zip")


def test_a_name_that_stands_twice_is_refused(tmp_path: Path, folder: Path) -> None:
    archive = make_tar(tmp_path / "a.tgz", (tarfile.TarInfo("a"), b"1"), (tarfile.TarInfo("./a"), b"2"))
    with pytest.raises(ArchiveError, match="each file once"):
        unpack(archive, folder, format="gztar")


@pytest.mark.parametrize("form", ["zip", "gztar", "tar"])
def test_what_is_no_archive_is_named(tmp_path: Path, folder: Path, form: str) -> None:
    path = tmp_path / "model.bin"
    path.write_bytes(b"not an archive at all" * 100)
    with pytest.raises(ArchiveError, match=r"model\.bin: expected an intact"):
        unpack(path, folder, format=form)  # type: ignore[arg-type]


@given(position=st.integers(0, 10_000), length=st.integers(0, 2_000), form=st.sampled_from(["zip", "gztar"]))
@settings(max_examples=examples(60))
def test_a_damaged_archive_is_refused_or_gives_what_was_packed(position: int, length: int, form: str) -> None:
    content = bytes(range(256)) * 4
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        path = root / "a"
        if form == "zip":
            make_zip(path, {"d/a": content})
        else:
            make_tar(path, (tarfile.TarInfo("d/a"), content))
        raw = bytearray(path.read_bytes())
        raw[position % len(raw)] ^= 0x55
        path.write_bytes(raw[: max(1, len(raw) - length % len(raw))])
        (root / "inside").mkdir()
        with contextlib.suppress(ArchiveError):
            unpack(path, root / "inside", format=form)  # type: ignore[arg-type]
        assert all(found.is_relative_to("inside") or found == Path("a") for found in map(Path, files_under(root)))


@given(st.lists(st.text(alphabet="ab./\\:\0-é", min_size=1, max_size=10), min_size=1, max_size=4))
@settings(max_examples=examples(80))
def test_no_member_name_writes_outside_the_folder(names: list[str]) -> None:
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        archive = make_zip(root / "a.zip", dict.fromkeys(names, b"x"))
        (root / "inside").mkdir()
        with contextlib.suppress(ArchiveError):
            unpack(archive, root / "inside", format="zip")
        assert {path.split("/")[0] for path in files_under(root)} <= {"a.zip", "inside"}
