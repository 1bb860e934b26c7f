"""`edgeface gallery` on a tiny model: what a user sees from the first enrolment to the last erasure."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from tiny_ir import tiny_crop, write_tiny_ir

from edgeface.cli import main
from edgeface.files import staging_folder
from edgeface.gallery import open_gallery

pytestmark = pytest.mark.timeout(120)
COLORS = {"Ada": (220, 20, 20), "Grace": (20, 220, 20), "Linus": (20, 20, 220)}


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """tiny.xml, people/NAME/0.png and 1.png, and keys/a and keys/b."""
    monkeypatch.delenv("EDGEFACE_GALLERY_KEY", raising=False)
    monkeypatch.setenv("EDGEFACE_CACHE", str(tmp_path / "cache"))  # without a default model
    monkeypatch.chdir(tmp_path)
    write_tiny_ir(tmp_path)
    for name, color in COLORS.items():
        for number in range(2):
            folder = tmp_path / "people" / name
            folder.mkdir(parents=True, exist_ok=True)
            shade = np.array(color, np.uint8) - np.uint8(10 * number)
            cv2.imwrite(str(folder / f"{number}.png"), tiny_crop(shade))
    (tmp_path / "keys").mkdir()
    for number, name in enumerate("ab"):
        (tmp_path / "keys" / name).write_text(f"{number + 1:02x}" * 32)
        (tmp_path / "keys" / name).chmod(0o600)
    return tmp_path


def run(*words: str) -> int:
    return main(["gallery", *words])


def ask(capsys: pytest.CaptureFixture[str], *words: str, code: int = 0) -> dict[str, Any]:
    capsys.readouterr()
    assert run(*words, "--json") == code
    return json.loads(capsys.readouterr().out)


KEY = ("--key", "file:keys/a")
ENROL = ("--model", "tiny.xml", "--crops", "--threshold", "0.9", "--no-gate")


@pytest.fixture
def gallery(work: Path) -> Path:
    assert run("create", "g", "--model", "tiny.xml", "--keep-images", *KEY) == 0
    assert run("enrol", "g", "people", *ENROL, "--label", "staff", "--meta", "site=Bern", *KEY) == 0
    return work / "g"


@pytest.mark.usefixtures("gallery")
def test_a_folder_of_people_is_enrolled_listed_and_shown(capsys: pytest.CaptureFixture[str]) -> None:
    listed = ask(capsys, "list", "g", *KEY)
    assert [(each["name"], each["template_count"], each["labels"]) for each in listed["people"]] == [
        (name, 2, ["staff"]) for name in COLORS
    ]
    assert (listed["model"], listed["encrypted"], listed["keeps_images"]) == ("tiny", True, True)
    shown = ask(capsys, "show", "g", "Ada", *KEY)
    assert shown["metadata"] == {"site": "Bern"}
    assert [each["has_image"] for each in shown["templates"]] == [True, True]
    assert run("list", "g", *KEY) == run("show", "g", f"#{shown['id']}", *KEY) == 0
    assert "site: Bern" in capsys.readouterr().out
    assert ask(capsys, "list", "g", "--label", "nobody", *KEY)["people"] == []
    with open_gallery(Path("g"), key=b"\1" * 32) as store:
        store.update_person(shown["id"], metadata={"site": "Bern", "pin": "salt$hash", "forget_code": "hash"})
    assert "hash" not in json.dumps([ask(capsys, "list", "g", *KEY), ask(capsys, "show", "g", "Ada", *KEY)])
    assert run("show", "g", "Ada", *KEY) == 0
    assert "hash" not in capsys.readouterr().out


@pytest.mark.usefixtures("gallery")
def test_enrolling_again_adds_nothing_and_a_stolen_face_exits_1(capsys: pytest.CaptureFixture[str]) -> None:
    again = ask(capsys, "enrol", "g", "people", *ENROL, *KEY)
    assert [(each["already"], each["new_templates"]) for each in again["enrolled"]] == [(2, [])] * 3
    thief = ("enrol", "g", "people/Ada/0.png", "--name", "Mallory", *ENROL, *KEY)
    refused = ask(capsys, *thief, code=1)
    assert "found that of 'Ada'" in refused["not_enrolled"][0]["error"]
    forced = ask(capsys, *thief, "--force")
    assert forced["enrolled"][0]["lookalikes"][0]["name"] == "Ada"


@pytest.mark.usefixtures("gallery")
def test_pictures_that_do_not_look_like_one_person_are_named(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (work / "people" / "Ada" / "00.png").write_bytes(b"no picture")  # is refused, and does not count
    pictures = ("people/Ada", "people/Grace/0.png", "--name", "Both", "--force")
    done = ask(capsys, "enrol", "g", *pictures, *ENROL, *KEY)
    (odd, other) = done["enrolled"][0]["disagreements"]
    names = [f"people/Ada/{number}.png" for number in range(2)]
    assert {odd["new"], other["new"]} == {"people/Grace/0.png"}
    assert [odd["other"], other["other"]] == names
    assert run("enrol", "g", "people/Linus/0.png", "--name", "Both", "--force", *ENROL, *KEY) == 0
    assert "people/Linus/0.png and template" in capsys.readouterr().err


@pytest.mark.usefixtures("gallery")
def test_a_photo_in_no_persons_folder_needs_a_name(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (work / "people" / "Ada" / "0.png").rename(work / "loose.png")
    assert run("forget", "g", "Ada", "--yes", *KEY) == 0
    assert run("enrol", "g", "loose.png", *ENROL, *KEY) == 2
    assert "loose.png: expected one folder for each person" in capsys.readouterr().err
    assert run("enrol", "g", "loose.png", "--name", "Ada", *ENROL, *KEY) == 0
    assert "1 new, 1 template in all" in capsys.readouterr().out


def test_a_dry_run_shows_people_photos_and_what_is_left_out_without_a_model_or_a_gallery(
    work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("@eaDir/0.png/SYNOPHOTO_THUMB_XL.jpg", "2021/2.pgm", "clip.gif"):
        (work / "people" / "Ada" / name).parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(work / "people" / "Ada" / "2021" / "2.pgm"), np.zeros((9, 9), np.uint8))
    (work / "people" / "Ada" / "clip.gif").write_bytes(b"GIF89a")
    words = ("enrol", "none.gallery", "people", "--dry-run", "--model", "none.xml")
    plan = ask(capsys, *words)
    assert plan["people"][0] == {
        "name": "Ada",
        "photos": [f"people/Ada/{each}" for each in ("0.png", "1.png", "2021/2.pgm")],
    }
    assert [each["name"] for each in plan["people"]] == list(COLORS)
    assert [each["path"] for each in plan["left_out"]] == ["people/Ada/@eaDir"]
    assert [each["path"] for each in plan["refused"]] == ["people/Ada/clip.gif"]
    (work / "people" / "Nobody").mkdir()
    assert run(*words) == 1
    told = capsys.readouterr()
    assert "Ada: 3 photos\n  people/Ada/0.png\n" in told.out
    assert "left out: people/Ada/@eaDir: hidden, or written by a system\n" in told.err
    assert "Nobody: no photo can be read\n" in told.err
    assert not (work / "none.gallery").exists()


@pytest.mark.usefixtures("gallery")
def test_a_photo_by_itself_enrols_no_person_of_its_folders_name(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (work / "dl").mkdir()
    (work / "people" / "Ada" / "0.png").rename(work / "dl" / "0.png")
    for place in ("dl/0.png", "dl", "dl/*.png"):
        assert run("enrol", "g", place, *ENROL, *KEY) == 2
        assert "dl/0.png: expected one folder for each person" in capsys.readouterr().err


def test_ten_places_of_what_remains_are_printed_and_json_has_all(
    work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Copies of the gallery's file that another process is making, as an export or a backup does, cannot be swept."""
    assert run("create", "g", "--model", "tiny.xml", "--unencrypted") == 0
    assert run("enrol", "g", "people", *ENROL) == 0
    with contextlib.ExitStack() as stack:
        for _ in range(13):
            staging = stack.enter_context(staging_folder(work))
            shutil.copy("g", staging / "copy")
        capsys.readouterr()
        assert run("forget", "g", "Ada", "--yes") == 1
        printed = capsys.readouterr().err
        told = ask(capsys, "forget", "g", "Grace", "--yes", code=1)
    places = [line for line in printed.splitlines() if line.startswith("still there: ")]
    assert len(places) == 10
    assert re.search(r"\n\d+ more; --json names all\nclose other programs", printed)
    assert len(told["remains"]) > 20


@pytest.mark.usefixtures("gallery")
def test_forget_asks_and_erases_and_proves(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("forget", "g", "Ada", *KEY) == 2
    assert "pass --yes" in capsys.readouterr().err
    done = ask(capsys, "forget", "g", "Ada", "--yes", *KEY)
    assert (done["templates"], done["images"], done["proved"], done["remains"]) == (2, 2, True, [])
    assert [each["name"] for each in ask(capsys, "list", "g", *KEY)["people"]] == ["Grace", "Linus"]
    assert run("forget", "g", "Ada", "--yes", *KEY) == 2
    assert "no person is named 'Ada'" in capsys.readouterr().err


@pytest.mark.usefixtures("gallery")
def test_export_and_import_carry_everybody_to_another_gallery(capsys: pytest.CaptureFixture[str]) -> None:
    assert ask(capsys, "export", "g", "-o", "out", *KEY)["encrypted"] is True
    assert run("export", "g", "-o", "out", *KEY) == 2
    assert run("create", "h", "--model", "tiny.xml", "--unencrypted") == 0
    taken = ask(capsys, "import", "h", "out", "--threshold", "0.9", code=2)
    assert taken["error"]["kind"] == "GalleryKeyError"
    assert run("create", "i", "--model", "tiny.xml", "--key", "file:keys/b") == 0
    words = ("import", "i", "out", "--key", "file:keys/b", "--export-key", "file:keys/a", "--threshold", "0.9")
    assert ask(capsys, *words) == {"gallery": "i", "people": 3, "templates": 6, "already": 0}
    assert ask(capsys, *words)["already"] == 6


@pytest.mark.usefixtures("gallery")
def test_rekey_then_only_the_new_key_opens(capsys: pytest.CaptureFixture[str]) -> None:
    assert ask(capsys, "rekey", "g", *KEY, "--new-key", "file:keys/b")["remains"] == []
    assert ask(capsys, "list", "g", *KEY, code=2)["error"]["kind"] == "GalleryKeyError"
    assert len(ask(capsys, "list", "g", "--key", "file:keys/b")["people"]) == 3
    assert run("rekey", "g", "--key", "file:keys/b") == 2


@pytest.mark.usefixtures("gallery")
def test_another_model_is_refused_until_the_gallery_is_rebuilt_with_it(
    work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (work / "newer").mkdir()
    write_tiny_ir(work / "newer", name="newer", source="b")
    assert run("enrol", "g", "people", "--model", "newer/newer.xml", *ENROL[2:], *KEY) == 2
    assert "expected one contract_id" in capsys.readouterr().err
    rebuild = ("rebuild", "g", "--model", "newer/newer.xml", *KEY)
    assert run(*rebuild) == 2
    done = ask(capsys, *rebuild, "--same-alignment")
    assert (done["embedded"], done["dropped"]) == (6, 0)
    assert ask(capsys, "list", "g", *KEY)["model"] == "newer"


def test_check_says_what_is_damaged_and_exits_1(gallery: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert ask(capsys, "check", "g", *KEY)["rows"] == {"people": 3, "templates": 6, "images": 6, "staged": 0}
    import sqlite3

    sqlite3.connect(gallery, isolation_level=None).execute("UPDATE images SET body = x'00' WHERE template_id = 2")
    assert "row 2 of images" in ask(capsys, "check", "g", *KEY, code=1)["problems"][0]


def test_a_gallery_without_a_key_must_be_asked_for(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("create", "g", "--model", "tiny.xml") == 2
    assert "openssl rand -hex 32" in capsys.readouterr().err
    assert not (work / "g").exists()
    assert run("create", "g", "--model", "tiny.xml", "--unencrypted", *KEY) == 2
    assert run("create", "g", "--model", "tiny.xml", "--unencrypted") == 0
    assert "not encrypted: names and embeddings can be read without a key" in capsys.readouterr().out


def test_no_command_at_all_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    assert run() == 2
    assert "edgeface: expected a command" in capsys.readouterr().err


def test_the_key_of_the_environment_is_used(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGEFACE_GALLERY_KEY", "01" * 32)
    assert run("create", "g", "--model", "tiny.xml") == 0
    assert run("list", "g") == 0
    monkeypatch.delenv("EDGEFACE_GALLERY_KEY")
    assert run("list", "g") == 2
    assert run("list", "g", *KEY) == 0


@pytest.mark.usefixtures("gallery")
def test_enrolling_stored_embeddings_says_that_no_gate_has_judged_them(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["embed", "people", "--crops", "--model", "tiny.xml", "-o", "people.npz"]) == 0
    for gate, told in (([], True), (["--no-gate"], False)):
        assert run("create", f"h{told}", "--model", "tiny.xml", "--unencrypted") == 0
        assert run("enrol", f"h{told}", "people.npz", "--threshold", "0.9", *gate) == 0
        assert ("of any quality" in capsys.readouterr().err) == told


@pytest.mark.usefixtures("gallery")
@pytest.mark.usefixtures("nothing_installed")
def test_what_edgeface_embed_wrote_is_enrolled_without_a_model(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["embed", "people", "--crops", "--model", "tiny.xml", "-o", "people.npz"]) == 0
    assert run("create", "h", "--model", "tiny.xml", "--unencrypted") == 0
    done = ask(capsys, "enrol", "h", "people.npz", "--threshold", "0.9")
    assert [(each["name"], each["template_count"]) for each in done["enrolled"]] == [(name, 2) for name in COLORS]
    assert run("enrol", "h", "people", "--threshold", "0.9") == 3
    assert "expected a default model" in capsys.readouterr().err
    assert run("enrol", "h", "people", "--crops", "--model", "tiny.xml") == 3
    assert "edgeface calibrate" in capsys.readouterr().err


def test_after_20_people_the_way_to_calibrate_is_told(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("create", "h", "--model", "tiny.xml", "--unencrypted") == 0
    rng = np.random.default_rng(0)
    for number in range(20):
        (work / "staff" / f"P{number:02d}").mkdir(parents=True)
        cv2.imwrite(str(work / "staff" / f"P{number:02d}" / "0.png"), tiny_crop(rng.integers(20, 255, 3)))
    assert run("enrol", "h", "staff/P0*/0.png", "staff/P1[0-8]", "--force", *ENROL) == 0
    assert "calibrate" not in capsys.readouterr().err
    assert run("enrol", "h", "staff", "--force", *ENROL) == 0
    assert "calibrate on your own photos: edgeface calibrate staff" in capsys.readouterr().err.splitlines()


def test_what_makes_a_gallery_quick_to_open_is_there_after_enrolment(
    work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edgeface.gallery.store.base._CACHED_ROWS", 1)
    for name in ("g", "h"):
        assert run("create", name, "--model", "tiny.xml", *KEY) == 0
    assert run("enrol", "g", "people", *ENROL, *KEY) == 0
    assert run("export", "g", "-o", "out", *KEY) == 0
    assert run("import", "h", "out", "--threshold", "0.9", *KEY) == 0
    for name in ("g", "h"):
        assert (work / f"{name}.index" / "templates.bin").is_file()
