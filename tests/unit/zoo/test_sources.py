"""Where files come from: Google Drive, mirrors, and what servers say about themselves."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest
from faulty_server import CONTENT, QUICK, FaultyServer, dies_after, make_entry, make_file, page, tiny

from edgeface import zoo
from edgeface.errors import DownloadError, InputError
from edgeface.zoo import transfer

pytestmark = pytest.mark.timeout(60)

CONFIRMATION = """<html><head><title>Google Drive - Virus scan warning</title></head><body>
<form id="download-form" action="/download" method="get"><input type="submit" value="Download anyway"/>
<input type="hidden" name="id" value="abc"><input type="hidden" name="confirm" value="t">
<input type="hidden" name="uuid" value="1-2"></form></body></html>"""


def drive(server: FaultyServer, monkeypatch: pytest.MonkeyPatch, *steps: Any) -> zoo.ModelEntry:
    monkeypatch.setattr(transfer, "GOOGLE_DRIVE", server.url + "/uc?export=download&id={id}")
    server.add("/uc", CONTENT, *steps)
    return make_entry(make_file("model.zip", CONTENT, {"$type": "google_drive", "id": "abc"}))


def test_google_drives_confirmation_page_is_answered(
    server: FaultyServer, store: zoo.ModelStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = drive(server, monkeypatch, page(CONFIRMATION), page(CONFIRMATION))
    server.add("/download", CONTENT, dies_after(50_000))
    zoo.download(entry, store, policy=QUICK)
    assert [path for path, _ in server.requests] == [
        "/uc?export=download&id=abc",
        "/download?id=abc&confirm=t&uuid=1-2",
    ] * 2
    assert server.ranges("/download") == [None, "bytes=50000-"]


def test_google_drives_older_confirmation_link_is_followed(
    server: FaultyServer, store: zoo.ModelStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = drive(server, monkeypatch, page('<a href="/uc?confirm=Xy&amp;id=abc">Download anyway</a>'))
    zoo.download(entry, store, policy=QUICK)
    assert server.requests[-1][0] == "/uc?confirm=Xy&id=abc"


def test_google_drives_quota_page_is_named(
    server: FaultyServer, store: zoo.ModelStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = drive(server, monkeypatch, page("<html><title>Google Drive - Quota exceeded</title></html>"))
    with pytest.raises(DownloadError, match=r"Google Drive file abc .*'Google Drive - Quota exceeded'"):
        zoo.download(entry, store, policy=QUICK)


def test_a_mirror_server_comes_before_the_published_sources(
    server: FaultyServer, store: zoo.ModelStore
) -> None:
    entry = make_entry(make_file("FP16/my model.bin", CONTENT, server.add("/published", CONTENT)))
    server.add("/zoo/tiny/FP16/my%20model.bin", CONTENT)
    result = zoo.download(entry, store, mirror=f"{server.url}/zoo/", policy=QUICK)
    assert result.blobs[0].source == f"{server.url}/zoo/tiny/FP16/my%20model.bin"


def test_a_mirror_folder_is_named_by_the_environment(
    server: FaultyServer, store: zoo.ModelStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mirror" / "tiny").mkdir(parents=True)
    (tmp_path / "mirror" / "tiny" / "model.bin").write_bytes(CONTENT)
    monkeypatch.setenv("EDGEFACE_MIRROR", str(tmp_path / "mirror"))
    zoo.download(tiny(server), store, policy=QUICK)
    assert not server.requests


def test_what_a_mirror_lacks_comes_from_the_published_source(
    server: FaultyServer, store: zoo.ModelStore, tmp_path: Path
) -> None:
    zoo.download(tiny(server), store, mirror=str(tmp_path), policy=QUICK)
    assert len(server.requests) == 1


def test_a_mirror_that_is_neither_address_nor_folder_is_wrong_use(
    server: FaultyServer, store: zoo.ModelStore
) -> None:
    with pytest.raises(InputError, match="expected an http"):
        zoo.download(tiny(server), store, mirror="/no/such/folder", policy=QUICK)


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        ("7", 7),
        ("Wed, 21 Oct 2015 07:28:00 GMT", 0),
        ("Wed, 21 Oct 2015 07:28:00", 0),
        ("soon", None),
        (None, None),
    ],
)
def test_retry_after_is_read_as_seconds_or_a_date(header: str | None, seconds: float | None) -> None:
    assert transfer._retry_after(header) == seconds


def test_a_redirect_from_https_to_http_is_not_followed(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append(str(request.url))
        return httpx.Response(302, headers={"Location": "http://example.org/b"})

    monkeypatch.setattr(httpx.Client, "_init_transport", lambda *_, **__: httpx.MockTransport(answer))
    with (
        pytest.raises(transfer.SourceFault, match="redirects from https to http://example"),
        transfer.WebLocation("https://example.org/a").open(0, validator=None, timeout=1),
    ):
        pass
    assert asked == ["https://example.org/a"]


def test_http_is_loaded_by_a_download_only() -> None:
    program = "import sys, edgeface.zoo as z; z.DownloadPolicy(), z.download; print('httpx' in sys.modules)"
    shown = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=30
    )
    assert shown.stdout == "False\n"
