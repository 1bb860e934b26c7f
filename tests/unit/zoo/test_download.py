"""Downloads over networks and from servers that do everything wrong."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from faulty_server import (
    CONTENT,
    QUICK,
    FaultyServer,
    Handler,
    dies_after,
    hangs,
    ignores_range,
    make_entry,
    make_file,
    no_trace,
    of_unknown_length,
    page,
    serve,
    status,
    tiny,
)

from edgeface import zoo
from edgeface.errors import ChecksumError, DownloadError

pytestmark = pytest.mark.timeout(60)

ONCE = dataclasses.replace(QUICK, attempts=1)
LFS_POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 12\n"


def partials(store: zoo.ModelStore) -> list[Path]:
    return list((store.root / "partial").glob("*.part"))


def first_use(name: str, *sources: Any) -> dict[str, Any]:
    return make_file(name, b"", *sources, size=None, sha256=None, checksum="trust-on-first-use")


def test_a_download_is_checked_kept_by_content_and_linked_into_the_models_folder(
    server: FaultyServer, store: zoo.ModelStore
) -> None:
    result = zoo.download(tiny(server), store, policy=QUICK)
    assert (result.folder / "model.bin").read_bytes() == CONTENT
    blob = store.blob_path(hashlib.sha256(CONTENT).hexdigest())
    assert blob.samefile(result.folder / "model.bin")
    assert result.blobs[0].source == f"{server.url}/model.bin"
    assert not partials(store)


def test_what_is_present_and_intact_is_not_downloaded_again(server: FaultyServer, store: zoo.ModelStore) -> None:
    entry = tiny(server)
    zoo.download(entry, store, policy=QUICK)
    assert zoo.download(entry, store, policy=QUICK).already_there
    assert len(server.requests) == 1


def test_a_damaged_file_is_downloaded_again(server: FaultyServer, store: zoo.ModelStore) -> None:
    entry = tiny(server)
    path = zoo.download(entry, store, policy=QUICK).folder / "model.bin"
    path.chmod(0o644)
    path.write_bytes(b"changed by hand")
    assert not all(check.intact for check in store.verify(entry))
    assert not zoo.download(entry, store, policy=QUICK).already_there
    assert path.read_bytes() == CONTENT


def test_server_that_dies_mid_file_resumes_where_it_stopped(server: FaultyServer, store: zoo.ModelStore) -> None:
    zoo.download(tiny(server, dies_after(120_000)), store, policy=QUICK)
    assert server.ranges("/model.bin") == [None, "bytes=120000-"]
    assert server.requests[1][1]["If-Range"].startswith('"')


def test_a_later_run_resumes_where_the_first_one_stopped(server: FaultyServer, store: zoo.ModelStore) -> None:
    entry = tiny(server, dies_after(200_000))
    with pytest.raises(DownloadError, match="broke off after 200,000 of 300,000 bytes") as caught:
        zoo.download(entry, store, policy=ONCE)
    assert caught.value.exit_code == 3
    assert [path.stat().st_size for path in partials(store)] == [200_000]
    assert no_trace(store.root)
    zoo.download(entry, zoo.ModelStore(store.root), policy=ONCE)
    assert server.ranges("/model.bin")[-1] == "bytes=200000-"
    assert store.has(entry)


def test_another_source_finishes_what_the_first_began(server: FaultyServer, store: zoo.ModelStore) -> None:
    first = server.add("/first.bin", CONTENT, dies_after(100_000), status(404))
    second = server.add("/second.bin", CONTENT)
    zoo.download(make_entry(make_file("model.bin", CONTENT, first, second)), store, policy=QUICK)
    assert server.ranges("/second.bin") == ["bytes=100000-"]


def test_server_that_ignores_range_restarts_cleanly(server: FaultyServer, store: zoo.ModelStore) -> None:
    result = zoo.download(tiny(server, dies_after(100_000), ignores_range()), store, policy=QUICK)
    assert (result.folder / "model.bin").read_bytes() == CONTENT


def test_a_file_that_changed_meanwhile_is_taken_from_zero(server: FaultyServer, store: zoo.ModelStore) -> None:
    old = bytes(len(CONTENT))
    url = server.add("/model.bin", old, dies_after(100_000))
    entry = make_entry(make_file("model.bin", CONTENT, url))
    with pytest.raises(DownloadError):
        zoo.download(entry, store, policy=ONCE)
    server.files["/model.bin"] = CONTENT  # another ETag: If-Range fails and the whole file comes
    assert (zoo.download(entry, store, policy=ONCE).folder / "model.bin").read_bytes() == CONTENT


def test_a_bad_partial_file_is_restarted_once_from_zero(server: FaultyServer, store: zoo.ModelStore) -> None:
    entry = tiny(server, dies_after(100_000))
    with pytest.raises(DownloadError):
        zoo.download(entry, store, policy=ONCE)
    partials(store)[0].write_bytes(bytes(100_000))
    zoo.download(entry, store, policy=ONCE)
    assert server.ranges("/model.bin") == [None, "bytes=100000-", None]


def test_a_partial_file_that_is_too_long_does_no_harm(server: FaultyServer, store: zoo.ModelStore) -> None:
    entry = tiny(server, dies_after(100_000))
    with pytest.raises(DownloadError):
        zoo.download(entry, store, policy=ONCE)
    partials(store)[0].write_bytes(bytes(2 * len(CONTENT)))  # the server answers 416
    assert (zoo.download(entry, store, policy=QUICK).folder / "model.bin").read_bytes() == CONTENT


@pytest.mark.alone
def test_a_busy_server_is_asked_again_when_it_said_so(server: FaultyServer, store: zoo.ModelStore) -> None:
    started = time.monotonic()
    zoo.download(tiny(server, status(503, Retry_After="1")), store, policy=QUICK)
    assert 1 <= time.monotonic() - started < 5


def test_a_server_that_asks_for_more_patience_than_allowed_is_left_for_the_next(
    server: FaultyServer, store: zoo.ModelStore
) -> None:
    busy = server.add("/busy.bin", CONTENT, status(429, Retry_After="3600"))
    other = server.add("/other.bin", CONTENT)
    result = zoo.download(make_entry(make_file("model.bin", CONTENT, busy, other)), store, policy=QUICK)
    assert result.blobs[0].source == other


def test_faults_that_last_end_after_the_allowed_attempts(server: FaultyServer, store: zoo.ModelStore) -> None:
    with pytest.raises(DownloadError, match="answered 503"):
        zoo.download(tiny(server, *[status(503)] * 9), store, policy=QUICK)
    assert len(server.requests) == QUICK.attempts


def test_the_wait_before_a_retry_is_random_up_to_a_limit_that_doubles(
    server: FaultyServer, store: zoo.ModelStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    limits: list[float] = []
    monkeypatch.setattr("random.uniform", lambda low, high: limits.append(high) or low)
    zoo.download(tiny(server, *[status(500)] * 3), store, policy=dataclasses.replace(QUICK, attempts=4))
    assert limits == [0.01, 0.02, 0.04]


def test_a_server_that_answers_with_another_range_is_asked_from_zero(
    server: FaultyServer, store: zoo.ModelStore
) -> None:
    def shifted(handler: Handler, content: bytes) -> None:
        handler.begin(206, 10, Content_Range=f"bytes 5-14/{len(content)}")
        handler.wfile.write(content[5:15])

    zoo.download(tiny(server, dies_after(100_000), shifted), store, policy=QUICK)
    assert server.ranges("/model.bin") == [None, "bytes=100000-", None]


def test_faults_that_cannot_pass_are_not_tried_again(server: FaultyServer, store: zoo.ModelStore) -> None:
    with pytest.raises(DownloadError, match="answered 404"):
        zoo.download(tiny(server, status(404)), store, policy=QUICK)
    assert len(server.requests) == 1


@pytest.mark.alone
def test_a_silent_server_ends_in_a_time_out(server: FaultyServer, store: zoo.ModelStore) -> None:
    hasty = dataclasses.replace(ONCE, timeout=0.3)
    started = time.monotonic()
    with pytest.raises(DownloadError, match="sent nothing for too long"):
        zoo.download(tiny(server, hangs(3)), store, policy=hasty)
    assert time.monotonic() - started < 2


def test_nobody_listening_is_one_clear_error(server: FaultyServer, store: zoo.ModelStore) -> None:
    entry = tiny(server)
    server.close()
    with pytest.raises(DownloadError, match=r"tiny/model\.bin: no source delivered it: http.* cannot be reached"):
        zoo.download(entry, store, policy=QUICK)


@pytest.mark.parametrize(
    ("step", "message"),
    [
        (page("<html><head><title>Sign in</title></head></html>"), "web page 'Sign in' instead of the file"),
        (of_unknown_length(0), "sent nothing"),
    ],
)
def test_what_comes_instead_of_a_file_is_named(
    server: FaultyServer, store: zoo.ModelStore, step: Any, message: str
) -> None:
    with pytest.raises(DownloadError, match=message):
        zoo.download(tiny(server, *[step] * 3), store, policy=QUICK)
    assert no_trace(store.root)


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"<!DOCTYPE html><p>no</p>", "sent a web page instead"), (LFS_POINTER, "sent a Git LFS pointer instead")],
)
def test_a_stand_in_is_recognised_whatever_the_server_calls_it(
    server: FaultyServer, store: zoo.ModelStore, content: bytes, message: str
) -> None:
    entry = make_entry(first_use("model.bin", server.add("/model.bin", content)))
    with pytest.raises(DownloadError, match=message):
        zoo.download(entry, store, policy=QUICK)
    assert no_trace(store.root)


def test_a_wrong_length_is_refused_before_the_first_byte(server: FaultyServer, store: zoo.ModelStore) -> None:
    url = server.add("/model.bin", CONTENT + b"more")
    with pytest.raises(DownloadError, match="expected 300,000 bytes, offers 300,004"):
        zoo.download(make_entry(make_file("model.bin", CONTENT, url)), store, policy=QUICK)


def test_a_server_that_never_ends_is_cut_off_at_the_published_size(server: FaultyServer, store: zoo.ModelStore) -> None:
    url = server.add("/model.bin", CONTENT * 2, *[of_unknown_length()] * 3)
    with pytest.raises(DownloadError, match="sends more"):
        zoo.download(make_entry(make_file("model.bin", CONTENT, url)), store, policy=QUICK)
    assert not partials(store)


@pytest.mark.parametrize("algorithm", ["sha256", "sha384"])
def test_other_bytes_than_published_are_refused_and_not_kept(
    server: FaultyServer, store: zoo.ModelStore, algorithm: str
) -> None:
    published = {"sha256": None, "checksum": {"$type": algorithm, "value": hashlib.new(algorithm, CONTENT).hexdigest()}}
    url = server.add("/model.bin", bytes(len(CONTENT)))
    with pytest.raises(ChecksumError, match=f"expected {algorithm.upper()} .* found") as caught:
        zoo.download(make_entry(make_file("model.bin", CONTENT, url, **published)), store, policy=QUICK)
    assert caught.value.exit_code == 2
    assert no_trace(store.root)
    assert not partials(store)


def test_the_next_source_is_tried_after_one_with_wrong_bytes(server: FaultyServer, store: zoo.ModelStore) -> None:
    bad, good = server.add("/bad", bytes(len(CONTENT))), server.add("/good", CONTENT)
    assert zoo.download(make_entry(make_file("m", CONTENT, bad, good)), store, policy=QUICK).blobs[0].source == good


def test_a_digest_that_nobody_published_is_recorded_on_first_use_and_held_to(
    server: FaultyServer, store: zoo.ModelStore
) -> None:
    entry = make_entry(first_use("model.bin", server.add("/model.bin", CONTENT)))
    blob = zoo.download(entry, store, policy=QUICK).blobs[0]
    assert (blob.first_use, blob.size, blob.sha256) == (True, 300_000, hashlib.sha256(CONTENT).hexdigest())
    store.blob_path(blob.sha256).unlink()
    server.files["/model.bin"] = bytes(len(CONTENT))
    with pytest.raises(ChecksumError, match=f"expected SHA-256 {blob.sha256}.*files.json"):
        zoo.download(entry, store, policy=QUICK)
    server.files["/model.bin"] = CONTENT
    assert zoo.download(entry, store, policy=QUICK).blobs[0].sha256 == blob.sha256


def test_without_a_published_digest_nothing_is_spliced_from_two_sources(
    server: FaultyServer, store: zoo.ModelStore
) -> None:
    first = server.add("/first", CONTENT, *[dies_after(10_000)] * 3)
    second = server.add("/second", CONTENT)
    zoo.download(make_entry(first_use("m", first, second)), store, policy=QUICK)
    assert server.ranges("/second") == [None]


def test_a_first_use_that_turns_out_not_to_be_the_model_is_forgotten(
    server: FaultyServer, store: zoo.ModelStore
) -> None:
    file = first_use("model.bin", server.add("/model.bin", bytes(9)))
    inside = {"source": "model.bin", "sha256": hashlib.sha256(CONTENT).hexdigest()}
    entry = make_entry(file, conversion=inside)
    with pytest.raises(ChecksumError, match="not the published model"):
        zoo.download(entry, store, policy=QUICK)
    assert not store.has(entry)
    server.files["/model.bin"] = CONTENT
    assert zoo.download(entry, store, policy=QUICK).folder == store.model_dir(entry)


def test_files_are_downloaded_in_parallel(server: FaultyServer, store: zoo.ModelStore) -> None:
    together = threading.Barrier(3, timeout=10)

    def waits(handler: Handler, content: bytes) -> None:
        together.wait()
        serve()(handler, content)

    files = [make_file(name, CONTENT, server.add(f"/{name}", CONTENT, waits)) for name in "abc"]
    zoo.download(make_entry(*files), store, policy=dataclasses.replace(QUICK, jobs=3))
    assert not together.broken


@pytest.mark.alone
def test_one_file_that_fails_stops_the_others_and_keeps_what_arrived(
    server: FaultyServer, store: zoo.ModelStore
) -> None:
    big = CONTENT * 40
    gone = threading.Event()

    def drips(handler: Handler, content: bytes) -> None:
        handler.begin(200, len(content))
        for start in range(0, len(content), 100_000):
            handler.wfile.write(content[start : start + 100_000])
            gone.wait(0.05)

    slow = make_file("slow", big, server.add("/slow", big, drips))
    missing = make_file("missing", CONTENT, server.url + "/missing")
    started = time.monotonic()
    with pytest.raises(DownloadError, match="tiny/missing: no source"):
        zoo.download(make_entry(slow, missing), store, policy=QUICK)
    assert time.monotonic() - started < 4  # the whole of it would take 6
    gone.set()
    assert no_trace(store.root)


def test_progress_tells_the_story_in_open_model_zoos_words(server: FaultyServer, store: zoo.ModelStore) -> None:
    events: list[zoo.DownloadEvent] = []
    zoo.download(tiny(server), store, policy=QUICK, on_event=events.append)
    kinds = [event.kind for event in events]
    assert list(dict.fromkeys(kinds)) == [
        "model_download_begin",
        "model_file_download_begin",
        "model_file_download_progress",
        "model_file_download_end",
        "model_postprocessing_begin",
        "model_postprocessing_end",
        "model_download_end",
    ]
    sizes = [event.size for event in events if event.kind == "model_file_download_progress"]
    assert sizes == sorted(sizes)
    assert sizes[-1] == len(CONTENT)
    assert events[-1].successful


@pytest.mark.slow
def test_two_processes_that_want_one_model_download_it_once(
    server: FaultyServer, store: zoo.ModelStore, tmp_path: Path
) -> None:
    entry = tiny(server)
    (tmp_path / "entry.json").write_text(entry.model_dump_json(by_alias=True, exclude_none=True), encoding="utf-8")
    program = (
        "import json, pathlib, sys; from edgeface import zoo; "
        "entry = zoo.ModelEntry.model_validate(json.loads(pathlib.Path(sys.argv[1]).read_text())); "
        "zoo.download(entry, zoo.ModelStore(pathlib.Path(sys.argv[2])))"
    )
    command = [sys.executable, "-c", program, str(tmp_path / "entry.json"), str(store.root)]
    running = [subprocess.Popen(command, env={**os.environ}) for _ in range(2)]
    assert [process.wait(timeout=30) for process in running] == [0, 0]
    assert len(server.requests) == 1
    assert store.has(entry)
