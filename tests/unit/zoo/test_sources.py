"""Where files come from: Google Drive, mirrors, and what servers say about themselves."""

from __future__ import annotations

import datetime
import ipaddress
import ssl
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID
from faulty_server import CONTENT, QUICK, FaultyServer, dies_after, make_entry, make_file, page, tiny

from edgeface import zoo
from edgeface.errors import ChecksumError, DownloadError, InputError, ModelNotFoundError
from edgeface.zoo import downloads, transfer
from edgeface.zoo.downloads import is_installed, take_installed

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


def install(folder: Path, monkeypatch: pytest.MonkeyPatch, content: bytes = CONTENT) -> dict[str, str]:
    """Install a distribution of one file whose package cannot be imported; return the source that names the file."""
    (folder / "packaged_model").mkdir(parents=True)
    (folder / "packaged_model" / "__init__.py").write_text("raise SystemExit('imported')")
    (folder / "packaged_model" / "model.bin").write_bytes(content)
    metadata = folder / "packaged_model-1.0.dist-info" / "METADATA"
    metadata.parent.mkdir()
    metadata.write_text("Metadata-Version: 2.1\nName: packaged-model\nVersion: 1.0\n")
    monkeypatch.syspath_prepend(str(folder))
    return PACKAGED


PACKAGED = {"$type": "python_package", "distribution": "packaged-model", "path": "packaged_model/model.bin"}


def test_a_file_of_an_installed_package_needs_no_network_and_no_import(
    server: FaultyServer, store: zoo.ModelStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = make_entry(make_file("model.bin", CONTENT, server.add("/published", CONTENT), PACKAGED))
    assert not is_installed(entry)
    install(tmp_path / "site", monkeypatch)
    assert is_installed(entry)
    take_installed(entry, store)
    take_installed(entry, store)
    result = zoo.download(entry, store, mirror=f"{server.url}/zoo/", policy=QUICK)
    assert result.already_there
    assert result.blobs[0].source == "packaged_model/model.bin of the Python package packaged-model"
    assert (result.folder / "model.bin").read_bytes() == CONTENT
    assert not server.requests


def test_a_package_with_another_file_than_the_published_one_is_refused(
    store: zoo.ModelStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = make_entry(make_file("model.bin", CONTENT, install(tmp_path, monkeypatch, b"!" + CONTENT[1:])))
    with pytest.raises(ChecksumError, match="expected SHA256"):
        take_installed(entry, store)
    assert not store.has(entry)


def test_a_package_that_is_not_installed_is_named_with_the_line_that_installs_it(store: zoo.ModelStore) -> None:
    entry = make_entry(make_file("model.bin", CONTENT, PACKAGED))
    take_installed(entry, store)
    with pytest.raises(DownloadError, match="is not installed; install it with: pip install packaged-model"):
        zoo.download(entry, store, policy=QUICK)
    with pytest.raises(ModelNotFoundError, match="run: pip install packaged-model && edgeface zoo download tiny"):
        store.model_dir(entry)


def test_a_mirror_server_comes_before_the_published_sources(server: FaultyServer, store: zoo.ModelStore) -> None:
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


def test_a_mirror_that_is_neither_address_nor_folder_is_wrong_use(server: FaultyServer, store: zoo.ModelStore) -> None:
    with pytest.raises(InputError, match="expected an http"):
        zoo.download(tiny(server), store, mirror="/no/such/folder", policy=QUICK)


@pytest.mark.parametrize(
    ("header", "seconds"),
    [("7", 7), ("Wed, 21 Oct 2015 07:28:00 GMT", 0), ("Wed, 21 Oct 2015 07:28:00", 0), ("soon", None), (None, None)],
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


@pytest.fixture
def certificate(tmp_path: Path) -> Path:
    """A certificate for 127.0.0.1 that no authority signed, with its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.datetime.now(datetime.timezone.utc)
    made = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .sign(key, hashes.SHA256())
    )
    path = tmp_path / "server.pem"
    secret = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    path.write_bytes(secret + made.public_bytes(Encoding.PEM))
    return path


def test_a_certificate_has_to_be_one_that_the_system_trusts(
    server: FaultyServer, store: zoo.ModelStore, certificate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    server._server.socket = context.wrap_socket(server._server.socket, server_side=True)
    server.url = server.url.replace("http:", "https:")
    entry = tiny(server)
    with pytest.raises(DownloadError, match="has no valid certificate"):
        zoo.download(entry, store, policy=QUICK)
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    assert zoo.download(entry, store, policy=QUICK).blobs[0].source == f"{server.url}/model.bin"


def test_http_is_loaded_by_a_download_only() -> None:
    program = "import sys, edgeface.zoo as z; z.DownloadPolicy(), z.download; print('httpx' in sys.modules)"
    shown = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=30)
    assert shown.stdout == "False\n"


def test_a_copy_from_a_folder_is_continued_only_where_a_published_digest_decides(tmp_path: Path) -> None:
    """A file that was replaced by another of the same size and time would be spliced to the first one's beginning."""
    location, partial = transfer.FolderLocation(tmp_path / "model.bin"), downloads._Partial(tmp_path / "part")
    location.path.write_bytes(b"first and last")
    partial.path.write_bytes(b"first")
    with location.open(0, validator=None, timeout=1) as reply:
        partial.remember(location, reply)
    assert partial.resume_point(location, published=False) == (0, None)
    assert partial.resume_point(location, published=True) == (5, None)
    with location.open(5, validator=None, timeout=1) as reply:
        assert (reply.offset, b"".join(reply.chunks)) == (5, b" and last")
