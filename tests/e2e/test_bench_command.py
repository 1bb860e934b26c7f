"""`edgeface bench run` as people use it: what it answers, writes and refuses, and what Ctrl-C leaves."""

from __future__ import annotations

import getpass
import json
import resource
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tiny_ir import write_tiny_ir

from edgeface.bench.result import BenchmarkResult
from edgeface.cli import main

pytestmark = pytest.mark.timeout(180)
QUICK = ("-t", "0.1", "--max-duration", "0.2", "--min-count", "5", "--warm-up", "0.05", "--no-peak")


@pytest.fixture
def work(tmp_path: Path) -> Path:
    write_tiny_ir(tmp_path)
    return tmp_path


def bench(work: Path, *more: str | Path) -> int:
    return main(["bench", "run", str(work / "tiny.xml"), *QUICK, *map(str, more)])


def test_json_is_one_object_with_what_was_promised(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert bench(work, "--json", "-o", work / "out") == 0
    answer = json.loads(capsys.readouterr().out)
    promised = {"schema", "model", "environment", "settings", "latency_ms", "throughput_fps", "gflops"}
    promised |= {"gflops_per_second", "efficiency", "disturbed"}
    assert promised <= answer.keys()
    assert answer["schema"] == "edgeface.bench/3"
    assert {"contract_id", "digest"} <= answer["model"].keys()
    assert {"p50", "p90", "p95", "p99", "p99.9"} <= answer["latency_ms"].keys()
    result = BenchmarkResult.read(work / "out")
    assert result.to_dict(samples=False) == answer
    assert result.samples is not None


def test_people_get_a_table_with_intervals_and_work(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert bench(work, "-s", "offline", "-o", work / "out") == 0
    shown = capsys.readouterr().out
    for words in ("tiny", "offline", "hint throughput", "latency p50", "throughput", "GFLOP/s", "result.json written"):
        assert words in shown
    assert list((work / "out").iterdir()) == [work / "out" / "result.json"]


def test_a_plan_file_is_used(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (work / "plan.json").write_text('{"device": "CPU", "streams": 1, "requests": 2, "hint": "THROUGHPUT"}')
    assert bench(work, "--plan", work / "plan.json", "-s", "offline", "--json") == 0
    settings = json.loads(capsys.readouterr().out)["settings"]
    assert (settings["streams"], settings["requests"]) == (1, 2)
    assert bench(work, "--plan", work / "plan.json", "--streams", "2") == 2
    assert "--plan replaces --streams" in capsys.readouterr().err


@pytest.mark.parametrize("identify", [False, True])
def test_no_host_user_or_folder_is_told_unless_asked(work: Path, identify: bool) -> None:
    plan = {"device": "CPU", "cache_dir": str(work / "a"), "extra": {"CACHE_DIR": str(work / "b")}}
    (work / "plan.json").write_text(json.dumps(plan))
    command = [sys.executable, "-m", "edgeface", "bench", "run", str(work / "tiny.xml"), *QUICK, "--json"]
    more = ["--plan", str(work / "plan.json"), "--end-to-end", "-o", str(work / "out")]
    asked = ["--identify"] if identify else []
    done = subprocess.run([*command, *more, *asked], capture_output=True, text=True, timeout=120, cwd=work)
    assert (done.returncode, done.stderr) == (0, ""), "no terminal, no bars"
    told = json.loads((work / "out" / "result.json").read_text())
    told.pop("samples")
    for text in (done.stdout, json.dumps(told)):
        assert (str(work) in text) is identify
        assert (f'"{socket.gethostname()}"' in text) is identify
        assert (f'"{getpass.getuser()}"' in text) is identify


def test_what_is_wrong_is_said_in_one_line(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (work / "broken.xml").write_text("<net")
    (work / "broken.bin").write_bytes(b"")
    (work / "file").write_text("in the way")
    for words, code, message in (
        ([work / "broken.xml"], 2, "OpenVINO cannot read this model"),
        ([work / "absent.xml"], 2, "expected a model to read"),
        ([work / "tiny.xml", "-o", work / "file" / "out"], 2, "cannot write"),
        ([work / "tiny.xml", "-s", "kiosk"], 2, "--scenario kiosk requires --video FILE"),
        ([work / "tiny.xml", "--video", work / "file"], 2, "require --scenario kiosk"),
        ([work / "tiny.xml", "--shape", "[1,3]"], 2, "does not take inputs"),
        ([work / "tiny.xml", "--input-format", "CMYK"], 2, "input format"),
    ):
        assert main(["bench", "run", *map(str, words), *QUICK]) == code
        said = capsys.readouterr().err.strip()
        assert message in said
        assert said.count("\n") == 0


def test_a_full_disk_is_said_and_leaves_no_half_result(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    usual = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1024, limits[1]))
    try:
        code = bench(work, "-o", work / "out")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, usual)
    captured = capsys.readouterr()
    assert code == 2
    assert "cannot write" in captured.err
    assert "latency p50" in captured.out  # what was measured is at least seen
    assert not (work / "out").exists()


def test_ctrl_c_writes_what_was_measured_and_exits_130(work: Path) -> None:
    command = [sys.executable, "-m", "edgeface", "-v", "bench", "run", str(work / "tiny.xml"), "-t", "120"]
    command += ["--warm-up", "0.05", "--no-peak", "-o", str(work / "out"), "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stderr is not None
            assert any("tiny.xml: measure" in line for line in process.stderr)
            time.sleep(0.5)  # for the first of very many inferences
            process.send_signal(signal.SIGINT)
            output, error = process.communicate(timeout=120)
        finally:
            process.kill()
    code = process.returncode
    assert code == 130, error
    assert "marked as partial" in error
    assert json.loads(output)["partial"] is True
    result = BenchmarkResult.read(work / "out")
    assert result.partial
    assert result.samples is not None
    assert result.samples.count > 0


def test_ctrl_c_before_anything_is_measured_is_said_in_one_line(work: Path) -> None:
    command = [sys.executable, "-m", "edgeface", "-v", "bench", "run", str(work / "tiny.xml"), "-t", "120"]
    with subprocess.Popen(
        [*command, "--warm-up", "60", "-s", "offline", "--batch", "1", "-o", str(work / "out")],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        try:
            assert process.stderr is not None
            assert any("tiny.xml: load" in line for line in process.stderr)
            process.send_signal(signal.SIGINT)
            output, error = process.communicate(timeout=120)
        finally:
            process.kill()
    assert process.returncode == 130, error
    assert error.splitlines()[-1] == "edgeface: interrupted"
    assert output == ""
    assert not (work / "out").exists()


def test_a_reader_who_has_gone_does_not_cost_the_result(work: Path) -> None:
    command = [sys.executable, "-m", "edgeface", "bench", "run", str(work / "tiny.xml"), *QUICK]
    with subprocess.Popen([*command, "-o", str(work / "out")], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.close()
        assert process.wait(timeout=120) == 0
    assert BenchmarkResult.read(work / "out").throughput_fps


def test_an_earlier_result_is_not_overwritten(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert bench(work, "-o", work / "out") == 0
    before = (work / "out" / "result.json").read_bytes()
    assert bench(work, "-o", work / "out") == 2
    assert "expected a folder without a result, found one; choose another folder" in capsys.readouterr().err
    assert (work / "out" / "result.json").read_bytes() == before
