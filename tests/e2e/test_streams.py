"""Exit codes and output where stdout or stderr fails, and names that a terminal would obey."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import cv2
import pytest
from commands import edgeface
from tiny_ir import tiny_crop, write_tiny_ir

pytestmark = [pytest.mark.timeout(120), pytest.mark.skipif(os.name == "nt", reason="POSIX shells and file names")]
TINY = ("-m", "tiny.xml", "--crops", "--threshold", "0.9", "--no-gate")
EVIL = "\x1b]0;title\x07\x1b[31m[bold]:100:"


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """tiny.xml, a.png and b.png of two colours."""
    monkeypatch.setenv("EDGEFACE_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    write_tiny_ir(tmp_path)
    for name, color in {"a": (220, 20, 20), "b": (20, 20, 220)}.items():
        cv2.imwrite(str(tmp_path / f"{name}.png"), tiny_crop(color))
    return tmp_path


def shell(line: str, **environment: str) -> subprocess.CompletedProcess[str]:
    line = line.replace("edgeface", f"{sys.executable} -m edgeface")
    line = line.replace("TINY", "-m tiny.xml --crops --threshold 0.9")
    environment = {**os.environ, **environment}
    return subprocess.run(["bash", "-c", line], capture_output=True, text=True, timeout=60, env=environment)


@pytest.mark.parametrize(("photo", "form"), [("a.png", "--json"), ("b.png", "")])
def test_an_answer_that_could_not_be_written_is_exit_code_2_whatever_it_was(work: Path, photo: str, form: str) -> None:
    full = shell(f"edgeface verify a.png {photo} TINY {form} >/dev/full")
    assert full.returncode == 2
    assert full.stderr.splitlines()[-1].startswith("edgeface: cannot write the answer to stdout: No space left")
    closed = shell(f"edgeface verify a.png {photo} TINY {form} >&-")
    assert closed.returncode == 2
    assert closed.stderr.splitlines()[-1].startswith("edgeface: cannot write the answer to stdout: it is closed")


@pytest.mark.parametrize(("photo", "code"), [("a.png", 0), ("b.png", 1)])
def test_the_answer_stands_if_the_reader_has_gone_or_stderr_fails(work: Path, photo: str, code: int) -> None:
    for streams in ("| true; exit ${PIPESTATUS[0]}", "2>&-", "2>/dev/full"):
        assert shell(f"edgeface verify a.png {photo} TINY {streams}").returncode == code, streams


@pytest.mark.parametrize("streams", ["2>&-", "2>/dev/full", "<&- >&- 2>&-"])
def test_an_error_keeps_its_exit_code_whatever_streams_fail(work: Path, streams: str) -> None:
    assert shell(f"edgeface zoo info nope {streams}").returncode == 3


def test_a_closed_stdin_is_no_terminal(work: Path) -> None:
    assert edgeface("gallery", "create", "g", "-m", "tiny.xml", "--unencrypted").returncode == 0
    assert edgeface("gallery", "enrol", "g", "a.png", "--name", "Ada", *TINY).returncode == 0
    asked = shell("edgeface gallery forget g Ada <&-")
    assert asked.returncode == 2
    assert "pass --yes" in asked.stderr


def test_help_and_version_go_to_closed_streams_without_exit_code_1(work: Path) -> None:
    for words in ("--version", "--help", "verify --help", ""):
        assert shell(f"edgeface {words} >&- 2>&-").returncode == 2, words


@pytest.mark.parametrize("encoding", ["ascii", pytest.param("utf-8", marks=pytest.mark.nightly)])
def test_a_name_that_the_terminal_cannot_show_ends_no_command(work: Path, encoding: str) -> None:
    photo = os.fsencode(work) + "/Ада ".encode() + b"\xff.png"
    Path(os.fsdecode(photo)).write_bytes((work / "a.png").read_bytes())
    assert shell("edgeface gallery create g -m tiny.xml --unencrypted").returncode == 0
    for line in (
        "gallery enrol g *.png --name 'Ада Лавлейс' --no-gate TINY --force",
        "gallery list g",
        "identify Ада* -g g TINY --no-gate",
        "embed *.png -o out.npz -m tiny.xml --crops",
    ):
        done = shell(f"edgeface {line}", PYTHONIOENCODING=encoding)
        assert done.returncode == 0, (line, done.stderr)
    missing = shell("edgeface verify Ада* nope.png TINY", PYTHONIOENCODING=encoding)
    assert missing.returncode == 2
    assert missing.stderr.count("\n") == 1


def test_no_name_of_a_file_reaches_the_terminal_as_a_command(work: Path) -> None:
    names = [f"{EVIL}.png", "line\nedgeface: forged.png", "\u202egnp.png", "\x9b31m.png"]
    for name in names:
        (work / name).write_bytes((work / "a.png").read_bytes()[:60])
    for words in (
        ["embed", *names, "a.png", "-o", f"{EVIL}.npz", "-m", "tiny.xml", "--crops"],
        ["verify", names[0], "a.png", "-m", "tiny.xml", "--crops"],
        ["detect", *names],
        ["inspect", names[1]],
        ["zoo", "info", EVIL],
        ["gallery", "list", EVIL],
        ["verify", EVIL],
        ["-v", "embed", *names, "a.png", "-o", "b.npz", "-m", "tiny.xml", "--crops"],
    ):
        done = edgeface(*words)
        written = done.stdout + done.stderr
        assert not set(written) & set("\x1b\x07\x9b\u202e"), words
        assert "\nedgeface: forged" not in written, words


def test_no_name_of_a_person_is_drawn_as_a_picture_or_markup(work: Path) -> None:
    assert edgeface("gallery", "create", "g", "-m", "tiny.xml", "--unencrypted").returncode == 0
    name = "[red]:100:[/red]"
    enrolled = edgeface("gallery", "enrol", "g", "a.png", "--name", name, "--label", ":boom:[x]", *TINY)
    assert name in enrolled.stdout
    assert name in edgeface("gallery", "list", "g").stdout
    assert ":boom:[x]" in edgeface("gallery", "list", "g").stdout
    assert name in edgeface("identify", "a.png", "-g", "g", *TINY).stdout
    people = json.loads(edgeface("gallery", "list", "g", "--json").stdout)["people"]
    assert [each["name"] for each in people] == [name]


def test_only_its_owner_may_read_a_file_of_embeddings(work: Path) -> None:
    before = os.umask(0o022)
    try:
        for name in ("out.npz", "out.parquet"):
            assert edgeface("embed", "a.png", "-o", name, "-m", "tiny.xml", "--crops").returncode in (
                0,
                3,
            )  # no pyarrow
    finally:
        os.umask(before)
    assert (work / "out.npz").stat().st_mode & 0o777 == 0o600
    assert all(path.stat().st_mode & 0o077 == 0 for path in work.glob("out.parquet"))


@pytest.mark.parametrize(
    "words",
    [
        "verify rtsp://admin:s3cretQ@camera/live a.png -m tiny.xml",
        "detect http://admin:s3cretQ@camera/a.jpg",
        "gallery list postgresql://me:s3cretQ@host/db",
        "zoo download facenet-20180408-102900 --mirror ftp://me:s3cretQ@127.0.0.1:1/zoo",
        "convert https://me:s3cretQ@host/model.pb -o out",
        "gallery list g --key env:abcs3cretQ0123456789",
    ],
)
def test_no_command_tells_a_password_or_a_key(work: Path, words: str) -> None:
    (work / "g").write_bytes(b"")
    for form in ((), ("--json",)):
        done = edgeface(*words.split(), *form)
        assert done.returncode in (2, 3)
        assert "s3cretQ" not in done.stdout + done.stderr


def test_a_damaged_installation_is_not_the_answer_no(work: Path) -> None:
    (work / "broken" / "rich").mkdir(parents=True)
    (work / "broken" / "rich" / "__init__.py").write_text("raise ImportError('rich is damaged')\n")
    path = os.pathsep.join([str(work / "broken"), os.environ.get("PYTHONPATH", "")])
    done = shell("edgeface verify a.png b.png TINY", PYTHONPATH=path)
    assert done.returncode == 3
    assert done.stderr == "edgeface: this installation is damaged: rich is damaged; install edgeface again\n"
