"""Machines and installations that lack something: the message names what, not what it broke."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from commands import edgeface
from tiny_ir import write_tiny_ir

from edgeface import limits

pytestmark = pytest.mark.timeout(120)


@pytest.mark.slow
@pytest.mark.parametrize("limit", [("-v", 700_000), ("-v", 1_200_000), ("-d", 600_000)])
def test_a_limit_that_is_too_low_is_named_whatever_it_broke(tmp_path: Path, limit: tuple[str, int]) -> None:
    ir = write_tiny_ir(tmp_path)
    command = f"ulimit {limit[0]} {limit[1]}; exec {sys.executable} -m edgeface verify {__file__} x.jpg -m {ir}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=60, cwd=tmp_path)
    assert done.stderr.startswith("edgeface: note: models need about"), done
    assert f"ulimit {limit[0]} allows" in done.stderr


def test_an_error_of_a_library_at_a_limit_is_told_as_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgeface.cli.app.shortage", lambda: "models need more")

    def starve(error: BaseException) -> subprocess.CompletedProcess[str]:
        def fail(*_: object, **__: object) -> None:
            raise error

        monkeypatch.setattr("edgeface.runtime.doctor.examine", fail)
        return edgeface("doctor")

    for error in (MemoryError(), ImportError("failed to map segment"), limits_error()):
        done = starve(error)
        assert done.returncode == 3
        assert "edgeface: models need more; raise this limit. It ended with: " in done.stderr
    assert starve(KeyboardInterrupt()).returncode == 130  # of a user, not of OpenBLAS during an import


def limits_error() -> BaseException:
    from edgeface.errors import DeviceError

    return DeviceError("no CPU here; OpenVINO found no device")


def test_an_interruption_during_an_import_at_a_limit_is_of_openblas(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "blas.py").write_text("raise KeyboardInterrupt")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr("edgeface.cli.app.shortage", lambda: "models need more")
    monkeypatch.setattr("edgeface.runtime.doctor.examine", lambda: __import__("blas"))
    done = edgeface("doctor")
    assert (done.returncode, "interrupted" in done.stderr) == (3, False)


@pytest.mark.parametrize("what", ["import missing_package", "import hollow; hollow.imread"])
def test_a_damaged_installation_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    (tmp_path / "hollow").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr("edgeface.runtime.doctor.examine", lambda: exec(what))
    done = edgeface("doctor")
    assert done.returncode == 3
    assert "edgeface: this installation is damaged: " in done.stderr
    assert "'edgeface doctor' says what to install again" in done.stderr


def test_limits_are_compared_with_what_models_need(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert limits.shortage(tmp_path) is None
    for name, text in {"proc/self/cgroup": "3:pids:/a\n", "sys/fs/cgroup/pids/a/pids.max": "5\n"}.items():
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_text(text)
    assert "pids.max of this control group allows 5 more" in str(limits.shortage(tmp_path))
    (tmp_path / "sys/fs/cgroup/pids/a/pids.max").write_text("max\n")
    kinds = {limits.resource.RLIMIT_NPROC: 20}
    monkeypatch.setattr(limits.resource, "getrlimit", lambda kind: (kinds.get(kind, limits.resource.RLIM_INFINITY), -1))
    monkeypatch.setattr(os, "getuid", lambda: 12345)
    assert "ulimit -u allows this user 20 in all" in str(limits.shortage(tmp_path))


def test_a_table_in_a_pipe_is_not_cut() -> None:
    environment = {name: value for name, value in os.environ.items() if name != "COLUMNS"}
    words = [sys.executable, "-m", "edgeface", "doctor"]
    done = subprocess.run(words, capture_output=True, text=True, env=environment, timeout=60)
    assert any("pip install" in line and "if you need it" in line for line in done.stdout.splitlines()), done


@pytest.mark.parametrize("words", [("doctor",), ("zoo", "list"), ("detect", "--help")])
def test_a_terminal_without_a_size_gets_the_whole_answer(words: tuple[str, ...]) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "edgeface", *words],
        capture_output=True,
        text=True,
        env={**os.environ, "COLUMNS": "0"},
        timeout=60,
    )
    assert done.returncode == 0
    assert len(done.stdout) > 200, done


@pytest.mark.skipif(sys.platform != "linux", reason="the limit is Linux's")
@pytest.mark.parametrize(("work", "ended"), [("ctypes.CDLL(None).exit(1)", 3), ("1", 1)])
def test_a_library_that_exits_at_a_limit_is_not_the_answer_no(work: str, ended: int) -> None:
    program = (
        "import ctypes, sys, edgeface.cli.app as app\n"
        "app.shortage = lambda: 'models need more'\n"
        f"app._run = lambda *_, **__: {work}\n"
        "sys.exit(app.main())\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert done.returncode == ended, done
    assert ("raise this limit" in done.stderr) == (ended == 3)


def test_ctrl_c_while_the_commands_are_imported_is_no_traceback() -> None:
    program = (
        "import sys, edgeface.cli\n"
        "class Interrupting:\n"
        "    def find_spec(self, name, *_):\n"
        "        if name == 'edgeface.cli.app': raise KeyboardInterrupt\n"
        "sys.meta_path.insert(0, Interrupting())\n"
        "sys.exit(edgeface.cli.main(['devices']))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (130, "edgeface: interrupted\n")


@pytest.fixture
def ready(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """tiny.xml, a.png, a gallery g; loading a model or a detector fails the test."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("EDGEFACE_GALLERY_KEY", raising=False)
    write_tiny_ir(tmp_path)
    for person in ("ada", "bob"):
        for number in (1, 2):
            (tmp_path / "people" / person).mkdir(parents=True, exist_ok=True)
            cv2.imwrite(
                str(tmp_path / "people" / person / f"{person}_000{number}.png"), np.full((32, 32, 3), 99, np.uint8)
            )
    (tmp_path / "a.png").write_bytes((tmp_path / "people/ada/ada_0001.png").read_bytes())
    (tmp_path / "pairs.txt").write_text("1\t1\nada\t1\t2\nada\t1\tbob\t1\n")
    assert edgeface("gallery", "create", "g", "-m", "tiny.xml", "--unencrypted").returncode == 0

    def loaded(*_: object, **__: object) -> None:
        raise AssertionError("loaded before the error was found")

    monkeypatch.setattr("edgeface.runtime.embedder.Embedder.load", loaded)
    monkeypatch.setattr("edgeface.vision.load.load_detector", loaded)
    monkeypatch.setattr("edgeface.convert.converter._convert_source", loaded)
    return tmp_path


TINY = "-m tiny.xml"
COSTS_NOTHING = {
    f"verify a.png nope.jpg {TINY}": "nope.jpg: expected a photo",
    f"verify a.png a.png {TINY} --threshold nope": "nope: expected a file written by",
    f"verify a.png a.png {TINY} --threshold 7": "--threshold: expected",
    f"verify a.png a.png {TINY} --far 7": "far: expected a rate",
    f"identify a.png -g nope {TINY}": "nope: expected a gallery",
    f"identify nope.jpg -g g {TINY}": "nope.jpg: expected",
    f"identify a.png -g g {TINY} --key file:/nope": "/nope: expected a key",
    f"identify a.png -g g {TINY} --fpir 7": "fpir: expected a rate",
    f"identify a.png -g g {TINY} --threshold nope": "nope: expected a file written by",
    f"embed a.png -o /proc/nope/e.npz {TINY}": "cannot write /proc/nope",
    f"embed nope -o e.npz {TINY}": "nope: expected",
    f"cluster nope -o out {TINY}": "nope: expected",
    f"cluster people -o /proc/nope {TINY}": "cannot write /proc/nope",
    f"cluster people -o out {TINY} --threshold nope": "nope: expected a file written by",
    f"gallery enrol nope a.png --name A {TINY}": "nope: expected a gallery",
    f"gallery enrol g nope.jpg --name A {TINY}": "nope.jpg: expected",
    f"gallery enrol g a.png --name #1 {TINY}": "name: expected a name",
    f"gallery enrol g a.png --name A --meta x {TINY}": "--meta: expected",
    f"gallery enrol g a.png --name A --threshold nope {TINY}": "nope: expected a file written by",
    f"gallery enrol g a.png --name A --key file:/nope {TINY}": "/nope: expected a key",
    f"gallery rebuild nope {TINY}": "nope: expected a gallery",
    "detect nope.jpg": "nope.jpg: expected",
    "detect a.png --draw /proc/nope": "cannot write /proc/nope",
    "align people -o /proc/nope": "cannot write /proc/nope",
    f"evaluate lfw --images people --pairs nope -o out {TINY}": "nope: expected a readable pairs list",
    f"evaluate lfw --images nope --pairs pairs.txt -o out {TINY}": "nope: expected",
    f"evaluate lfw --images people --pairs pairs.txt -o /proc/nope {TINY}": "cannot write /proc/nope",
    "evaluate identification --images people -o out -m nope.xml": "nope.xml: expected",
    "calibrate people -m nope.xml": "nope.xml: expected",
    f"calibrate people -o /proc/nope/c.json {TINY}": "cannot write /proc/nope",
    "bench run tiny.xml -o /proc/nope": "cannot write /proc/nope",
    "convert SEEDED --name facenet-20180408-102900 -o /proc/nope": "cannot write /proc/nope",
    "convert SEEDED --name facenet-20180408-102900 -o out --golden nope.npz": "nope.npz: expected",
    "convert SEEDED --name facenet-20180408-102900 -o out --check nope": "nope: expected",
    "pareto tiny.xml --calibration people --images people --pairs pairs.txt -o /proc/nope": "cannot write /proc/nope",
    "demo -o /proc/nope --offline": "cannot write /proc/nope",
}


@pytest.mark.usefixtures("ready")
@pytest.mark.parametrize("line", COSTS_NOTHING)
def test_an_error_that_costs_nothing_to_find_comes_before_a_model_is_loaded(line: str, seeded_pb: Path) -> None:
    done = edgeface(*line.replace("SEEDED", str(seeded_pb)).split())
    assert done.returncode == 2, done
    assert COSTS_NOTHING[line] in done.stderr.splitlines()[-1]
