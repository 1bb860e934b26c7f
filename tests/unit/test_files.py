"""Whole files or nothing."""

from __future__ import annotations

import errno
import hashlib
import os
import re
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from edgeface.convert.converter import format_of
from edgeface.convert.recipe import parse_recipe
from edgeface.errors import InputError, OutputError
from edgeface.files import (
    output_errors,
    sha256_of,
    staging_folder,
    stopwatch,
    sweep_staging,
    write_atomically,
    write_private,
)
from edgeface.gallery.encodings import read_encodings
from edgeface.untrusted import read_regular


def test_a_file_appears_only_when_it_is_whole(tmp_path: Path) -> None:
    final = tmp_path / "new" / "folder" / "model.bin"

    with write_atomically(final) as partial:
        partial.write_bytes(b"half")
        assert not final.exists()
        partial.write_bytes(b"whole")

    assert final.read_bytes() == b"whole"
    assert list(final.parent.iterdir()) == [final]


@pytest.mark.parametrize("interruption", [RuntimeError, KeyboardInterrupt, SystemExit])
def test_an_interrupted_write_leaves_the_old_file(tmp_path: Path, interruption: type[BaseException]) -> None:
    final = tmp_path / "model.bin"
    final.write_bytes(b"old")

    def write_half() -> None:
        with write_atomically(final) as partial:
            partial.write_bytes(b"half")
            raise interruption

    with pytest.raises(interruption):
        write_half()

    assert final.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [final]


def test_an_interrupted_write_leaves_no_new_folder(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), write_atomically(tmp_path / "a" / "b" / "model.bin"):
        raise KeyboardInterrupt

    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_process_left_is_swept_by_the_next_and_what_a_living_one_writes_is_not(tmp_path: Path) -> None:
    program = (
        "import os, signal, sys; from pathlib import Path; from edgeface.files import write_atomically\n"
        "with write_atomically(Path(sys.argv[1]) / 'all') as partial:\n"
        "    partial.write_text('everybody'); print(partial, flush=True); sys.stdin.read()\n"
    )
    words = [sys.executable, "-c", program, str(tmp_path)]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as writer:
        partial = Path(writer.stdout.readline().strip())
        with staging_folder(tmp_path), write_atomically(tmp_path / "other") as staged:
            assert partial.read_text() == "everybody"
            staged.touch()
            writer.send_signal(signal.SIGKILL)
            writer.wait(30)
            assert partial.read_text() == "everybody"
    with write_atomically(tmp_path / "other") as staged:
        staged.touch()
        assert not partial.parent.exists()
    assert list(tmp_path.iterdir()) == [tmp_path / "other"]


def test_threads_that_write_into_one_folder_do_not_sweep_each_other(tmp_path: Path) -> None:
    def write(number: int) -> None:
        for turn in range(30):
            with write_atomically(tmp_path / f"{number}.{turn}") as partial:
                partial.write_text("whole")

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(write, range(8)))
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(f"{n}.{m}" for n in range(8) for m in range(30))


@pytest.mark.parametrize("unnamed", [True, False])
def test_a_private_file_is_its_owners_alone_and_replaces_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, unnamed: bool
) -> None:
    if not unnamed:
        monkeypatch.delattr(os, "O_TMPFILE")
    final = tmp_path / "new" / "all.zip"
    before = os.umask(0)
    try:
        for content in (b"old", b"everybody" * 100_000):
            write_private(final, content)
            assert final.read_bytes() == content
            assert final.stat().st_mode & 0o777 == 0o600
    finally:
        os.umask(before)
    assert list(final.parent.iterdir()) == [final]


def test_a_private_file_has_no_name_until_it_is_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Path] = []
    monkeypatch.setattr(os, "fsync", lambda _: seen.extend(path for path in tmp_path.rglob("*") if path.is_file()))
    write_private(tmp_path / "all.zip", b"everybody")
    assert seen == []


def test_a_link_that_looks_like_a_staging_folder_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "file").touch()
    (tmp_path / ".edgeface-link").symlink_to(tmp_path / "mine")
    sweep_staging(tmp_path)
    assert (tmp_path / "mine" / "file").exists()


def test_an_empty_folder_that_was_there_stays(tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()

    with pytest.raises(KeyboardInterrupt), staging_folder(folder):
        raise KeyboardInterrupt

    assert folder.is_dir()


@pytest.mark.parametrize(
    ("number", "told"),
    [
        (errno.ENOSPC, "free some space, or choose another folder"),
        (errno.EROFS, "choose a folder that can be written"),
        (errno.EACCES, "choose a folder that can be written"),
        (errno.ENOTDIR, "expected a folder, found that a part of this path is a file"),
        (errno.ENAMETOOLONG, "choose a shorter name"),
        (errno.EIO, "choose another folder"),
    ],
)
def test_a_failed_write_is_told_in_one_line_with_the_free_space(tmp_path: Path, number: int, told: str) -> None:
    with pytest.raises(OutputError) as caught, output_errors(tmp_path, hint=", or pray"):
        raise OSError(number, os.strerror(number))

    reason = re.escape(os.strerror(number))
    assert re.fullmatch(
        rf"cannot write {re.escape(str(tmp_path))}: {reason} \([\d,]+ bytes are free there\); {told}, or pray",
        str(caught.value),
    )


def test_a_file_in_the_way_of_the_folder_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"mine")

    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(OutputError, match=r"expected a folder, found (a file|that a part)"), staging_folder(folder):
            pass

    assert (tmp_path / "file").read_bytes() == b"mine"


def test_a_pipe_or_device_is_not_replaced_by_a_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OutputError, match="a device or a pipe"), write_atomically(tmp_path / "pipe") as partial:
        partial.write_text("new")
    assert (tmp_path / "pipe").is_fifo()


def test_sha256_of_a_file_of_several_blocks(tmp_path: Path) -> None:
    content = bytes(range(256)) * 10_000
    (tmp_path / "file").write_bytes(content)

    assert sha256_of(tmp_path / "file") == hashlib.sha256(content).hexdigest()


def test_the_stopwatch_goes_forward() -> None:
    with stopwatch() as elapsed:
        assert 0 <= elapsed() <= elapsed()


@pytest.mark.parametrize("suffix", [".pb", ".onnx", ".dat", ".pt"])
def test_a_pipe_in_place_of_a_model_is_refused_at_once(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"model{suffix}"
    os.mkfifo(path)
    told = {"name": "mine", "size": 112, "color": "RGB", "mean": 0, "scale": 1, "alignment": "none"}

    with pytest.raises(InputError, match="expected a regular file, found a device, pipe or socket"):
        format_of(path).reader(path, parse_recipe(**told).complete())


def test_a_pipe_in_place_of_encodings_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "known.pickle")
    os.mkfifo(tmp_path / "known.json")

    for name in ("known.pickle", "known.json"):
        with pytest.raises(InputError, match="expected a regular file"):
            read_encodings(tmp_path / name)


def test_a_file_is_read_up_to_the_limit_and_not_beyond(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"12345")

    assert read_regular(tmp_path / "file", limit=5) == b"12345"
    with pytest.raises(InputError, match="expected at most 4 bytes, found 5"):
        read_regular(tmp_path / "file", limit=4)
