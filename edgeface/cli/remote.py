"""Let a service that runs answer a command: no model is loaded, and next to nothing is imported.

EDGEFACE_SERVER names the service: ``unix:/path`` of its `listen.socket`, or its address; EDGEFACE_SERVER_KEY is a key
of it. A service that does not answer is an error, and so is an option that it cannot follow: no other model than the
one that was asked for ever decides. Answers are worded by `edgeface.cli.words`, as those of a model of this process.
"""

from __future__ import annotations

import argparse
import hashlib
import http.client
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from edgeface.cli.remote_service import INSTEAD, SERVER, ask, connected, read_photo, target
from edgeface.cli.streams import emit_json, guarded_streams
from edgeface.cli.words import (
    FOUND_BY,
    choice_words,
    decision_words,
    detector_lines,
    embedded_words,
    found_lines,
    identified_lines,
    list_failures,
    model_words,
    search_words,
)
from edgeface.errors import EdgeFaceError, FaceError, ImageError, InputError, NegativeResult, OutputError, RequestError
from edgeface.text import hide_secrets, printable

if TYPE_CHECKING:
    from edgeface.vision.listing import PhotoList


def run_remotely(arguments: Sequence[str]) -> int | None:
    """Run a command by the service and return its exit code; None if it is none that the service answers."""
    given = list(arguments)
    while given[:1] in (["-v"], ["--verbose"]):  # of the program; here is no log
        given = given[1:]
    if not given or given[0] not in _COMMANDS or "--help" in given:
        return None
    with guarded_streams() as (stdout, stderr):
        try:
            declare, run = _COMMANDS[given[0]]
            code = run(_parse(given[0], declare, given[1:]))
        except EdgeFaceError as error:
            message = hide_secrets(str(error))
            stderr.write(f"edgeface: {printable(message)}\n")
            if "--json" in given:
                emit_json({"error": {"kind": type(error).__name__, "message": message}})
            code = error.exit_code
        except KeyboardInterrupt:
            stderr.write("edgeface: interrupted\n")
            code = 130
        if reason := stdout.lost():
            stderr.write(f"edgeface: cannot write the answer to stdout: {reason}\n")
            code = OutputError.exit_code
    return code


# What each command is told: the options that a service can follow


class _Parser(argparse.ArgumentParser):
    """Raises its errors."""

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{self.prog} by the service in {SERVER}: {message}; {INSTEAD}")


def _parse(command: str, declare: Callable[[_Parser], None], arguments: Sequence[str]) -> argparse.Namespace:
    parser = _Parser(prog=command, add_help=False, allow_abbrev=False)
    declare(parser)
    parser.add_argument("--json", action="store_true")
    asked, unknown = parser.parse_known_intermixed_args(arguments)
    if unknown:
        parser.error(f"it does not take {' '.join(unknown)}")
    return asked


def _rate(parser: _Parser, name: str) -> None:
    """Add an option that is a rate, which is refused as a model of this process does."""

    def rate(text: str) -> float:
        if not 0 < (value := float(text)) < 1:
            from edgeface.recognize.threshold import require_rate

            require_rate(name, value)
        return value

    parser.add_argument(f"--{name}", type=rate)


def _declare_verify(parser: _Parser) -> None:
    _rate(parser, "far")
    parser.add_argument("a", type=Path)
    parser.add_argument("b", type=Path)
    for name, kind in (("threshold", float), ("face-a", int), ("face-b", int)):
        parser.add_argument(f"--{name}", type=kind)
    parser.add_argument("--model", "-m")


def _declare_photos(parser: _Parser) -> None:
    parser.add_argument("images", nargs="+")
    parser.add_argument("--strict", action="store_true")


def _declare_identify(parser: _Parser) -> None:
    _declare_photos(parser)
    parser.add_argument("--gallery", "-g", required=True)
    _rate(parser, "fpir")
    parser.add_argument("--model", "-m")


def _declare_embed(parser: _Parser) -> None:
    _declare_photos(parser)
    parser.add_argument("--output", "-o", type=Path, required=True)
    parser.add_argument("--faces", choices=("largest", "all"), default="largest")
    parser.add_argument("--model", "-m")


def _declare_detect(parser: _Parser) -> None:
    _declare_photos(parser)
    parser.add_argument("--detector")


# The commands


def _verify(asked: argparse.Namespace) -> int:
    names = ("far", "threshold", "face_a", "face_b", "model")
    query = {name: getattr(asked, name) for name in names}
    with connected() as connection:
        photos = {"photo_a": (asked.a, read_photo(asked.a)), "photo_b": (asked.b, read_photo(asked.b))}
        answer = ask(connection, "POST", target("verify", **query), photos)
        about = _about(connection, answer)
        for name, path, option in (("face_a", asked.a, "--face-a"), ("face_b", asked.b, "--face-b")):
            if getattr(asked, name) is None and (note := choice_words(path, answer[name], option)):
                _print_note(note)
        if asked.json:
            faces = {
                letter: {"path": str(path), "faces": face["total"], "face": face["number"], "box": face["box"]}
                for letter, path, face in (("a", asked.a, answer["face_a"]), ("b", asked.b, answer["face_b"]))
            }
            known = {key: value for key, value in answer.items() if "face_" not in key and key != "version"}
            by = {name: about[key] for name, key in (("model", "name"), ("precision", "precision"), ("hint", "hint"))}
            emit_json(known | {"same": answer["matched"]} | by | faces)
        else:
            _print(decision_words(answer), *_model_lines(about, answer))
            if answer["note"]:
                _print_note(answer["note"])
        return 0 if answer["matched"] else NegativeResult.exit_code


def _identify(asked: argparse.Namespace) -> int:
    photos = _Photos.of(asked.images)
    with connected() as connection:
        limit, about, differs = _threshold(connection, asked)
        if differs:
            _print_note(differs)
        if not asked.json:
            _print_note(search_words(limit))
        if limit["note"]:
            _print_note(limit["note"])
        found: dict[Path, list[dict[str, Any]]] = {}
        age: dict[str, float] = {}
        for path, _, answer in photos.ask(connection, target("identify", gallery=asked.gallery, fpir=asked.fpir)):
            found[path], found_by = [_identified(each) for each in answer["faces"]], _found_by(answer)
            if answer["snapshot_age"] is not None:
                age = {"snapshot_age": answer["snapshot_age"]}
            if not asked.json:
                _print(*identified_lines(path, found[path], margin=limit["margin"]))
        recognised = sum(each["known"] for faces in found.values() for each in faces)
        if asked.json:
            emit_json(
                {"gallery": asked.gallery, "model": about["name"], "contract_id": about["contract_id"]}
                | {"precision": about["precision"], "hint": about["hint"], **limit}
                | {**found_by, "detector_note": differs, "rule": "max"}
                | {"recognised": recognised, **age}
                | {"images": [{"path": str(path), "faces": faces} for path, faces in found.items()], **photos.unread()}
            )
        else:
            _print(*_model_lines(about, found_by))
            if age:
                _print_note(f"by a snapshot of the gallery that its server confirmed {age['snapshot_age']:.0f} s ago")
        return photos.finish(asked) or (0 if recognised else NegativeResult.exit_code)


def _threshold(
    connection: http.client.HTTPConnection, asked: argparse.Namespace
) -> tuple[dict[str, Any], dict[str, Any], str | None]:
    """Return by what the service decides in a gallery, as the command's JSON has it, about its model, and its note."""
    names = ask(connection, "GET", target("galleries"))["galleries"]
    if asked.gallery not in names:
        raise InputError(
            path="--gallery",
            expected=f"the name of a gallery of the service in {SERVER}: {', '.join(names)}",
            found=asked.gallery,
            remedy=f"name one of them, or {INSTEAD} and open a gallery by its address",
        )
    gallery = ask(connection, "GET", target("galleries", asked.gallery))
    if asked.model not in (None, gallery["model"]):
        expected = f"the model of the gallery {asked.gallery}, {gallery['model']}"
        raise InputError(path="--model", expected=expected, found=asked.model, remedy=f"leave it out, or {INSTEAD}")
    limit = ask(connection, "GET", target("galleries", asked.gallery, "threshold", fpir=asked.fpir))
    fields = ["templates", "fpir", "expected_fpir", "expected_fnir", "supported", "measured_on", "note", "margin"]
    decided = {"threshold": limit["value"]} | {name: limit[name] for name in fields}
    about = _about(connection, {"model": gallery["model"], "contract_id": limit["contract_id"]})
    return decided, about, gallery["detector_note"]


def _identified(answer: dict[str, Any]) -> dict[str, Any]:
    """Return what the command says of a face that the service identified."""
    face = answer["face"]
    reasons = {"reasons": face["reasons"]} if face["reasons"] else {}
    known = {key: value for key, value in answer.items() if key != "reason" or value}
    return known | {"face": face["number"], "box": face["box"]} | reasons


def _detect(asked: argparse.Namespace) -> int:
    photos = _Photos.of(asked.images)
    found = list[dict[str, Any]]()
    with connected() as connection:
        for path, _, answer in photos.ask(connection, target("analyze")):
            _require_detector(found_by := _found_by(answer), asked.detector)
            faces = [
                {"box": face["box"], "landmarks": face["landmarks"], "score": round(face["score"], 6)}
                for face in answer["faces"]
            ]
            found.append({"path": str(path), "width": answer["width"], "height": answer["height"], "faces": faces})
            if not asked.json:
                _print(*found_lines(found[-1]))
        if asked.json:
            emit_json({**found_by, "images": found, **photos.unread()})
        else:
            _print(*detector_lines(found_by))
    return photos.finish(asked)


def _found_by(answer: Mapping[str, Any]) -> dict[str, Any]:
    return {name: answer[name] for name in FOUND_BY}


def _require_detector(found_by: Mapping[str, Any], asked: str | None) -> None:
    """Raise InputError if another detector than that of the service is asked for, or it has none."""
    name = found_by["detector"]
    if name is None or asked not in (None, "auto", name):
        raise InputError(
            path="detect" if asked is None else "--detector",
            expected=f"the detector of the service in {SERVER}, {name or 'which has none: its photos are crops'}",
            found=asked,
            remedy=f"leave it out, or {INSTEAD}" if name else INSTEAD,
        )


def _embed(asked: argparse.Namespace) -> int:
    from edgeface.files import require_writable
    from edgeface.pipeline.table import require_format

    require_format(asked.output)
    _require_fresh(asked)
    require_writable(asked.output.parent)
    photos, rows = _Photos.of(asked.images), list[dict[str, Any]]()
    every = asked.faces == "all"
    operation, options = ("analyze", {"embeddings": "true"}) if every else ("embed", {})
    with connected() as connection:
        for path, data, answer in photos.ask(connection, target(operation, model=asked.model, **options)):
            faces = answer["faces"] if every else [answer["face"] | {"embedding": answer["embedding"]}]
            made_of = {"paths": str(path), "modified": path.stat().st_mtime_ns, "sizes": len(data)}
            made_of["digests"] = hashlib.sha256(data).hexdigest()
            new = [made_of | {"faces": number} | face for number, face in enumerate(faces) if face["embedding"]]
            if not new:
                reasons = "; ".join(reason for face in faces for reason in face["reasons"])
                photos.failures[path] = reasons or "expected a face, found none"
            elif not rows:
                about, found_by = _about(connection, answer), _found_by(answer)
            rows += new
        if not rows:
            raise ImageError(f"no photo could be embedded: {photos.some()}")
        _save(rows, asked, about)
    photos.failures = dict(sorted(photos.failures.items()))
    answer = {"output": str(asked.output), "model": about["name"], "contract_id": about["contract_id"]}
    answer |= {
        **found_by,
        "rows": len(rows),
        "files": photos.count(),
        "reused": 0,
        "reduced": 1,
        "dropped": 0,
        **photos.unread(),
    }
    if asked.json:
        emit_json(answer)
    else:
        _print(embedded_words(answer), *detector_lines(answer))
    return photos.finish(asked)


def _require_fresh(asked: argparse.Namespace) -> None:
    """Raise InputError for what only a model of this process does: folders, and files that are resumed."""
    parts = asked.output.with_name(f"{asked.output.name}.parts")
    written = next((path for path in (asked.output, parts) if path.exists()), None)
    folder = next((place for place in asked.images if Path(place).is_dir()), None)
    if place := written or folder:
        raise InputError(
            path=place,
            expected=f"{'a new file' if written else 'photos by name'}, where the service in {SERVER} embeds",
            found="rows of an earlier run" if written else "a folder",
            remedy=f"{INSTEAD}, which resumes and embeds many photos at once",
        )


def _save(rows: list[dict[str, Any]], asked: argparse.Namespace, about: dict[str, Any]) -> None:
    """Write the file that `edgeface embed` writes; boxes are to the hundredth of a pixel."""
    import numpy as np

    from edgeface.pipeline.table import EmbeddingTable

    settings = about["settings"] | ({} if about["settings"]["detector"] is None else {"faces": asked.faces})
    kinds = {"paths": np.str_, "modified": np.int64, "sizes": np.int64, "digests": np.str_, "faces": np.int32}
    columns: dict[str, Any] = {name: np.array([row[name] for row in rows], kind) for name, kind in kinds.items()}
    for name, key in (("vectors", "embedding"), ("boxes", "box"), ("scores", "score")):
        columns[name] = np.array([row[key] for row in rows], np.float32)
    text = json.dumps(settings, sort_keys=True)
    EmbeddingTable(contract_id=about["contract_id"], settings=text, **columns).save(asked.output)


_COMMANDS: dict[str, tuple[Callable[[_Parser], None], Callable[[argparse.Namespace], int]]] = {
    "verify": (_declare_verify, _verify),
    "identify": (_declare_identify, _identify),
    "embed": (_declare_embed, _embed),
    "detect": (_declare_detect, _detect),
}


@dataclass(slots=True)
class _Photos:
    """The photos that a command is given, and why some of them have no answer."""

    listed: PhotoList
    failures: dict[Path, str]

    @classmethod
    def of(cls, places: Sequence[str]) -> _Photos:
        from edgeface.vision.listing import list_photos

        listed = list_photos(places)
        return cls(listed, dict(listed.failures))

    def count(self) -> int:
        """Return how many files were asked for."""
        return len(self.listed.files) + len(self.listed.failures)

    def ask(
        self, connection: http.client.HTTPConnection, operation: str
    ) -> Iterator[tuple[Path, bytes, dict[str, Any]]]:
        """Yield each photo, its bytes and the service's answer; raise ImageError if there is none at all."""
        answered = False
        for path in self.listed.files:
            try:
                data = read_photo(path)
                answer = ask(connection, "POST", operation, {"photo": (path, data)})
            except (ImageError, FaceError) as error:
                none = isinstance(error, FaceError) and error.found == "none"
                text = f"expected {error.expected}, found none" if none else str(error)
                self.failures[path] = text.removeprefix(f"{path}: ")
                continue
            answered = True
            yield path, data, answer
        if not answered:
            raise ImageError(f"no photo could be read: {self.some()}")

    def some(self) -> str:
        """Name the first failures in one line."""
        from edgeface.vision.crops import list_some

        return list_some(self.failures)

    def unread(self) -> dict[str, Any]:
        """Return the fields of a command's JSON."""
        return {"failures": list_failures(self.failures), "left_out": list_failures(self.listed.left_out)}

    def finish(self, asked: argparse.Namespace) -> int:
        """Print what has no answer; return the exit code, which is not 0 where that is an error."""
        if self.listed.left_out:
            from edgeface.vision.crops import list_some

            _print_note(f"left out: {list_some(self.listed.left_out)}")
        for path, reason in self.failures.items():
            _print_note(f"{path}: {reason}")
        return NegativeResult.exit_code if self.failures and asked.strict else 0


def _print(*lines: str) -> None:
    sys.stdout.write("".join(f"{printable(line)}\n" for line in lines))


def _print_note(text: str) -> None:
    sys.stderr.write(f"{printable(text)}\n")


def _about(connection: http.client.HTTPConnection, answer: Mapping[str, Any]) -> dict[str, Any]:
    """Describe the model of an answer; raise RequestError if it is another one by now."""
    about = ask(connection, "GET", target("models", answer["model"]))
    if about["contract_id"] != answer["contract_id"]:
        from edgeface.model.contract import current_id

        if current_id(about["contract_id"]) == current_id(answer["contract_id"]):
            return about  # an IR of edgeface 0.1, whose thresholds have the id of today
        raise RequestError(f"the service in {SERVER} changed its model meanwhile; ask again")
    return about


def _model_lines(about: Mapping[str, Any], found_by: Mapping[str, Any]) -> list[str]:
    words = model_words(about["name"], about["contract_id"], about["weights"], about["precision"])
    return [words, *detector_lines(found_by)]
