"""Make certificates for TLS in a local network: an own authority, which clients install once, and what it signs.

The authority (EC P-256, ten years) is name-constrained: for who installs it, it can vouch only for this machine's
names, names below ``local``, private addresses, and what was named when it was made. Who steals its key cannot pass
for a bank. Server and client certificates last 397 days, the longest that browsers take (CA/Browser Forum Baseline
Requirements, 6.3.2), and begin a day early for clients whose clock is slow.

A folder has ``ca.crt``, ``ca.key``, ``server.crt``, ``server.key``, and ``client-NAME.crt`` and ``.key``; keys are
readable by their owner only. ``ca.key`` is needed only to make certificates, and may be kept elsewhere meanwhile.
"""

from __future__ import annotations

import contextlib
import datetime
import ipaddress
import re
import secrets
import socket
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, load_pem_private_key
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from edgeface.errors import InputError
from edgeface.files import write_atomically, write_private
from edgeface.untrusted import read_regular, reading

AUTHORITY_DAYS, CERTIFICATE_DAYS = 3652, 397
_ALWAYS = ("localhost", "127.0.0.1", "::1")
_PRIVATE = ("127.0.0.0/8", "10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "::1/128", "fc00::/7", "fe80::/10")
_DNS = re.compile(r"(?=.{1,253}$)[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?(\.[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?)*")
_CLIENT = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,39}")

_LARGEST = 1 << 16
"""Bytes read of a file."""

_General: TypeAlias = x509.DNSName | x509.IPAddress


@dataclass(frozen=True, slots=True)
class IssuedCertificate:
    """A certificate that was made, and where it is.

    Attributes
    ----------
    certificate, key
        Files in PEM.
    names
        DNS names and addresses of a server; the name of a client.
    expires
        UTC.
    authority
        Certificate of the authority, in PEM: what the other side installs.
    fingerprint
        SHA-256 of the authority's certificate, hexadecimal, to compare before it is installed.
    new_authority
        Whether the authority was made now: clients have to install it.
    """

    certificate: Path
    key: Path
    names: tuple[str, ...]
    expires: datetime.datetime
    authority: Path
    fingerprint: str
    new_authority: bool


def issue_server(
    folder: Path, names: Iterable[str] = (), *, addresses: bool = True, now: datetime.datetime | None = None
) -> IssuedCertificate:
    """Make or renew the server's certificate, and the authority if the folder has none.

    Parameters
    ----------
    folder
        Made, for its owner only, if there is none.
    names
        DNS names and IP addresses by which clients call the server, beside its host name, localhost, 127.0.0.1 and
        ::1. None given: those of the certificate that is renewed.
    addresses
        Whether it is for IP addresses too. BoringSSL, by which gRPC's clients in Python and C++ check a certificate,
        knows no constraints of addresses, and refuses one that has any.
    now
        A time with a zone; None: the clock's.

    Raises
    ------
    InputError
        If a name is none or the authority may not vouch for it, a file is damaged, the authority's key is another
        one's or not there, or the authority has expired.
    OutputError
        If a file cannot be written.
    """
    host = socket.gethostname().lower()
    former = folder / "server.crt"
    given = [_parse(name) for name in names] or (_names_of(former) if former.exists() else [])
    own = [_parse(name) for name in (host, *_ALWAYS) if name != host or _is_dns(host)]
    authority = _open_authority(folder, [*given, *own], now or datetime.datetime.now(datetime.timezone.utc))
    for name in given:
        if not authority.may_vouch(name):
            raise InputError(
                path=folder / "ca.crt",
                expected=f"names that this authority may vouch for: {', '.join(map(str, authority.permitted() or ()))}",
                found=str(name.value),
                remedy="make another authority in a new folder, and install it on the clients",
            )
    wanted = list(dict.fromkeys([*given, *filter(authority.may_vouch, own)]))  # the host may have been renamed
    wanted = [name for name in wanted if addresses or isinstance(name, x509.DNSName)]
    usage = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH])
    told = tuple(str(name.value) for name in wanted)
    return authority.issue("server", f"edgeface server {host}", told, [x509.SubjectAlternativeName(wanted), usage])


def issue_client(folder: Path, name: str, *, now: datetime.datetime | None = None) -> IssuedCertificate:
    """Make or renew the certificate of a client; its name is 1 to 40 ASCII letters, digits and ``_-``.

    Raises as `issue_server`, and `InputError` if the folder has no authority yet.
    """
    if not _CLIENT.fullmatch(name):
        raise InputError(f"client certificate: expected a name of 1 to 40 of A-Z a-z 0-9 _ -, found {name!r:.60}")
    if not (folder / "ca.crt").exists():
        raise InputError(
            path=folder / "ca.crt",
            expected="an authority",
            found="no file",
            remedy="make the server's certificate first: edgeface serve certificates NAME",
        )
    authority = _open_authority(folder, [], now or datetime.datetime.now(datetime.timezone.utc))
    usage = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH])
    # With a space a client's name looks like no DNS name, to which the constraints would apply.
    return authority.issue(f"client-{name}", f"edgeface client {name}", (name,), [usage])


@dataclass(frozen=True, slots=True)
class _Authority:
    folder: Path
    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey
    made: bool
    now: datetime.datetime

    def permitted(self) -> list[Any] | None:
        """Return the DNS names and networks that clients accept from this authority; None: all."""
        try:
            trees = self.certificate.extensions.get_extension_for_class(x509.NameConstraints).value.permitted_subtrees
        except x509.ExtensionNotFound:  # an authority that was made elsewhere
            return None
        return [tree.value for tree in trees or ()]

    def may_vouch(self, name: _General) -> bool:
        permitted = self.permitted()
        if permitted is None:
            return True
        if isinstance(name, x509.DNSName):
            return any(f".{name.value}".endswith(f".{each}") for each in permitted if isinstance(each, str))
        return any(name.value in each for each in permitted if not isinstance(each, str))

    def issue(
        self, file: str, subject: str, names: tuple[str, ...], extensions: Iterable[x509.ExtensionType]
    ) -> IssuedCertificate:
        path, key = self.folder / f"{file}.crt", _read_or_make_key(self.folder / f"{file}.key")
        expires = self.now + datetime.timedelta(days=CERTIFICATE_DAYS - 1)  # it began a day ago
        certificate = _sign(
            _name(subject),
            self.certificate.subject,
            key,
            self.key,
            (self.now, min(expires, self.certificate.not_valid_after_utc)),
            [(x509.BasicConstraints(ca=False, path_length=None), True), *((each, False) for each in extensions)],
        )
        _write(path, certificate)
        return IssuedCertificate(
            certificate=path,
            key=self.folder / f"{file}.key",
            names=names,
            expires=certificate.not_valid_after_utc,
            authority=self.folder / "ca.crt",
            fingerprint=self.certificate.fingerprint(hashes.SHA256()).hex(),
            new_authority=self.made,
        )


def _open_authority(folder: Path, names: Iterable[_General], now: datetime.datetime) -> _Authority:
    """Read the authority of a folder, or make it for these names."""
    path, key_path = folder / "ca.crt", folder / "ca.key"
    if made := not path.exists():
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        key = _read_or_make_key(key_path)
        subject = _name(f"edgeface authority {socket.gethostname()[:32]} {secrets.token_hex(3)}")
        private = (x509.IPAddress(ipaddress.ip_network(each)) for each in _PRIVATE)
        permitted = dict.fromkeys([*map(_subtree, names), x509.DNSName("local"), *private])
        extensions = [
            (x509.BasicConstraints(ca=True, path_length=0), True),
            (x509.NameConstraints(list(permitted), None), True),
        ]
        _write(
            path, _sign(subject, subject, key, key, (now, now + datetime.timedelta(days=AUTHORITY_DAYS)), extensions)
        )
    elif not key_path.exists():
        raise InputError(
            path=key_path,
            expected="the authority's key",
            found="no file",
            remedy="bring it back to make certificates, or make another authority in a new folder",
        )
    authority, key = _read_certificate(path), _read_or_make_key(key_path)
    if authority.public_key() != key.public_key():
        raise InputError(path=key_path, expected="the key of ca.crt", found="another key", remedy=_REMEDY)
    if authority.not_valid_after_utc <= now:
        raise InputError(
            path=path,
            expected="an authority that is valid",
            found=f"one that expired on {authority.not_valid_after_utc:%Y-%m-%d}",
            remedy="make another in a new folder, and install it on the clients",
        )
    return _Authority(folder, authority, key, made, now)


def _sign(
    subject: x509.Name,
    issuer: x509.Name,
    key: ec.EllipticCurvePrivateKey,
    signer: ec.EllipticCurvePrivateKey,
    validity: tuple[datetime.datetime, datetime.datetime],
    extensions: Iterable[tuple[x509.ExtensionType, bool]],
) -> x509.Certificate:
    """Sign a certificate with these extensions, each critical or not, and those that RFC 5280 demands of all."""
    is_authority = key is signer
    uses = (
        "content_commitment",
        "key_encipherment",
        "data_encipherment",
        "key_agreement",
        "encipher_only",
        "decipher_only",
    )
    usage = dict.fromkeys(uses, False) | {"digital_signature": not is_authority}
    usage |= {"key_cert_sign": is_authority, "crl_sign": is_authority}
    builder = x509.CertificateBuilder(issuer, subject, key.public_key(), x509.random_serial_number())
    builder = builder.not_valid_before(validity[0] - datetime.timedelta(days=1)).not_valid_after(validity[1])
    for extension, critical in (
        *extensions,
        (x509.KeyUsage(**usage), True),
        (x509.SubjectKeyIdentifier.from_public_key(key.public_key()), False),
        (x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), False),
    ):
        builder = builder.add_extension(extension, critical=critical)
    return builder.sign(signer, hashes.SHA256())


# Names


def _name(common: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common[:64])])


def _is_dns(text: str) -> bool:
    return bool(_DNS.fullmatch(text)) and not re.fullmatch(r"[0-9.]+", text)


def _parse(text: str) -> _General:
    """Return a DNS name or an address."""
    with contextlib.suppress(ValueError):
        return x509.IPAddress(ipaddress.ip_address(text))
    with contextlib.suppress(UnicodeError):
        name = (text if text.isascii() else text.encode("idna").decode("ascii")).lower()
        if _is_dns(name):
            return x509.DNSName(name)
    raise InputError(
        "certificate: expected a DNS name such as kiosk.local, or an IP address, without scheme and port, "
        f"found {text!r:.100}"
    )


def _subtree(name: _General) -> _General:
    """Return what the constraints call a name: an address is a network of one."""
    return name if isinstance(name, x509.DNSName) else x509.IPAddress(ipaddress.ip_network(str(name.value)))


# Files

_REMEDY = "bring back a copy, or move it away to make a new one"


def _read_or_make_key(path: Path) -> ec.EllipticCurvePrivateKey:
    if not path.exists():
        made = ec.generate_private_key(ec.SECP256R1())
        write_private(path, made.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    with reading(path, "a private key in PEM", remedy=_REMEDY):
        key = load_pem_private_key(read_regular(path, limit=_LARGEST), password=None)
        if not isinstance(key, ec.EllipticCurvePrivateKey):
            raise ValueError("a key that is not of an elliptic curve")
        return key


def _read_certificate(path: Path) -> x509.Certificate:
    with reading(path, "a certificate in PEM", remedy=_REMEDY):
        certificate = x509.load_pem_x509_certificate(read_regular(path, limit=_LARGEST))
        _ = certificate.public_key(), certificate.extensions, certificate.subject  # which are parsed only now
        return certificate


def _names_of(path: Path) -> list[_General]:
    """Return the names of a server's certificate."""
    certificate = _read_certificate(path)
    with reading(path, "the names of a server", remedy=_REMEDY):
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        return [name for name in names if isinstance(name, x509.DNSName | x509.IPAddress)]


def _write(path: Path, certificate: x509.Certificate) -> None:
    with write_atomically(path) as partial:
        partial.write_bytes(certificate.public_bytes(Encoding.PEM))
