"""The four tools with Open Model Zoo's flags, run as programs."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from edgeface.zoo.catalog import load_catalog

TOOLS = Path(__file__).resolve().parents[2] / "tools"
FACENET = "facenet-20180408-102900"

pytestmark = pytest.mark.timeout(120)


def run(tool: str, *arguments: str, folder: Path, mirror: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(TOOLS / f"{tool}.py"), *arguments],
        cwd=folder,
        env={**os.environ, "EDGEFACE_CACHE": str(folder / "cache"), "EDGEFACE_MIRROR": str(mirror or "")},
        capture_output=True,
        text=True,
        timeout=100,
    )


@pytest.mark.parametrize("tool", ["downloader", "converter", "quantizer", "info_dumper"])
def test_every_tool_prints_all_names(tool: str, tmp_path: Path) -> None:
    done = run(tool, "--print_all", folder=tmp_path)
    assert done.returncode == 0
    assert FACENET in done.stdout.splitlines()
    assert done.stdout.splitlines() == list(load_catalog())
    assert not any(tmp_path.iterdir())


def test_a_tool_wants_exactly_one_way_of_choosing(tmp_path: Path) -> None:
    assert run("downloader", folder=tmp_path).returncode == 2
    assert run("downloader", "--all", "--name", "yunet", folder=tmp_path).returncode == 2


def test_a_name_that_matches_nothing_is_exit_code_3(tmp_path: Path) -> None:
    done = run("info_dumper", "--name", "resnet-50", folder=tmp_path)
    assert done.returncode == 3
    assert "no model 'resnet-50'" in done.stderr


def test_unknown_precisions_are_wrong_use(tmp_path: Path) -> None:
    done = run("converter", "--all", "--precisions", "FP16,FP8", folder=tmp_path)
    assert done.returncode == 2
    assert "found FP8" in done.stderr


def test_info_dumper_answers_in_open_model_zoos_form(tmp_path: Path) -> None:
    listed = tmp_path / "models.lst"
    listed.write_text("# detectors and one more\nyunet\nfacenet-20180408*  # with a pattern\n")
    done = run("info_dumper", "--list", str(listed), folder=tmp_path)
    facenet, yunet = json.loads(done.stdout)
    assert (facenet["name"], yunet["name"]) == (FACENET, "yunet")
    assert facenet["subdirectory"] == f"public/{FACENET}"
    assert facenet["precisions"] == ["FP16", "FP32"]
    assert facenet["input_info"] == [{"name": "image_batch", "shape": [-1, 160, 160, 3], "layout": "NHWC"}]
    assert {"license_url", "framework", "task_type", "description", "model_stages"} <= facenet.keys()


def test_a_dry_run_says_what_would_be_done_and_does_nothing(tmp_path: Path) -> None:
    done = run("downloader", "--name", FACENET, "--dry_run", folder=tmp_path)
    assert f"would download {FACENET}/20180408-102900.zip" in done.stdout
    done = run("converter", "--name", FACENET, "--dry_run", "--precisions", "FP16", "-o", "irs", folder=tmp_path)
    assert done.stdout == f"would convert {FACENET} to irs/public/{FACENET}/FP16/{FACENET}.xml\n"
    assert not any(tmp_path.iterdir())


def test_what_cannot_be_done_yet_is_exit_code_3(tmp_path: Path) -> None:
    done = run("quantizer", "--name", FACENET, "--precisions", "FP16-INT8", folder=tmp_path)
    assert (done.returncode, done.stderr.count("\n")) == (3, 1)
    assert "expected FP32-INT8, found FP16-INT8" in done.stderr
    done = run(
        "quantizer", "--name", FACENET, "--dry_run", "-p", "python3", "--pot", "main.py", "--target_device", "CPU",
        folder=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0
    assert f"FP32-INT8/{FACENET}.xml" in done.stdout
    done = run("converter", "--name", FACENET, "--precisions", "FP16-INT8", folder=tmp_path)
    assert done.returncode == 3
    done = run("converter", "--name", "yunet", folder=tmp_path)
    assert done.returncode == 3
    assert "detectors cannot be converted yet" in done.stderr


def test_a_model_that_is_not_downloaded_is_exit_code_3(tmp_path: Path) -> None:
    done = run("converter", "--name", FACENET, "--precisions", "FP32", folder=tmp_path)
    assert done.returncode == 3
    assert f"run: edgeface zoo download {FACENET}" in done.stderr


@pytest.mark.real
def test_downloads_land_in_open_model_zoos_folders(tmp_path: Path, data: Path) -> None:
    mirror = tmp_path / "mirror"
    shutil.copytree(data / "omz" / "landmarks-regression-retail-0009", mirror / "landmarks-regression-retail-0009")
    shutil.copytree(data / "yunet", mirror / "yunet")
    arguments = ["--name", "yunet,landmarks*", "--precisions", "FP16", "-o", "out", "-j", "2", "--num_attempts", "2"]
    done = run("downloader", *arguments, "--progress_format", "json", folder=tmp_path, mirror=mirror)
    assert done.returncode == 0, done.stderr
    events = [json.loads(line) for line in done.stdout.splitlines()]
    assert [event["model"] for event in events if event["$type"] == "model_download_end" and event["successful"]] == [
        "yunet",
        "landmarks-regression-retail-0009",
    ]
    folder = tmp_path / "out" / "intel" / "landmarks-regression-retail-0009"
    assert sorted(path.name for path in folder.rglob("*.*")) == [f"{folder.name}.bin", f"{folder.name}.xml"]
    assert (tmp_path / "out" / "public" / "yunet" / "yunet_n_dynamic.onnx").is_file()
    done = run("converter", "--name", "landmarks*", "-d", "out", folder=tmp_path)
    assert done.returncode == 0
    assert "it is an IR already" in done.stderr


@pytest.mark.real
def test_one_model_that_fails_does_not_stop_the_others(tmp_path: Path, data: Path) -> None:
    mirror = tmp_path / "mirror"
    (mirror / FACENET).mkdir(parents=True)
    (mirror / FACENET / "20180408-102900.zip").write_bytes(b"not the published file")
    shutil.copytree(data / "yunet", mirror / "yunet")
    # nothing may leave this machine: every address goes to a port where nobody listens
    closed = {"https_proxy": "http://127.0.0.1:9", "http_proxy": "http://127.0.0.1:9"}
    command = [sys.executable, str(TOOLS / "downloader.py"), "--name", f"yunet,{FACENET}", "-o", "out"]
    environment = {**os.environ, **closed, "EDGEFACE_CACHE": str(tmp_path / "c"), "EDGEFACE_MIRROR": str(mirror)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=100)
    assert done.returncode == 3
    assert f"downloader.py: {FACENET}/20180408-102900.zip: no source delivered it" in done.stderr
    assert "expected 195,479,980 bytes, offers 22" in done.stderr
    assert (tmp_path / "out" / "public" / "yunet" / "yunet_n_dynamic.onnx").is_file()
