"""The own authority: what a client that trusts it accepts over real TLS, and what it never does."""

from __future__ import annotations

import contextlib
import datetime
import ipaddress
import shutil
import socket
import ssl
import stat
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key

from edgeface.errors import InputError
from edgeface.serve.authority import IssuedCertificate, issue_client, issue_server

DAY = datetime.timedelta(days=1)
NOW = datetime.datetime.now(datetime.timezone.utc)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> IssuedCertificate:
    folder = tmp_path_factory.mktemp("state") / "tls"
    return issue_server(folder, ["kiosk.example", "192.0.2.7", "2001:db8::7", "tür.example"])


@contextlib.contextmanager
def serving(certificate: Path, key: Path, *, client_ca: Path | None = None) -> Iterator[int]:
    """A TLS server on a port of 127.0.0.1 that says hello to each client."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    if client_ca is not None:
        context.load_verify_locations(client_ca)
        context.verify_mode = ssl.CERT_REQUIRED
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def answer() -> None:
            with contextlib.suppress(OSError):
                while True:
                    connection, _ = listener.accept()
                    with contextlib.suppress(OSError), connection:
                        connection.settimeout(5)
                        with context.wrap_socket(connection, server_side=True) as secure:
                            secure.sendall(b"hello")

        thread = threading.Thread(target=answer, daemon=True)
        thread.start()
        yield listener.getsockname()[1]
        listener.shutdown(socket.SHUT_RDWR)
    thread.join(5)


def greet(port: int, name: str, *, trust: Path | None, client: IssuedCertificate | None = None) -> bytes:
    context = ssl.create_default_context(cafile=trust)
    context.verify_flags |= ssl.VERIFY_X509_STRICT
    if client is not None:
        context.load_cert_chain(client.certificate, client.key)
    with (
        socket.create_connection(("127.0.0.1", port), timeout=5) as plain,
        context.wrap_socket(plain, server_hostname=name) as secure,
    ):
        return secure.recv(5)


def forge(made: IssuedCertificate, path: Path, name: x509.GeneralName) -> None:
    """Sign a certificate of another name with the authority's key, as a thief would."""
    authority = x509.load_pem_x509_certificate(made.authority.read_bytes())
    signer = load_pem_private_key(made.authority.with_name("ca.key").read_bytes(), None)
    key = load_pem_private_key(made.key.read_bytes(), None)
    assert isinstance(signer, ec.EllipticCurvePrivateKey)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    forged = x509.CertificateBuilder(authority.subject, authority.subject, key.public_key(), 5)
    forged = forged.not_valid_before(NOW - DAY).not_valid_after(NOW + DAY)
    for extension in (
        x509.SubjectAlternativeName([name]),
        x509.SubjectKeyIdentifier.from_public_key(key.public_key()),
        x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()),
    ):
        forged = forged.add_extension(extension, critical=False)
    path.write_bytes(forged.sign(signer, hashes.SHA256()).public_bytes(Encoding.PEM))


# TLS


def test_a_client_that_trusts_the_authority_accepts_the_server_by_all_its_names(made: IssuedCertificate) -> None:
    with serving(made.certificate, made.key) as port:
        for name in (
            "localhost",
            "127.0.0.1",
            "::1",
            "kiosk.example",
            "192.0.2.7",
            "2001:db8::7",
            "xn--tr-xka.example",
        ):
            assert greet(port, name, trust=made.authority) == b"hello"


def test_a_certificate_without_addresses_has_only_names(tmp_path: Path) -> None:
    made = issue_server(tmp_path, ["kiosk.local", "192.168.1.20"], addresses=False)
    certificate = x509.load_pem_x509_certificate(made.certificate.read_bytes())
    found = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert {type(name) for name in found} == {x509.DNSName}
    assert {"kiosk.local", "localhost"} <= {*made.names} == {name.value for name in found}


def test_no_other_client_and_no_other_name_is_served(made: IssuedCertificate) -> None:
    with serving(made.certificate, made.key) as port:
        with pytest.raises(ssl.SSLCertVerificationError):
            greet(port, "localhost", trust=None)
        for name in ("other.example", "127.0.0.2"):
            with pytest.raises(ssl.SSLCertVerificationError):
                greet(port, name, trust=made.authority)


@pytest.mark.parametrize(
    ("name", "accepted"),
    [
        ("door.local", True),
        ("door.kiosk.example", True),
        ("10.1.2.3", True),
        ("bank.example", False),
        ("notkiosk.example", False),
        ("203.0.113.7", False),
    ],
)
def test_a_stolen_authority_vouches_for_private_names_only(
    made: IssuedCertificate, tmp_path: Path, name: str, accepted: bool
) -> None:
    try:
        general: x509.GeneralName = x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        general = x509.DNSName(name)
    forge(made, tmp_path / "forged.crt", general)
    with serving(tmp_path / "forged.crt", made.key) as port:
        if accepted:
            assert greet(port, name, trust=made.authority) == b"hello"
        else:
            with pytest.raises(ssl.SSLCertVerificationError, match="permitted subtree"):
                greet(port, name, trust=made.authority)


def test_a_server_that_wants_client_certificates_answers_only_those_of_its_authority(
    made: IssuedCertificate, tmp_path: Path
) -> None:
    client = issue_client(made.authority.parent, "door-7")
    with pytest.raises(InputError, match="first"):
        issue_client(tmp_path / "other", "door-7")
    issue_server(tmp_path / "other")
    stranger = issue_client(tmp_path / "other", "door-7")
    assert (client.certificate.name, client.key.name) == ("client-door-7.crt", "client-door-7.key")
    with serving(made.certificate, made.key, client_ca=made.authority) as port:
        assert greet(port, "localhost", trust=made.authority, client=client) == b"hello"
        for other in (None, stranger):
            with pytest.raises(OSError):  # noqa: PT011 - by TLS 1.3 an alert after the handshake, or a reset
                greet(port, "localhost", trust=made.authority, client=other)


@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is not installed")
def test_openssl_accepts_the_chain_by_the_strict_rules_and_for_its_purpose_only(made: IssuedCertificate) -> None:
    client = issue_client(made.authority.parent, "a-b")
    for certificate, purpose, fine in (
        (made, "sslserver", True),
        (made, "sslclient", False),
        (client, "sslclient", True),
        (client, "sslserver", False),
    ):
        words = ["openssl", "verify", "-x509_strict", "-purpose", purpose, "-CAfile", made.authority]
        done = subprocess.run([*words, certificate.certificate], capture_output=True, text=True)
        assert (done.returncode == 0) == fine, done.stderr


# Files and times


def test_keys_are_their_owners_alone_and_lifetimes_are_those_that_browsers_take(made: IssuedCertificate) -> None:
    folder = made.authority.parent
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in folder.glob("*.key")} == {0o600}
    server = x509.load_pem_x509_certificate(made.certificate.read_bytes())
    authority = x509.load_pem_x509_certificate(made.authority.read_bytes())
    assert server.not_valid_after_utc - server.not_valid_before_utc == 397 * DAY
    assert server.not_valid_before_utc < NOW - datetime.timedelta(hours=23)
    assert authority.not_valid_after_utc - authority.not_valid_before_utc == 3653 * DAY
    assert authority.fingerprint(hashes.SHA256()).hex() == made.fingerprint
    assert made.expires == server.not_valid_after_utc


def test_a_second_run_renews_the_server_with_the_same_authority_names_and_key(tmp_path: Path) -> None:
    first = issue_server(tmp_path, ["kiosk.local", "10.0.0.7"], now=NOW)
    ca, certificate, key = (path.read_bytes() for path in (first.authority, first.certificate, first.key))
    second = issue_server(tmp_path, now=NOW + 300 * DAY)
    assert (first.new_authority, second.new_authority) == (True, False)
    assert second.names == first.names
    assert first.names[:2] == ("kiosk.local", "10.0.0.7")
    assert {"localhost", "127.0.0.1", "::1"} < set(first.names)
    assert second.expires - first.expires == 300 * DAY
    assert (second.authority.read_bytes(), second.key.read_bytes()) == (ca, key)
    assert second.certificate.read_bytes() != certificate
    assert "10.0.0.7" not in issue_server(tmp_path, ["other.local"]).names


def test_nothing_outlives_the_authority_and_an_expired_one_signs_nothing(tmp_path: Path) -> None:
    end = issue_server(tmp_path, now=NOW).expires + (3652 - 396) * DAY
    assert issue_server(tmp_path, now=end - DAY).expires == end
    with pytest.raises(InputError, match="expired on"):
        issue_server(tmp_path, now=end)


def test_a_name_that_the_authority_may_not_vouch_for_needs_another_one(tmp_path: Path) -> None:
    before = issue_server(tmp_path, ["kiosk.example"]).certificate.read_bytes()
    issue_server(tmp_path, ["door.kiosk.example", "kiosk.local", "192.168.1.1", "fd00::1"])
    for name in ("door.example", "192.0.2.7", "2001:db8::7", "xkiosk.example"):
        with pytest.raises(InputError, match="new folder"):
            issue_server(tmp_path, [name])
    assert (tmp_path / "server.crt").read_bytes() != before


def test_a_renamed_host_keeps_its_authority(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "gethostname", lambda: "first")
    assert "first" in issue_server(tmp_path, ["kiosk.local"]).names
    for host in ("second", "not_dns", "(none)"):
        monkeypatch.setattr(socket, "gethostname", lambda host=host: host)
        assert issue_server(tmp_path).names == ("kiosk.local", "first", "localhost", "127.0.0.1", "::1")


@pytest.mark.parametrize(
    "name", ["", "https://kiosk", "kiosk:8443", "a b", "-a", "a..b", "*.local", "1.2.3", "a" * 64, "a\n", "10.0.0.0/8"]
)
def test_what_is_no_name_is_refused_before_anything_is_made(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError, match="DNS name"):
        issue_server(tmp_path / "tls", [name])
    assert not (tmp_path / "tls").exists()


@pytest.mark.parametrize("name", ["", "../x", "a/b", "a b", "ü", "a" * 41, "a\n"])
def test_a_clients_name_is_no_path(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError, match="1 to 40"):
        issue_client(tmp_path / "tls", name)
    assert not (tmp_path / "tls").exists()


def test_an_authority_without_its_key_or_with_another_one_signs_nothing(tmp_path: Path) -> None:
    issue_server(tmp_path / "a")
    issue_server(tmp_path / "b")
    shutil.copy(tmp_path / "b" / "ca.key", tmp_path / "a" / "ca.key")
    with pytest.raises(InputError, match="another key"):
        issue_server(tmp_path / "a")
    (tmp_path / "a" / "ca.key").unlink()
    with pytest.raises(InputError, match="bring it back"):
        issue_server(tmp_path / "a")
    assert not (tmp_path / "a" / "ca.key").exists()


@pytest.mark.parametrize("name", ["ca.crt", "ca.key", "server.crt", "server.key"])
def test_a_damaged_file_is_an_error_with_its_path_and_is_left_as_it_is(tmp_path: Path, name: str) -> None:
    issue_server(tmp_path)
    path = tmp_path / name
    whole = path.read_bytes()
    for content in (b"", b"text", whole[:-40], whole.replace(b"A", b"B"), bytes(100_000), whole[:100] + whole):
        path.write_bytes(content)
        with pytest.raises(InputError, match=name):
            issue_server(tmp_path)
        assert path.read_bytes() == content
