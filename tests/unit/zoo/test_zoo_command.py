"""`edgeface zoo ...` as a user and as a program sees it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tiny_ir import write_tiny_ir

from edgeface.cli import main
from edgeface.zoo import ModelStore, load_catalog

CONTENT = b"a tiny model"
CATALOG = """
schema_version: 1
models:
  tiny:
    description: A model for tests.
    task_type: detection
    files:
      - name: model.bin
        checksum: trust-on-first-use
        source: http://127.0.0.1:9/model.bin
    framework: onnx
    license: https://example.org/license
    license_name: MIT
    conversion:
      source: model.bin
"""

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def options(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A catalog of one model, a mirror that has it, and an empty cache."""
    (tmp_path / "model_zoo.yml").write_text(CATALOG, encoding="utf-8")
    (tmp_path / "mirror" / "tiny").mkdir(parents=True)
    (tmp_path / "mirror" / "tiny" / "model.bin").write_bytes(CONTENT)
    monkeypatch.setenv("EDGEFACE_MIRROR", str(tmp_path / "mirror"))
    return ["--catalog", str(tmp_path / "model_zoo.yml"), "--cache", str(tmp_path / "cache")]


def answer(capture: Capture) -> Any:
    """Read the one JSON object on stdout."""
    return json.loads(capture.readouterr().out)


def test_list_shows_every_model(capsys: Capture) -> None:
    assert main(["zoo", "list"]) == 0
    text = capsys.readouterr().out
    assert "facenet-20180408-102900" in text
    assert "landmarks-regression-retail-0009" in text


def test_list_fits_into_80_columns_uncut(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgeface.cli.zoo.stdout._width", 80)
    assert main(["zoo", "list"]) == 0
    title, *lines, _ = capsys.readouterr().out.splitlines()
    assert title.split() == ["name", "task", "licence", "size", "here"]
    assert len(lines) == len(load_catalog()), "one line for each model"
    assert all(line.split()[-1] in ("yes", "no") for line in lines)
    assert any("non-commercial" in line for line in lines)
    assert max(map(len, (title, *lines))) <= 80


def test_list_as_json_says_what_is_here(options: list[str], capsys: Capture) -> None:
    assert main(["zoo", "list", "--json", *options]) == 0
    (before,) = answer(capsys)["models"]
    assert (before["folder"], before["here"], before["default"]) == (None, None, False)
    main(["zoo", "download", "tiny", *options])
    capsys.readouterr()
    assert main(["zoo", "list", "--json", *options]) == 0
    (after,) = answer(capsys)["models"]
    assert after["folder"].endswith("cache/models/tiny")
    assert after["here"] == "downloaded"


def test_list_says_that_the_default_model_is_here(tmp_path: Path, capsys: Capture) -> None:
    store, name = ModelStore(tmp_path), "facenet-20180408-102900"
    store.ir_path(name).parent.mkdir(parents=True)
    write_tiny_ir(store.ir_path(name).parent, name=name)
    assert main(["zoo", "list", "--json", "--cache", str(tmp_path)]) == 0
    found = {model["name"]: model for model in answer(capsys)["models"]}
    assert (found[name]["here"], found[name]["default"], found[name]["folder"]) == ("converted", True, None)
    assert sum(model["default"] for model in found.values()) == 1
    assert main(["zoo", "list", "--cache", str(tmp_path)]) == 0
    assert f"default: {name}" in capsys.readouterr().out


def test_info_shows_what_a_user_has_to_know(capsys: Capture) -> None:
    assert main(["zoo", "info", "facenet-20180402-114759"]) == 0
    text = capsys.readouterr().out
    assert "no digest is published: trust on first use" in text
    assert "licence  MIT, https://" in text
    assert "0.9965 on LFW" in text


def test_info_as_json_keeps_open_model_zoos_keys(capsys: Capture) -> None:
    assert main(["zoo", "info", "facenet-20180408-102900", "--json"]) == 0
    found = answer(capsys)
    assert found["postprocessing"][0]["$type"] == "unpack_archive"
    assert found["alignment"] == {"recipe": "mtcnn-box-margin", "margin": 32}


def test_info_reads_an_open_model_zoo_file(tmp_path: Path, capsys: Capture) -> None:
    path = tmp_path / "some-model" / "model.yml"
    path.parent.mkdir()
    path.write_text(
        "description: d\ntask_type: detection\nfiles: []\nframework: dldt\nlicense: https://example.org/l\n"
    )
    assert main(["zoo", "info", "--from", str(path), "--json"]) == 0
    assert answer(capsys)["name"] == "some-model"


@pytest.mark.parametrize("arguments", [["info"], ["info", "yunet", "--from", "model.yml"]])
def test_wrong_use_is_exit_code_2(arguments: list[str], capsys: Capture) -> None:
    assert main(["zoo", *arguments]) == 2


def test_an_unknown_model_is_exit_code_3_with_a_hint(capsys: Capture) -> None:
    assert main(["zoo", "download", "yunett", "--json"]) == 3
    captured = capsys.readouterr()
    assert "did you mean yunet" in captured.err
    assert json.loads(captured.out)["error"]["kind"] == "ModelNotFoundError"


def test_a_download_shows_the_licence_once_and_records_it(options: list[str], capsys: Capture) -> None:
    assert main(["zoo", "download", "tiny", "--json", *options]) == 0
    captured = capsys.readouterr()
    assert "licence MIT, https://example.org/license" in captured.err
    assert json.loads(captured.out)["models"][0]["files"][0]["trusted_on_first_use"]
    assert main(["zoo", "download", "tiny", "--json", *options]) == 0
    captured = capsys.readouterr()
    assert "licence" not in captured.err
    assert json.loads(captured.out)["models"][0]["already_there"]
    main(["zoo", "info", "tiny", "--json", *options])
    assert answer(capsys)["license_state"] == "shown"


def test_a_licence_can_be_accepted_without_a_person(options: list[str], capsys: Capture) -> None:
    assert main(["zoo", "download", "tiny", "-y", *options]) == 0
    assert "trusted on first use: SHA-256" in capsys.readouterr().out
    main(["zoo", "info", "tiny", "--json", *options])
    assert answer(capsys)["license_state"] == "accepted"


@pytest.fixture
def non_commercial(options: list[str], tmp_path: Path) -> list[str]:
    """The options, with a catalog whose model is for non-commercial use."""
    text = CATALOG.replace("license_name: MIT", "license_name: MIT\n    non_commercial: true")
    (tmp_path / "model_zoo.yml").write_text(text, encoding="utf-8")
    return options


def test_a_non_commercial_model_is_downloaded_only_once_its_licence_is_accepted(
    non_commercial: list[str], tmp_path: Path, capsys: Capture
) -> None:
    assert main(["zoo", "download", "tiny", *non_commercial]) == 2
    assert "allows non-commercial use only" in (told := capsys.readouterr().err)
    assert "--accept-licence" in told
    assert not (tmp_path / "cache" / "models").exists()
    assert main(["zoo", "download", "tiny", "--accept-licence", *non_commercial]) == 0
    assert main(["zoo", "download", "tiny", *non_commercial]) == 0  # it was recorded


def test_a_changed_licence_has_to_be_accepted_again(non_commercial: list[str], tmp_path: Path, capsys: Capture) -> None:
    assert main(["zoo", "download", "tiny", "--accept-license", *non_commercial]) == 0
    catalog = tmp_path / "model_zoo.yml"
    catalog.write_text(catalog.read_text().replace("example.org/license", "example.org/other"), encoding="utf-8")

    assert main(["zoo", "download", "tiny", *non_commercial]) == 2


@pytest.mark.parametrize(("reply", "code", "state"), [("y", 0, "accepted"), ("", 2, "shown")])
def test_a_person_on_a_terminal_is_asked(
    options: list[str], capsys: Capture, monkeypatch: pytest.MonkeyPatch, reply: str, code: int, state: str
) -> None:
    monkeypatch.setattr("edgeface.cli.zoo._is_interactive", lambda: True)
    monkeypatch.setattr("builtins.input", lambda: reply)
    assert main(["zoo", "download", "tiny", *options]) == code
    capsys.readouterr()
    main(["zoo", "info", "tiny", "--json", *options])
    assert answer(capsys)["license_state"] == state


def test_progress_for_machines_leaves_one_json_object_on_stdout(options: list[str], capsys: Capture) -> None:
    assert main(["zoo", "download", "tiny", "--json", "--progress", "json", *options]) == 0
    captured = capsys.readouterr()
    json.loads(captured.out)
    lines = [json.loads(line) for line in captured.err.splitlines() if line.startswith("{")]
    assert lines[0] == {"$type": "model_download_begin", "model": "tiny", "num_files": 1}
    assert {"$type": "model_download_end", "model": "tiny", "successful": True} in lines


def test_progress_for_people_is_a_bar(options: list[str], capsys: Capture) -> None:
    assert main(["zoo", "download", "tiny", "--progress", "text", *options]) == 0
    assert "tiny/model.bin" in capsys.readouterr().err


def test_verify_answers_no_when_a_file_changed(options: list[str], tmp_path: Path, capsys: Capture) -> None:
    main(["zoo", "download", "tiny", *options])
    assert main(["zoo", "verify", *options]) == 0
    path = tmp_path / "cache" / "models" / "tiny" / "model.bin"
    path.chmod(0o644)
    path.write_bytes(b"changed")
    assert main(["zoo", "verify", "tiny", *options]) == 1
    assert "repair it with: edgeface zoo download" in capsys.readouterr().err
    assert main(["zoo", "verify", "--json", *options]) == 1
    assert not answer(capsys)["intact"]


def test_verify_of_what_is_not_here_is_exit_code_3(options: list[str]) -> None:
    assert main(["zoo", "verify", "tiny", *options]) == 3
    assert main(["zoo", "verify", *options]) == 0


def test_a_bundle_goes_from_one_cache_to_another(options: list[str], tmp_path: Path, capsys: Capture) -> None:
    main(["zoo", "download", "tiny", *options])
    assert main(["zoo", "bundle", "tiny", "-o", str(tmp_path / "b.tar"), *options]) == 0
    other = [*options[:3], str(tmp_path / "other")]
    capsys.readouterr()
    assert main(["zoo", "import", str(tmp_path / "b.tar"), "--json", *other]) == 0
    assert answer(capsys)["models"][0]["name"] == "tiny"
    assert main(["zoo", "verify", "tiny", *other]) == 0


@pytest.mark.parametrize("command", ["list", "info", "download", "verify", "default", "bundle", "import"])
def test_every_command_has_an_example_in_its_help(command: str, capsys: Capture) -> None:
    main(["zoo", command, "--help"])
    assert f"edgeface zoo {command}" in capsys.readouterr().out.split("Usage:")[1].split("\n", 1)[1]
