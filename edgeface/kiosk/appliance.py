"""Build one archive that installs a kiosk on a machine without a network; read it checked; test what it installed.

The archive is a plain tar of one folder: wheels, a model store, a configuration, a systemd unit, an installer in POSIX
sh, and ``SHA256SUMS`` of all of them, which comes first. The same input gives the same bytes. It never holds a gallery
or a key. On the machine the installer makes::

    /opt/edgeface/<version>/    one installed version: its Python environment, models and unit
    /opt/edgeface/current       link to the version that runs; `previous` to the one before
    /etc/edgeface/serve.yml     configuration, which an upgrade keeps
    /var/lib/edgeface/          galleries, keys and logs, which an upgrade keeps
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import io
import json
import os
import platform
import re
import shutil
import sqlite3
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import edgeface
from edgeface.errors import (
    ArchiveError,
    ChecksumError,
    ContractError,
    GalleryError,
    InputError,
    MissingError,
    package_with,
)
from edgeface.files import output_errors, sha256_of, staging_folder, write_atomically
from edgeface.gallery.store.sqlite_schema import SCHEMA_VERSION
from edgeface.kiosk.doorkeeper import KioskServiceSettings
from edgeface.kiosk.settings import DecisionSettings
from edgeface.model.contract import ModelContract
from edgeface.model.ir_file import read_contract
from edgeface.runtime.embedder import Embedder
from edgeface.runtime.plan import default_plan
from edgeface.serve.service import Service
from edgeface.serve.settings import PREFIX, Gallery, read_settings
from edgeface.untrusted import DOCUMENT_BYTES, read_json, read_regular
from edgeface.version import __version__
from edgeface.zoo.archive import intact, tar_members
from edgeface.zoo.bundle import export_bundle, import_bundle
from edgeface.zoo.catalog import load_catalog
from edgeface.zoo.store import JsonRecords, ModelStore

TOP = "edgeface-kiosk"
"""The one folder of the archive."""

EXTRAS = ("grpc", "index", "mqtt", "postgres")
"""What may be installed beside ``serve``."""
_PARTS = Path(__file__).with_name("installer")
_RUN = ("edgeface", "install")
"""Parts that are programs."""
_SUMS, _FACTS, _VECTORS = "SHA256SUMS", "APPLIANCE", "selftest.json"
_SUM = re.compile(r"([0-9a-f]{64})  ([A-Za-z0-9_][A-Za-z0-9._+/-]*)")
_DETECTORS = {
    "mtcnn": (),  # a wheel has it
    "yunet": ("yunet",),
    "retail-0004": ("face-detection-retail-0004", "landmarks-regression-retail-0009"),
}
_PASSWORD = re.compile(r"://[^/@\s]*:[^/@\s]+@")
_CLOSE = 0.98
"""Least cosine of what two processors embed of one picture."""


@dataclass(frozen=True, slots=True)
class Appliance:
    """An archive: its version of edgeface, Python and processor, the digest and the bytes of each file by name."""

    edgeface: str
    python: str
    machine: str
    files: Mapping[str, tuple[str, int]]

    def bytes_of(self, folder: str) -> int:
        """Return the bytes of all files below a folder, e.g. ``wheels``."""
        return sum(size for name, (_, size) in self.files.items() if name.startswith(f"{folder}/"))


def build_appliance(
    path: Path,
    *,
    config: Path | None = None,
    model: Path | str | None = None,
    extras: Iterable[str] = ("mqtt",),
    liveness: bool = True,
    wheels: Path | None = None,
) -> Appliance:
    """Write an archive for machines with this one's Python version and processor.

    Parameters
    ----------
    path
        Of the archive, a tar.
    config
        Configuration of `edgeface serve`, which goes into the archive as it is; None: a short one with the defaults.
        Its detectors and the models of the zoo that it names are packed.
    model
        What becomes the default model there; see `edgeface.find_model`.
    extras
        Some of `EXTRAS`.
    liveness
        Pack the models of `edgeface.load_liveness`, which a kiosk needs.
    wheels
        Folder with wheels of edgeface, all that it needs, and pip; None: pip collects those versions that are
        installed here, from where it is configured to.

    Raises
    ------
    InputError
        If the configuration is wrong, has a password in it, or names a model by a path.
    MissingError
        If a model or a wheel is not to be had.
    OutputError
        If the archive cannot be written.
    """
    settings = _read_config(config, {})
    text = (_PARTS / "serve.yml").read_bytes() if config is None else read_regular(config, limit=DOCUMENT_BYTES)
    if _PASSWORD.search(text.decode("utf-8", "replace")):
        raise InputError(
            path=config, expected="addresses without passwords", found="one with a password",
            remedy="put it there after the installation: archives are carried about",
        )  # fmt: skip
    chosen = ",".join(sorted({"serve", *extras}))
    if unknown := {*extras} - {*EXTRAS}:
        raise InputError(expected=f"extras of {', '.join(EXTRAS)}", found=", ".join(sorted(unknown)))
    with staging_folder(path.parent) as staging:
        folder = staging / TOP
        folder.mkdir()
        _pack_models(ModelStore(folder / "store"), settings, model, liveness=liveness)
        _collect_wheels(folder / "wheels", chosen, wheels)
        (folder / "requirements.txt").write_text(f"edgeface[{chosen}]=={__version__}\n")
        for part in sorted(_PARTS.iterdir()):
            shutil.copyfile(part, folder / part.name)
        (folder / "serve.yml").write_bytes(text)
        facts = {
            "edgeface": __version__,
            "python": "{}.{}".format(*sys.version_info),
            "machine": platform.machine(),
            "bytes": _bytes_to_install(folder),
        }
        (folder / _FACTS).write_text("".join(f"{name}={value}\n" for name, value in facts.items()))
        with write_atomically(path) as temporary, output_errors(path):
            _write_tar(temporary, folder)
    return read_appliance(path)


def read_appliance(path: Path) -> Appliance:
    """Read a whole archive, and compare each byte with its SHA256SUMS; nothing is unpacked.

    That the archive is the one that was built shows its own digest only: whoever can change a file of it can change
    SHA256SUMS too.

    Raises
    ------
    ArchiveError
        If it is damaged, or has a link, a device, a path out of its folder, a file twice, one that SHA256SUMS does not
        name, or lacks one.
    ChecksumError
        If a file has other bytes.
    """
    with tar_members(path, expected="an appliance, a tar archive") as (archive, members):
        named = _read_sums(path, archive, next(members, None))
        files: dict[str, tuple[str, int]] = {}
        facts = b""
        for member in members:
            name = member.name.removeprefix(f"{TOP}/")
            if not member.isreg() or member.name != f"{TOP}/{name}" or name not in named or name in files:
                raise ArchiveError(
                    path=path, expected=f"each file of {_SUMS} once and no other", found=repr(member.name)[:200]
                )
            if member.mode != (0o755 if name in _RUN else 0o644) or member.uid or member.gid:
                raise ArchiveError(path=path, expected=f"{name} of root, with mode 755 or 644", found=oct(member.mode))
            digest, head = _digest(path, archive, member)
            if digest != named[name]:
                raise ChecksumError(
                    path=path,
                    expected=f"{name} of SHA-256 {named[name]}",
                    found=digest,
                    remedy="copy the archive again",
                )
            files[name] = digest, member.size
            facts = head if name == _FACTS else facts
        if missing := named.keys() - files.keys():
            raise ArchiveError(path=path, expected=min(missing), found="no such file", remedy="copy the archive again")
    told = dict(line.split("=", 1) for line in facts.decode("utf-8", "replace").splitlines() if "=" in line)
    try:
        return Appliance(told["edgeface"], told["python"], told["machine"], files)
    except KeyError as error:
        raise ArchiveError(path=path, expected=f"{error} in {_FACTS}", found="none") from error


def check_appliance(
    config: Path | None = None, *, migrate: bool = False, environ: Mapping[str, str] = os.environ
) -> dict[str, Any]:
    """Open models and galleries as `edgeface serve` does, beside one that runs, and embed a picture with each model.

    Galleries are opened where they are; nothing else in the state folder is touched, and nothing is served.

    Parameters
    ----------
    config, environ
        Configuration of `edgeface serve`.
    migrate
        Agree that galleries are brought to this version's format, after which the version before cannot open them.

    Returns
    -------
    dict
        By name ``models`` (the cosine between what was embedded here and where the archive was built; None without
        one), ``galleries`` (templates) and ``liveness`` (how many models).

    Raises
    ------
    ContractError
        If a model embeds something else than where the archive was built, or does not fit its gallery.
    GalleryError
        If a gallery has an older format, without `migrate`.
    EdgeFaceError
        If a model, a gallery or a key cannot be opened.
    """
    settings, store = _read_config(config, environ), ModelStore()
    vectors: dict[str, list[float]] = {}
    if (known := store.root / _VECTORS).exists():
        vectors = read_json(known, "vectors of the self-test")
    with tempfile.TemporaryDirectory() as scratch:
        galleries = {name: _where_it_is(name, each, settings.state) for name, each in settings.galleries.items()}
        if not migrate:
            for each in galleries.values():
                _require_format(each)
        trial = settings.model_copy(update={"state": Path(scratch), "galleries": galleries})
        with Service(trial) as service:
            models = {name: _compare(service, name, vectors) for name in service.models.names()}
            templates = {name: len(each.index) for name, each in service.galleries.items()}
    decision = settings.kiosk.decision if settings.kiosk is not None else DecisionSettings()
    needed = settings.kiosk is not None or all(store.ir_path(name).is_file() for name in edgeface.LIVENESS_MODELS)
    liveness = 0
    if needed and decision.liveness:
        with edgeface.load_liveness(decision.liveness_models) as checker:
            liveness = len(checker.contracts)
    return {"models": models, "galleries": templates, "liveness": liveness}


def _read_config(config: Path | None, environ: Mapping[str, str]) -> KioskServiceSettings:
    return read_settings(KioskServiceSettings, config, environ, prefix=PREFIX, command="edgeface serve")


# What the archive is made of


def _pack_models(
    store: ModelStore, settings: KioskServiceSettings, model: Path | str | None, *, liveness: bool
) -> None:
    vectors: dict[str, list[float]] = {}
    for name in {each.model for each in settings.models.values()}:
        if name is not None and name not in load_catalog():
            raise InputError(
                expected="models of the zoo by name, or null for the default one", found=name,
                remedy="name its IR with --model",
            )  # fmt: skip
        ir = edgeface.find_model(name or model)
        _, contract = read_contract(ir)
        if contract.provenance == "seeded" and not all(each.allow_seeded for each in settings.models.values()):
            raise InputError(path=ir, expected="trained weights", found="random ones, which recognise no one")
        # A zoo model is looked for under FP32 by its name; the default, of whatever precision, by its contract's.
        _copy_ir(ir, store.ir_path(name or contract.name, precision="FP32" if name else contract.precision))
        if name is None:
            JsonRecords(store.root / "default.json").update({"model": contract.name})
        vectors[contract.contract_id] = _embed_picture(ir, contract)
    for name in edgeface.LIVENESS_MODELS if liveness else ():
        _copy_ir(edgeface.find_model(name), store.ir_path(name))
    detectors = {each.detector for each in settings.models.values()} - {None}
    chosen = {edgeface.choose_detector() if each == "auto" else each for each in detectors}
    wanted = {name for each in chosen for name in _DETECTORS[str(each)]}
    if wanted:
        catalog = load_catalog()
        bundle = store.root / "detectors.tar"
        export_bundle([catalog[name] for name in sorted(wanted)], ModelStore(), bundle)
        import_bundle(bundle, catalog, store)
        bundle.unlink()
    (store.root / _VECTORS).write_text(json.dumps(vectors) + "\n")
    for each in [*store.root.rglob("*.lock"), store.root / "locks"]:
        shutil.rmtree(each) if each.is_dir() else each.unlink(missing_ok=True)


def _copy_ir(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    for suffix in (".xml", ".bin"):
        shutil.copyfile(source.with_suffix(suffix), target.with_suffix(suffix))


def _collect_wheels(folder: Path, extras: str, given: Path | None) -> None:
    folder.mkdir()
    if given is None:
        installed = {each.metadata["Name"]: each.version for each in importlib.metadata.distributions()}
        installed["edgeface"] = __version__
        constraints = folder.parent / "constraints"
        constraints.write_text("".join(f"{name}=={version}\n" for name, version in installed.items() if name))
        words = ["pip", "wheel", "--quiet", "--wheel-dir", str(folder), "--constraint", str(constraints), "pip"]
        done = subprocess.run(
            [sys.executable, "-m", *words, package_with(extras)], capture_output=True, text=True, check=False
        )
        constraints.unlink()
        if done.returncode:
            raise MissingError(
                expected="wheels of edgeface and what it needs", found=done.stderr.strip()[-500:],
                remedy="install edgeface from a clone or a wheel with pip, or give a folder with --wheels",
            )  # fmt: skip
    else:
        for wheel in given.glob("*.whl"):
            shutil.copyfile(wheel, folder / wheel.name)
    for name in (f"edgeface-{__version__}-", "pip-"):
        if len(found := list(folder.glob(f"{name}*.whl"))) != 1:
            raise MissingError(
                path=given, expected=f"one wheel {name}*.whl", found=str(len(found)),
                remedy=f"fill a folder with: pip wheel --wheel-dir DIR pip '{package_with(extras)}'",
            )  # fmt: skip


def _bytes_to_install(folder: Path) -> int:
    """Estimate what an installation takes at its fullest: all files, unpacked wheels, and their bytecode."""
    total = sum(each.stat().st_size for each in folder.rglob("*") if each.is_file())
    for wheel in (folder / "wheels").glob("*.whl"):
        with contextlib.suppress(zipfile.BadZipFile), zipfile.ZipFile(wheel) as content:
            total += sum(each.file_size * (2 if each.filename.endswith(".py") else 1) for each in content.infolist())
    return total + (64 << 20)


def _write_tar(path: Path, folder: Path) -> None:
    files = {str(each.relative_to(folder)): each for each in folder.rglob("*") if each.is_file()}
    sums = "".join(f"{sha256_of(file)}  {name}\n" for name, file in sorted(files.items()))
    for line in sums.splitlines():
        if not _SUM.fullmatch(line):
            raise InputError(expected="names of letters, digits and ._+-", found=line[66:])
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as archive:
        _add(archive, _SUMS, io.BytesIO(sums.encode()), len(sums))
        for name, file in sorted(files.items()):
            with file.open("rb") as content:
                _add(archive, name, content, file.stat().st_size)


def _add(archive: tarfile.TarFile, name: str, content: Any, size: int) -> None:
    member = tarfile.TarInfo(f"{TOP}/{name}")  # no owner, no time: the same files give the same archive
    member.size, member.mode, member.uname, member.gname = size, 0o755 if name in _RUN else 0o644, "root", "root"
    archive.addfile(member, content)


# Reading it


def _read_sums(path: Path, archive: tarfile.TarFile, member: tarfile.TarInfo | None) -> dict[str, str]:
    if member is None or member.name != f"{TOP}/{_SUMS}" or not member.isreg() or member.size > DOCUMENT_BYTES:
        found = "nothing" if member is None else repr(member.name)[:200]
        raise ArchiveError(path=path, expected=f"an archive that begins with {TOP}/{_SUMS}", found=found)
    with intact(path):
        lines = b"".join(_blocks(archive, member)).decode("utf-8", "replace").splitlines()
    sums: dict[str, str] = {}
    for line in lines:
        match = _SUM.fullmatch(line)
        if match is None or {"", ".", ".."} & set(match[2].split("/")) or match[2] in {*sums, _SUMS}:
            raise ArchiveError(path=path, expected=f"each name in {_SUMS} once", found=repr(line)[:200])
        sums[match[2]] = match[1]
    return sums


def _digest(path: Path, archive: tarfile.TarFile, member: tarfile.TarInfo) -> tuple[str, bytes]:
    """Return the SHA-256 and the beginning of a member."""
    digest, head = hashlib.sha256(), b""
    with intact(path):
        for block in _blocks(archive, member):
            head = head or block[:4096]
            digest.update(block)
    return digest.hexdigest(), head


def _blocks(archive: tarfile.TarFile, member: tarfile.TarInfo) -> Iterator[bytes]:
    stream = archive.extractfile(member)
    assert stream is not None  # it is a regular file
    while block := stream.read(1 << 20):
        yield block


# Testing what was installed


def _picture(size: tuple[int, int]) -> NDArray[np.uint8]:
    """Return a crop, (1, height, width, 3) uint8, that is nobody's face, and the same with every release of NumPy."""
    height, width = size
    counted = np.arange(height * width * 3, dtype=np.uint32) * np.uint32(2654435761)
    return (counted >> np.uint32(24)).astype(np.uint8).reshape(1, height, width, 3)


def _embed_picture(ir: Path, contract: ModelContract) -> list[float]:
    plan = default_plan("CPU", precision="f32")
    with contextlib.closing(Embedder.load(ir, plan=plan, allow_seeded=True)) as embedder:
        return [round(float(each), 6) for each in embedder.embed(_picture(contract.input_size))[0]]


def _compare(service: Service, name: str, vectors: Mapping[str, Sequence[float]]) -> float | None:
    with service.models.use(name) as model:
        wanted = vectors.get(model.contract.contract_id)
        if wanted is None:
            return None
        found = model.analyzer.embedder.embed(_picture(model.contract.input_size))[0]
        there = np.array(wanted, np.float32)
        cosine = float(found @ there / (np.linalg.norm(found) * np.linalg.norm(there)))
        if not cosine >= _CLOSE:
            raise ContractError(
                f"{name}: expected the vector that the model had where the archive was built, found a cosine of "
                f"{cosine:.4f} to it on {model.options.device}; try another device, or build the archive anew"
            )
        return cosine


def _where_it_is(name: str, gallery: Gallery, state: Path) -> Gallery:
    """Name the file and key of a gallery in the state folder, if it is there."""
    made = state / "galleries" / f"{name}.gallery"
    if gallery.place is not None or not made.exists():
        return gallery
    key = None if gallery.unencrypted else gallery.key or f"file:{state / 'keys' / f'{name}.key'}"
    return gallery.model_copy(update={"place": str(made), "key": key})


def _require_format(gallery: Gallery) -> None:
    if gallery.place is None or not (path := Path(gallery.place)).is_file():
        return
    with contextlib.suppress(sqlite3.DatabaseError):  # opening it says more
        with contextlib.closing(sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True)) as connection:
            (version,) = connection.execute("PRAGMA user_version").fetchone()
        if version < SCHEMA_VERSION:
            raise GalleryError(
                path=path,
                expected=f"a gallery of format {SCHEMA_VERSION}",
                found=f"format {version}, which this version would change for good",
                remedy="copy the gallery, then install with --migrate",
            )
