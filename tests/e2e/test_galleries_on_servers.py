"""One scenario over a gallery in a file and one on a server: every command, from the first enrolment to the erasure."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import uuid4

import cv2
import numpy as np
import pytest
from postgres_server import WITH_PASSWORD, Cluster, binaries
from tiny_ir import tiny_crop, write_tiny_ir

from edgeface.cli import main
from edgeface.gallery import LiveIndex, open_gallery

pytestmark = pytest.mark.timeout(120)
COLORS = {"Ada": (220, 20, 20), "Grace": (20, 220, 20), "Linus": (20, 20, 220)}
MODEL = ("--model", "tiny.xml")
SEE = (*MODEL, "--crops", "--threshold", "0.9", "--no-gate")
KEY, OTHER = ("--key", "file:keys/a"), ("--key", "file:keys/b")


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """tiny.xml, newer/newer.xml, people/NAME/0.png, and keys/a and keys/b."""
    monkeypatch.delenv("EDGEFACE_GALLERY_KEY", raising=False)
    monkeypatch.chdir(tmp_path)
    write_tiny_ir(tmp_path)
    (tmp_path / "newer").mkdir()
    write_tiny_ir(tmp_path / "newer", name="newer", source="b")
    for name, color in COLORS.items():
        (tmp_path / "people" / name).mkdir(parents=True)
        cv2.imwrite(f"people/{name}/0.png", tiny_crop(np.array(color, np.uint8)))
    (tmp_path / "keys").mkdir()
    for number, name in enumerate("ab"):
        (tmp_path / "keys" / name).write_text(f"{number + 1:02x}" * 32)
        (tmp_path / "keys" / name).chmod(0o600)
    return tmp_path


@pytest.fixture(params=["file", "server"])
def name_one(request: pytest.FixtureRequest, work: Path) -> Callable[[], str]:
    """Makes addresses of galleries that do not exist yet."""
    if request.param == "file":
        return lambda: str(work / f"g{uuid4().hex[:8]}")
    cluster: Cluster = request.getfixturevalue("cluster")
    return lambda: f"{cluster.url}?gallery=g{uuid4().hex[:8]}"


def ask(capsys: pytest.CaptureFixture[str], *words: str, code: int = 0, group: str = "gallery") -> dict[str, Any]:
    capsys.readouterr()
    found = main([*([group] if group else []), *words, "--json"])
    told = capsys.readouterr()
    assert found == code, told.err
    return json.loads(told.out)


def names(capsys: pytest.CaptureFixture[str], gallery: str, key: tuple[str, ...]) -> list[str]:
    return [each["name"] for each in ask(capsys, "list", gallery, *key)["people"]]


def test_every_command_does_the_same_in_a_file_and_on_a_server(
    name_one: Callable[[], str], capsys: pytest.CaptureFixture[str]
) -> None:
    g, h = name_one(), name_one()
    made = ask(capsys, "create", g, *MODEL, "--keep-images", *KEY)
    assert (made["gallery"], made["encrypted"], made["keeps_images"]) == (g, True, True)
    assert ask(capsys, "create", g, *MODEL, *KEY, code=2)["error"]["kind"] == "OutputError"
    enrolled = ask(capsys, "enrol", g, "people", *SEE, "--label", "staff", "--meta", "site=Bern", *KEY)
    assert [each["template_count"] for each in enrolled["enrolled"]] == [1, 1, 1]
    thief = ask(capsys, "enrol", g, "people/Ada/0.png", "--name", "Mallory", *SEE, *KEY, code=1)
    assert "found that of 'Ada'" in thief["not_enrolled"][0]["error"]
    assert names(capsys, g, KEY) == list(COLORS)
    shown = ask(capsys, "show", g, "Ada", *KEY)
    assert (shown["metadata"], shown["labels"], len(shown["templates"])) == ({"site": "Bern"}, ["staff"], 1)
    assert ask(capsys, "show", g, "Nobody", *KEY, code=2)["error"]["kind"] == "GalleryError"
    found = ask(capsys, "identify", "people/Grace/0.png", "--gallery", g, *SEE, *KEY, group="")
    assert (found["gallery"], found["images"][0]["faces"][0]["person"]) == (g, "Grace")

    done = ask(capsys, "forget", g, "Ada", "--yes", *KEY)
    assert (done["templates"], done["images"], done["proved"], done["remains"]) == (1, 1, True, [])
    assert names(capsys, g, KEY) == ["Grace", "Linus"]

    assert ask(capsys, "rekey", g, *KEY, "--new-key", "file:keys/b")["remains"] == []
    assert ask(capsys, "list", g, *KEY, code=2)["error"]["kind"] == "GalleryKeyError"
    rebuild = ("rebuild", g, "--model", "newer/newer.xml", "--same-alignment", *OTHER)
    assert (ask(capsys, *rebuild)["embedded"], ask(capsys, *rebuild, code=2)["error"]["kind"]) == (2, "GalleryError")
    assert ask(capsys, "list", g, *OTHER)["model"] == "newer"
    newer = ("--model", "newer/newer.xml", *SEE[2:])
    found = ask(capsys, "identify", "people/Grace/0.png", "--gallery", g, *newer, *OTHER, group="")
    assert found["images"][0]["faces"][0]["person"] == "Grace"
    checked = ask(capsys, "check", g, *OTHER)
    assert (checked["rows"], checked["problems"]) == ({"people": 2, "templates": 2, "images": 2, "staged": 0}, [])

    assert ask(capsys, "export", g, "-o", "out", *OTHER)["people"] == 2
    assert main(["gallery", "create", h, "--model", "newer/newer.xml", *KEY]) == 0
    words = ("import", h, "out", *KEY, "--export-key", "file:keys/b", "--threshold", "0.9")
    assert ask(capsys, *words) == {"gallery": h, "people": 2, "templates": 2, "already": 0}
    assert ask(capsys, *words)["already"] == 2
    assert names(capsys, h, KEY) == ["Grace", "Linus"]


def test_a_gallery_on_a_server_is_put_back_by_the_servers_own_programs(
    work: Path, cluster: Cluster, capsys: pytest.CaptureFixture[str]
) -> None:
    """By the very commands that `restore` tells."""
    address = f"{cluster.url}?gallery=g{uuid4().hex[:8]}"
    assert main(["gallery", "create", address, *MODEL, *KEY]) == 0
    assert main(["gallery", "enrol", address, "people", *SEE, *KEY]) == 0
    told = ask(capsys, "restore", address, "copy", "--yes", *KEY, code=3)["error"]["message"]
    dump, restore = (found.split() for found in re.findall(r"pg_[^,;]*", told))
    run(dump, cluster)
    with open_gallery(address, key=KEY[1]) as service, service.watch() as watch:
        live = LiveIndex(service)
        assert main(["gallery", "forget", address, "Ada", "--yes", *KEY]) == 0
        assert watch.wait(1)
        assert len(live) == 2
        run(restore, cluster)
        assert watch.wait(2)
        assert len(live) == 3
        assert service.check().problems == ()
    assert names(capsys, address, KEY) == list(COLORS)


def run(words: list[str], cluster: Cluster) -> None:
    """Run one of the server's programs, with what the text leaves to the reader filled in."""
    programs = binaries()
    assert programs is not None
    filled = [word.replace("COPY", "copy").replace("ADDRESS", cluster.url) for word in words]
    subprocess.run([programs / filled[0], *filled[1:]], check=True, timeout=60)


def test_the_password_comes_from_the_environment_or_a_file_and_is_never_in_an_address(
    work: Path, cluster: Cluster, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    secret = "lovelace:1815"
    cluster.sql(f"CREATE ROLE {WITH_PASSWORD} LOGIN PASSWORD '{secret}'")
    cluster.sql(f"GRANT CREATE ON DATABASE postgres TO {WITH_PASSWORD}")
    url = cluster.url.replace("edgeface@", f"{WITH_PASSWORD}@")
    address = f"{url}?gallery=g{uuid4().hex[:8]}"
    home = work / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    refused = ask(capsys, "create", address, *MODEL, *KEY, code=2)["error"]
    assert (refused["kind"], "set PGPASSWORD" in refused["message"]) == ("GalleryError", True)
    monkeypatch.setenv("PGPASSWORD", f"{secret}2")
    assert "did not accept this" in ask(capsys, "create", address, *MODEL, *KEY, code=2)["error"]["message"]
    monkeypatch.setenv("PGPASSWORD", secret)
    assert main(["gallery", "create", address, *MODEL, *KEY]) == 0
    monkeypatch.delenv("PGPASSWORD")
    entry = f"127.0.0.1:*:*:{WITH_PASSWORD}:lovelace\\:1815\n"
    for place, more in ((work / "passwords", f"&passfile={work / 'passwords'}"), (home / ".pgpass", "")):
        assert main(["gallery", "list", address + more, *KEY]) == 2
        place.write_text(entry)
        place.chmod(0o600)
        assert main(["gallery", "list", address + more, *KEY]) == 0
    capsys.readouterr()
    for wrong in (address.replace("@", f":{secret}@"), f"{address}&password={secret}"):
        for command in (["gallery", "list", wrong], ["identify", "people/Ada/0.png", "--gallery", wrong]):
            assert main([*command, *KEY]) == 2
            told = capsys.readouterr()
            assert "without a password" in told.err
            assert "lovelace" not in told.err + told.out
