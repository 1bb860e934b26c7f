"""Carry a trained embedder, its head and its thresholds in one archive, and read it back checked."""

from __future__ import annotations

import io
import json
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgeface.errors import ArchiveError, ChecksumError, ContractError, InputError, OutputError
from edgeface.files import output_errors, sha256_of, staging_folder, write_atomically
from edgeface.model.contract import ModelContract
from edgeface.model.embedding import require_same_contract
from edgeface.model.ir_file import check_weights, read_contract
from edgeface.recognize.known import thresholds_for
from edgeface.recognize.threshold import load_thresholds, save_thresholds
from edgeface.train.classify import TrainedHead
from edgeface.untrusted import read_json
from edgeface.version import __version__
from edgeface.zoo.archive import unpack

_VERSION = 1
HEAD, THRESHOLDS = "head.npz", "thresholds.json"
"""Files beside the IR, in the output folder of a training and in an archive."""
CLASSIFIER = "classifier.npz"
"""What `edgeface.train.train_classifier` writes."""
_MANIFEST = "manifest.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingArchive:
    """The content of an archive: the contract, the people of the head, and the files with their SHA-256."""

    contract: ModelContract
    labels: tuple[str, ...]
    files: tuple[tuple[str, str], ...]

    def to_dict(self) -> dict[str, Any]:
        """Return JSON types: the answer of `edgeface export`."""
        return {
            "name": self.contract.name,
            "contract_id": self.contract.contract_id,
            "people": list(self.labels),
            "files": dict(self.files),
        }


def export_training(folder: Path, path: Path) -> TrainingArchive:
    """Write the IR, the head, and the thresholds of the training or that are known for the IR, into one plain tar.

    Parameters
    ----------
    folder
        Output folder of a training.
    path
        The archive, a new file, which only its owner may read: a head is made of people's faces.

    Raises
    ------
    InputError
        If the folder has no head, or not exactly one IR.
    ContractError
        If head, thresholds and IR are of different contracts.
    ModelFormatError
        If the IR is damaged.
    OutputError
        If the archive exists or cannot be written; nothing is left of it then.
    """
    if path.is_file():
        raise OutputError(f"{path}: this file exists already; choose another name")
    irs = sorted(folder.glob("*.xml"))
    if len(irs) != 1 or not (folder / HEAD).is_file():
        raise InputError(
            path=folder,
            expected=f"the output of 'edgeface train head': one IR and {HEAD}",
            found=f"{', '.join(each.name for each in irs) or 'no IR'} and "
            f"{'a' if (folder / HEAD).is_file() else 'no'} {HEAD}",
            remedy=_remedy(folder, len(irs)),
        )
    head, contract = _read(irs[0], folder / HEAD)
    with staging_folder(path.parent) as staging:
        sources = [irs[0], irs[0].with_suffix(".bin"), folder / HEAD]
        if (folder / THRESHOLDS).is_file():
            _require_thresholds(folder / THRESHOLDS, contract)
            sources.append(folder / THRESHOLDS)
        elif known := thresholds_for(contract):
            save_thresholds(staging / THRESHOLDS, known)
            sources.append(staging / THRESHOLDS)
        files = tuple((source.name, sha256_of(source)) for source in sources)
        made = TrainingArchive(contract=contract, labels=head.labels, files=files)
        text = json.dumps(
            {"schema_version": _VERSION, "created_by": f"edgeface {__version__}", **made.to_dict()}, indent=2
        )
        with write_atomically(path, private=True) as partial, tarfile.open(partial, "w") as archive:
            info = tarfile.TarInfo(_MANIFEST)
            info.size = len(text.encode())
            archive.addfile(info, io.BytesIO(text.encode()))
            for source in sources:
                archive.addfile(_member(source), io.BytesIO(source.read_bytes()))
    return made


def _remedy(folder: Path, irs: int) -> str:
    if irs > 1:
        return "remove the .xml and .bin of those that shall not travel"
    if irs:  # of 'edgeface train metric'
        return "an embedder without a head needs no archive: copy its .xml and .bin; or train a head on it"
    if (folder / CLASSIFIER).is_file():
        return f"a classifier needs no archive: copy {CLASSIFIER}, and the .xml and .bin of the model it was trained on"
    return "train a head first, with 'edgeface train head'"


def _member(source: Path) -> tarfile.TarInfo:
    info = tarfile.TarInfo(source.name)  # no owner, no time: the same files give the same archive
    info.size = source.stat().st_size
    return info


def import_training(path: Path, folder: Path) -> TrainingArchive:
    """Unpack an archive into a folder, which must not exist, and check it: digests, IR, head, thresholds.

    Raises
    ------
    ArchiveError
        If it is damaged, or no archive of `export_training`.
    ChecksumError
        If a file differs from what the manifest says.
    ContractError
        If head, thresholds and IR are not of one contract.
    InputError
        If the folder exists.
    OutputError
        If the folder cannot be written.
    """
    if folder.exists():
        raise InputError(path=folder, expected="a folder to be made", found="one that exists")
    with staging_folder(folder.parent) as staging:
        unpacked = staging / "unpacked"
        unpacked.mkdir()
        unpack(path, unpacked, format="tar")
        told = _manifest(unpacked, path)
        found = {each.name + "/" * each.is_dir() for each in unpacked.iterdir()} - {_MANIFEST}
        if found != set(told["files"]) or any(name.endswith("/") for name in found):
            raise ArchiveError(
                path=path, expected=f"the files of its {_MANIFEST}", found=", ".join(sorted(found)) or "none"
            )
        for name, digest in told["files"].items():
            if sha256_of(unpacked / name) != digest:
                raise ChecksumError(
                    path=path, expected=f"{name} of SHA-256 {digest[:16]}...", found="another", remedy="copy it again"
                )
        (ir,) = unpacked.glob("*.xml")
        try:
            head, contract = _read(ir, unpacked / HEAD)
            if (unpacked / THRESHOLDS).is_file():
                _require_thresholds(unpacked / THRESHOLDS, contract)
        except InputError as error:  # it names files that are about to vanish
            raise error.with_path(path) from None
        with output_errors(folder):
            unpacked.replace(folder)
    return TrainingArchive(contract=contract, labels=head.labels, files=tuple(told["files"].items()))


def _require_thresholds(path: Path, contract: ModelContract) -> None:
    ids = {each.contract_id for each in load_thresholds(path)}
    require_same_contract(contract.contract_id, *ids, what=str(path))


def _manifest(unpacked: Path, path: Path) -> dict[str, Any]:
    try:
        told = read_json(unpacked / _MANIFEST, "a manifest")
        files = told["files"]
        names = [name for name in files if name.endswith(".xml")]
        if told["schema_version"] != _VERSION or len(names) != 1 or HEAD not in files:
            raise ValueError("it is of another kind or version")
        if not all(isinstance(digest, str) for digest in files.values()):
            raise ValueError("digests are no text")
    except (InputError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ArchiveError(
            path=path, expected=f"an archive of 'edgeface export' with a {_MANIFEST}", found=f"another one ({error})"
        ) from error
    return dict(told)


def _read(ir: Path, head_file: Path) -> tuple[TrainedHead, ModelContract]:
    _, contract = read_contract(ir)
    check_weights(ir, contract)
    head = TrainedHead.load(head_file)
    if head.contract_id != contract.contract_id:
        raise ContractError(
            path=head_file,
            expected=f"a head for {ir.name}, of contract_id {contract.contract_id}",
            found=f"one for {head.contract_id}, which another training wrote",
            remedy="train a head on this model, in a folder of its own",
        )
    if head.weights.shape[1] != contract.embedding_dim:
        raise InputError(
            path=head_file,
            expected=f"a head for embeddings of {contract.embedding_dim} numbers, as the model's",
            found=f"one for {head.weights.shape[1]}",
            remedy="train it again",
        )
    return head, contract
