"""`edgeface cluster`."""

from __future__ import annotations

import contextlib
import enum
import json as json_text
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgeface.cli.faces import (
    CropsOption,
    DetectorModelOption,
    DetectorName,
    DetectorOption,
    DeviceOption,
    LandmarksModelOption,
    MinSizeOption,
    ModelOption,
    load_detector,
)
from edgeface.cli.output import (
    JsonOption,
    StrictOption,
    counting,
    emit_json,
    finish,
    list_failures,
    stderr,
    stdout,
)
from edgeface.cli.thresholds import (
    FarOption,
    ThresholdOption,
    choose_threshold,
    known_thresholds,
    parse_similarity,
)
from edgeface.errors import InputError
from edgeface.files import output_errors, staging_folder, write_atomically

if TYPE_CHECKING:
    from edgeface.pipeline.batch import BulkResult
    from edgeface.recognize import Threshold
    from edgeface.recognize.cluster import Clusters

__all__ = ["register"]

_TOLERATED = 0.1
"""False neighbours a face, on average. Every face meets every other one: a false accept rate that is right for two
faces joins strangers in a collection, so the wanted rate is this, divided by the number of faces."""


class _Method(str, enum.Enum):
    chinese_whispers = "chinese-whispers"
    dbscan = "dbscan"


def register(app: typer.Typer) -> None:
    """Add this module's command."""
    app.command(epilog="Example: edgeface cluster photos -o people --model facenet.xml")(cluster)


def cluster(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Photographs, in any depth of folders.")],
    model: ModelOption,
    output_dir: Annotated[
        Path,
        typer.Option("--output-dir", "-o", help="Gets people/0001, people/0002, ...", show_default=False),
    ],
    method: Annotated[_Method, typer.Option(help="How faces are joined.")] = _Method.chinese_whispers,
    threshold: ThresholdOption = None,
    far: FarOption = None,
    min_samples: Annotated[
        int, typer.Option("--min-samples", min=1, help="Smaller groups go to people/unknown.")
    ] = 2,
    seed: Annotated[int, typer.Option(help="Of chinese-whispers.")] = 0,
    link: Annotated[
        bool, typer.Option("--link", help="Link to the photographs instead of copying them.")
    ] = False,
    crops: CropsOption = False,
    detector: DetectorOption = DetectorName.mtcnn,
    detector_model: DetectorModelOption = None,
    landmarks_model: LandmarksModelOption = None,
    min_size: MinSizeOption = 40,
    gate: Annotated[
        bool,
        typer.Option("--gate/--no-gate", help="Leave out faces too blurred, dark or turned to tell apart."),
    ] = True,
    device: DeviceOption = "CPU",
    strict: StrictOption = False,
    json: JsonOption = False,
) -> None:
    """Turn a folder of unknown photographs into one folder a person. A picture of two people is in both."""
    from edgeface.pipeline.batch import embed_files
    from edgeface.pipeline.pipeline import Pipeline
    from edgeface.recognize.cluster import chinese_whispers, dbscan
    from edgeface.runtime import Embedder
    from edgeface.vision.quality import QualityGate
    from edgeface.vision.source import find_files

    if not folder.is_dir():
        raise InputError(f"{folder}: expected a folder of photographs, found none")
    _require_own(output_dir)
    files = _without(output_dir / "people", find_files(folder))
    how = {"detector": detector.value, "min_size": min_size, "faces": "all", "gate": gate}
    with contextlib.ExitStack() as stack:
        embedder = stack.enter_context(Embedder.load(model, device=device))
        contract_id = embedder.contract.contract_id
        known = _known_limits(threshold, far, contract_id, model)
        finder = None
        if not crops:
            finder = stack.enter_context(
                load_detector(detector, detector_model, landmarks_model, device=device, min_size=min_size)
            )
        embedded = embed_files(
            files,
            Pipeline(
                finder, embedder, gate=QualityGate() if gate and not crops else None, batch_size=8, prefetch=2
            ),
            output_dir / "embeddings.npz",
            contract_id=contract_id,
            settings=json_text.dumps({"crops": True} if crops else how),
            progress=stack.enter_context(counting("embedding", unit="files")),
        )
    faces = embedded.table.embeddings
    limit = known if isinstance(known, float) else _limit_for(known, len(faces))
    if method is _Method.dbscan:
        found = dbscan(faces, limit, min_samples=min_samples)
    else:
        found = chinese_whispers(faces, limit, min_samples=min_samples, seed=seed)
    _warn(limit, len(faces))
    answer = _answer(embedded, found, method)
    _write(answer, folder, output_dir, link=link)
    if json:
        emit_json({"output_dir": str(output_dir), **answer, "failures": list_failures(embedded.failures)})
    else:
        stdout.print(
            f"{found.count} people in {len(faces)} faces of {len(files)} pictures, in {output_dir / 'people'}; "
            f"{len(answer['unknown'])} faces in groups of fewer than {min_samples}, in people/unknown",
            markup=False,
            soft_wrap=True,
        )
    finish(embedded.failures, strict=strict)


def _without(folder: Path, files: list[Path]) -> list[Path]:
    """Leave out what an earlier run put there: by where a file lies, for it may be a link to a photograph."""
    folder = folder.resolve()
    return [path for path in files if folder not in (path.parent.resolve() / path.name).parents]


def _require_own(output_dir: Path) -> None:
    """Refuse to replace a folder of people that this command did not write."""
    if (output_dir / "people").exists() and not (output_dir / "clusters.json").is_file():
        raise InputError(
            f"{output_dir / 'people'}: expected nothing, or what an earlier 'edgeface cluster' left there, found a "
            "folder without clusters.json beside it; choose another --output-dir"
        )


def _known_limits(
    given: str | None, far: float | None, contract_id: str, model: Path
) -> float | tuple[Threshold, ...]:
    """The similarity or the threshold that was asked for, or all that are known: the choice depends on the faces."""
    if far is not None or (given is not None and parse_similarity(given) is not None):
        chosen = choose_threshold(given, far, contract_id, model)
        return chosen if isinstance(chosen, float) else (chosen,)
    return known_thresholds(given, contract_id, model, far=1e-5)


def _limit_for(known: tuple[Threshold, ...], faces: int) -> Threshold:
    """The most permissive threshold with few enough false neighbours; if there is none, the strictest."""
    rising = sorted(known, key=lambda each: each.far)
    fitting = [each for each in rising if each.observed_far * (faces - 1) <= _TOLERATED]
    return fitting[-1] if fitting else rising[0]


def _warn(limit: Threshold | float, faces: int) -> None:
    if isinstance(limit, float):
        return
    neighbours = limit.observed_far * max(0, faces - 1)
    if neighbours > _TOLERATED:
        stderr.print(
            f"threshold {limit.value:.3f} was calibrated for a false accept rate of {limit.far:g}: among {faces:,} "
            f"faces each has about {neighbours:.1f} false neighbours, and strangers may be joined. Calibrate for a "
            "lower rate, or give a higher similarity with --threshold.",
            markup=False,
            soft_wrap=True,
        )


def _answer(embedded: BulkResult, found: Clusters, method: _Method) -> dict[str, Any]:
    from edgeface.recognize.cluster import NOBODY

    table = embedded.table

    def listed(label: int) -> list[dict[str, Any]]:
        return [
            {
                "path": str(table.paths[row]),
                "face": int(table.faces[row]) + 1,
                "box": [round(float(value), 1) for value in table.boxes[row]],
            }
            for row in found.members(label)
        ]

    return {
        "contract_id": found.contract_id,
        "method": method.value,
        "threshold": found.threshold,
        "people": [{"name": f"{label + 1:04d}", "faces": listed(label)} for label in range(found.count)],
        "unknown": listed(NOBODY),
    }


def _write(answer: dict[str, Any], folder: Path, output_dir: Path, *, link: bool) -> None:
    """Build the folders beside the old ones, and exchange them when they are whole."""
    people, listing = output_dir / "people", output_dir / "clusters.json"
    with staging_folder(output_dir) as staging:
        for person in [*answer["people"], {"name": "unknown", "faces": answer["unknown"]}]:
            for path in dict.fromkeys(Path(face["path"]) for face in person["faces"]):
                target = staging / "people" / person["name"] / path.relative_to(folder)
                target.parent.mkdir(parents=True, exist_ok=True)
                if link:
                    target.symlink_to(path.resolve())
                else:
                    shutil.copy2(path, target)
        with write_atomically(listing) as partial:
            partial.write_text(json_text.dumps(answer, indent=2) + "\n", encoding="utf-8")
        with output_errors(people):
            if people.exists():
                people.replace(staging / "replaced")
            (staging / "people").replace(people)
