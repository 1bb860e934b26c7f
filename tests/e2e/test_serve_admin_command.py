"""`edgeface serve keys|audit|certificates`, as a user types them."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from commands import edgeface

from edgeface.serve.audit import AuditLog
from edgeface.serve.keys import KeyRefused, KeyStore

UUID = r"[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}"


@pytest.fixture(autouse=True)
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EDGEFACE_SERVE_STATE", str(tmp_path / "state"))
    return tmp_path / "state"


def ask(*words: object, code: int = 0) -> Any:
    done = edgeface("serve", *words, "--json")
    assert done.returncode == code, done.stderr
    return json.loads(done.stdout)


def fail(*words: object, code: int = 2) -> str:
    done = edgeface("serve", *words)
    assert (done.returncode, done.stdout) == (code, "")
    assert done.stderr.startswith(("edgeface: ", "Usage: "))
    return done.stderr


# Keys


def test_a_key_alone_is_printed_on_stdout_and_works(state: Path) -> None:
    done = edgeface("serve", "keys", "add", "front door", "--role", "recognise", "--gallery", "berlin", "--days", "30")
    assert done.returncode == 0
    with contextlib.closing(KeyStore(state / "keys.sqlite")) as store:
        key = store.find(done.stdout.strip())
    assert (key.name, key.role.value, key.gallery) == ("front door", "recognise", "berlin")
    assert key.expires is not None
    assert (key.expires - key.created).days == 30
    assert f"key {key.id} (front door): recognise, berlin, expires on" in done.stderr
    assert done.stdout.strip() not in edgeface("serve", "keys", "list").stdout


def test_a_key_is_for_a_gallery_of_the_configuration(state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = state.parent / "serve.yml"
    config.write_text("galleries: {berlin: {}}")
    words = ("--config", config, "keys", "add", "door", "--role", "enrol", "--gallery")
    assert ask(*words, "berlin")["gallery"] == "berlin"
    assert "expected a gallery of the configuration: berlin, found 'default'" in fail(*words, "default")
    done = edgeface("serve", "keys", "add", "door", "--role", "enrol", "--gallery", "paris")
    assert done.returncode == 0
    assert "there may be no gallery paris" in done.stderr
    monkeypatch.setenv("EDGEFACE_SERVE_GALLERIES__BERLIN__FPIR", "0.01")
    assert "found 'paris'" in fail("keys", "add", "door", "--role", "enrol", "--gallery", "paris")
    assert len(ask("keys", "list")["keys"]) == 2


def test_a_key_that_could_not_be_shown_is_revoked(state: Path) -> None:
    words = [sys.executable, "-m", "edgeface", "serve", "keys", "add", "door", "--role", "admin"]
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(words, stdout=full, stderr=subprocess.PIPE, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert "(door) is revoked, because nobody has seen it; add another one" in done.stderr
    with contextlib.closing(KeyStore(state / "keys.sqlite")) as store:
        assert [key.state(store.now()) for key in store.list()] == ["revoked"]


def test_keys_are_listed_with_what_became_of_them() -> None:
    first = ask("keys", "add", "Tür [bold]", "--role", "admin")
    second = ask("keys", "rotate", first["id"], "--grace", "7")
    third = ask("keys", "add", "old", "--role", "metrics")
    assert ask("keys", "revoke", third["id"])["state"] == "revoked"
    listed = {key["id"]: key for key in ask("keys", "list")["keys"]}
    assert (listed[first["id"]]["replaced_by"], listed[first["id"]]["state"]) == (second["id"], "valid")
    assert listed[second["id"]] == {name: value for name, value in second.items() if name != "text"}
    assert not {first["text"], second["text"], third["text"]} & set(json.dumps(listed).split('"'))
    table = edgeface("serve", "keys", "list", columns=80).stdout
    assert "…" not in table
    (line,) = (line for line in table.splitlines() if line.startswith(third["id"]))
    assert line.split() == [third["id"], "old", "metrics", "all", "revoked"]
    assert {"Tür", "[bold]", "replaced"} <= set(table.split())
    assert table.count(second["id"]) == 2  # in its own row, and in that of the key that it replaces


def test_a_running_service_refuses_a_key_within_a_second_of_its_revocation(state: Path) -> None:
    made = ask("keys", "add", "door", "--role", "enrol")
    with contextlib.closing(KeyStore(state / "keys.sqlite")) as service:
        assert service.find(made["text"]).id == made["id"]
        words = [sys.executable, "-m", "edgeface", "serve", "keys", "revoke", made["id"]]
        subprocess.run(words, check=True, capture_output=True)
        time.sleep(0.5)
        with pytest.raises(KeyRefused) as refused:
            service.find(made["text"])
        assert refused.value.reason == "revoked"


def test_wrong_use_of_keys_is_told_and_makes_no_store(state: Path) -> None:
    assert "expected a key store" in fail("keys", "list")
    assert "expected a key store" in fail("keys", "revoke", "4f1c22d8")
    assert "--role" in fail("keys", "add", "door")
    assert "root" in fail("keys", "add", "door", "--role", "root")
    assert not state.exists()
    ask("keys", "add", "door", "--role", "enrol")
    assert "keys list" in fail("keys", "rotate", "4f1c22d8")
    (state / "keys.sqlite").write_bytes(b"damage" * 1000)
    assert "damaged or something else" in fail("keys", "list")
    assert (state / "keys.sqlite").read_bytes() == b"damage" * 1000


# The audit log


def record(state: Path, count: int) -> None:
    with contextlib.closing(AuditLog(state / "audit.sqlite")) as log:
        for number in range(count):
            log.record("identify", key_id="4f1c22d8", people=[number], decision="known")


def test_a_log_is_verified_against_a_head_that_was_kept(state: Path) -> None:
    record(state, 3)
    first = ask("audit", "verify")
    assert (first["whole"], first["rows"], first["broken"]) == (True, 3, None)
    assert f"head, to be kept elsewhere: {first['head']}" in edgeface("serve", "audit", "verify").stdout
    record(state, 2)
    assert ask("audit", "verify", "--head", first["head"])["rows"] == 5
    later = ask("audit", "verify")["head"]
    (state / "audit.sqlite").unlink()
    record(state, 2)
    assert ask("audit", "verify")["whole"]
    report = ask("audit", "verify", "--head", later, code=1)
    assert (report["whole"], report["broken"]) == (False, 3)
    assert "NUMBER:HASH" in fail("audit", "verify", "--head", "x")


def test_rows_are_shown_as_one_object_a_line_or_all_in_one(state: Path) -> None:
    record(state, 3)
    lines = [json.loads(line) for line in edgeface("serve", "audit", "show").stdout.splitlines()]
    assert [(row["sequence"], row["people"]) for row in lines] == [(1, [0]), (2, [1]), (3, [2])]
    assert ask("audit", "show", "--since", "2020-01-01", "--action", "identify")["rows"] == lines
    assert ask("audit", "show", "--limit", "2")["rows"] == lines[1:]
    assert ask("audit", "show", "--limit", "9", "--action", "identify")["rows"] == lines
    assert ask("audit", "show", "--action", "verify")["rows"] == []
    assert ask("audit", "show", "--since", "2099-01-01T00:00:00")["rows"] == []


def test_old_rows_are_removed_only_when_that_is_confirmed(state: Path) -> None:
    record(state, 3)
    assert ask("audit", "prune", "--dry-run") == {"rows": 0, "days": 365, "dry_run": True}
    assert ask("audit", "prune", "--days", "0", "--dry-run")["rows"] == 3
    assert "--yes" in fail("audit", "prune", "--days", "0")
    head = ask("audit", "verify")["head"]
    assert ask("audit", "prune", "--days", "0", "--yes")["rows"] == 3
    (row,) = ask("audit", "show")["rows"]
    assert (row["action"], row["removed"]) == ("audit.prune", head)
    assert ask("audit", "verify", "--head", head)["whole"]


def test_a_log_that_is_not_there_is_not_made(state: Path) -> None:
    for words in (("verify",), ("show",), ("prune", "--yes")):
        assert "audit.sqlite" in fail("audit", *words)
    assert not state.exists()


# Certificates


def test_certificates_are_made_once_renewed_and_explained(state: Path) -> None:
    done = edgeface("serve", "certificates", "kiosk.local", "10.0.0.7")
    assert done.returncode == 0
    assert done.stdout.startswith(f"{state}/tls/server.crt: kiosk.local, 10.0.0.7, ")
    assert f"install {state}/tls/ca.crt on each client (never ca.key)" in done.stderr
    again = ask("certificates")
    assert (again["new_authority"], again["names"][:2]) == (False, ["kiosk.local", "10.0.0.7"])
    assert bytes.fromhex(again["fingerprint"]).hex(":").upper() in done.stderr
    client = ask("certificates", "--client", "door-7")
    assert client["certificate"] == str(state / "tls" / "client-door-7.crt")
    assert "DNS name" in fail("certificates", "https://kiosk")
    assert "first" in fail("certificates", "--client", "a", "--folder", state / "none")
