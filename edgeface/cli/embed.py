"""`edgeface embed` and `edgeface verify`."""

from __future__ import annotations

import contextlib
import enum
import json as json_text
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
from edgeface.cli.thresholds import FarOption, ThresholdOption, choose_threshold
from edgeface.errors import FaceError, InputError, NegativeResult

if TYPE_CHECKING:
    from edgeface.pipeline.pipeline import Face, Pipeline
    from edgeface.recognize import Embedding, Threshold


class _Faces(str, enum.Enum):
    largest = "largest"
    all = "all"


def register(app: typer.Typer) -> None:
    """Add this module's commands."""
    app.command(epilog="Example: edgeface embed photos/ --model facenet.xml -o photos.npz")(embed)
    app.command(epilog="Example: edgeface verify passport.jpg door.jpg --model facenet.xml --far 0.001")(
        verify
    )


def embed(
    paths: Annotated[list[str], typer.Argument(metavar="PATH...", help="Files, folders or patterns.")],
    model: ModelOption,
    output: Annotated[
        Path,
        typer.Option("--output", "-o", help="A .npz, or a .parquet (extra 'parquet').", show_default=False),
    ],
    faces: Annotated[
        _Faces, typer.Option(help="Which faces of a picture: the one it is about, or all.")
    ] = _Faces.largest,
    crops: CropsOption = False,
    detector: DetectorOption = DetectorName.mtcnn,
    detector_model: DetectorModelOption = None,
    landmarks_model: LandmarksModelOption = None,
    min_size: MinSizeOption = 20,
    device: DeviceOption = "CPU",
    strict: StrictOption = False,
    json: JsonOption = False,
) -> None:
    """Embed the faces of many pictures. Run it again, and it does only what is new or was interrupted."""
    from edgeface.pipeline.batch import embed_files
    from edgeface.pipeline.pipeline import Pipeline
    from edgeface.pipeline.table import require_format
    from edgeface.runtime import Embedder
    from edgeface.vision.source import find_files

    require_format(output)
    files = list(dict.fromkeys(path for place in paths for path in find_files(place)))
    how: dict[str, Any] = {"crops": True}
    if not crops:
        how = {"detector": detector.value, "min_size": min_size, "faces": faces.value}
        named = {"detector_model": detector_model, "landmarks_model": landmarks_model}
        how |= {option: str(path) for option, path in named.items() if path}
    with contextlib.ExitStack() as stack:
        finder = None
        if not crops:
            finder = stack.enter_context(
                load_detector(detector, detector_model, landmarks_model, device=device, min_size=min_size)
            )
        embedder = stack.enter_context(Embedder.load(model, device=device))
        contract_id = embedder.contract.contract_id
        result = embed_files(
            files,
            Pipeline(finder, embedder, faces=faces.value, batch_size=8, prefetch=2),
            output,
            contract_id=contract_id,
            settings=json_text.dumps(how),
            progress=stack.enter_context(counting("embedding", unit="files")),
        )
    if json:
        emit_json(
            {
                "output": str(output),
                "contract_id": contract_id,
                "rows": len(result.table),
                "files": len(files),
                "reused": result.reused,
                "failures": list_failures(result.failures),
            }
        )
    else:
        stdout.print(
            f"{len(result.table)} embeddings of {len(files)} files in {output}", markup=False, soft_wrap=True
        )
    finish(result.failures, strict=strict)


def verify(
    a: Annotated[Path, typer.Argument(metavar="A", help="A picture.")],
    b: Annotated[Path, typer.Argument(metavar="B", help="Another one.")],
    model: ModelOption,
    threshold: ThresholdOption = None,
    far: FarOption = None,
    face_a: Annotated[int | None, typer.Option(min=1, help="Which face of A, from the left.")] = None,
    face_b: Annotated[int | None, typer.Option(min=1, help="Which face of B, from the left.")] = None,
    detector: DetectorOption = DetectorName.mtcnn,
    detector_model: DetectorModelOption = None,
    landmarks_model: LandmarksModelOption = None,
    min_size: MinSizeOption = 20,
    device: DeviceOption = "CPU",
    json: JsonOption = False,
) -> None:
    """Say whether two pictures show one person. Exit code 0: the same, 1: different."""
    from edgeface.pipeline.pipeline import Pipeline
    from edgeface.recognize.threshold import require_calibrated_for
    from edgeface.runtime import Embedder

    with Embedder.load(model, device=device) as embedder:
        decision = choose_threshold(threshold, far, embedder.contract.contract_id, model)
        if not isinstance(decision, float):
            require_calibrated_for(decision, embedder.contract)
        with load_detector(
            detector, detector_model, landmarks_model, device=device, min_size=min_size
        ) as finder:
            pipeline = Pipeline(finder, embedder)
            first, about_a = _take_face(pipeline, a, face_a, "--face-a")
            second, about_b = _take_face(pipeline, b, face_b, "--face-b")
    answer = {**_decide(first, second, decision), "a": about_a, "b": about_b}
    if json:
        emit_json(answer)
    else:
        _show(answer)
    if not answer["same"]:
        raise typer.Exit(NegativeResult.exit_code)


def _take_face(
    pipeline: Pipeline, path: Path, number: int | None, option: str
) -> tuple[Embedding, dict[str, Any]]:
    """Embed the face that was asked for, or the one that the picture is about."""
    from edgeface.vision.image import read_image

    image = read_image(path)
    faces = sorted(pipeline.process(image), key=lambda face: float(face.box[0]))
    if not faces:
        raise FaceError(f"{path}: expected a face, found none; use a picture with a larger or clearer face")
    if number is not None and number > len(faces):
        raise InputError(f"{option} {number}: expected 1 to {len(faces)}, the faces found in {path}")
    index = _largest(faces, image.shape[:2]) if number is None else number - 1
    face = faces[index]
    if face.embedding is None:
        raise FaceError(f"{path}: face {index + 1} cannot be used: {'; '.join(face.reasons)}")
    box = [round(float(value), 1) for value in face.box]
    if len(faces) > 1 and number is None:
        x0, y0, x1, y1 = box
        stderr.print(
            f"{path}: {len(faces)} faces; took number {index + 1} from the left, {x1 - x0:.0f}x{y1 - y0:.0f} at "
            f"({x0:.0f}, {y0:.0f}). Choose another with {option} N.",
            markup=False,
            soft_wrap=True,
        )
    return face.embedding, {"path": str(path), "faces": len(faces), "face": index + 1, "box": box}


def _largest(faces: list[Face], size: tuple[int, ...]) -> int:
    import numpy as np

    from edgeface.vision.detector import Faces

    found = Faces(
        np.stack([face.box for face in faces]),
        np.stack([face.landmarks for face in faces]),
        np.array([face.score for face in faces], np.float32),
    )
    return found.largest((size[0], size[1]))


def _decide(first: Embedding, second: Embedding, decision: Threshold | float) -> dict[str, Any]:
    from edgeface.recognize import Metric, paired
    from edgeface.recognize import verify as run

    if not isinstance(decision, float):
        result = run(first, second, decision)
        return {**result.to_dict(), "note": decision.note, "calibrated_on": decision.created_from}
    score = float(paired(Metric.cosine, first.vector[None], second.vector[None])[0])
    return {
        "same": score > decision,
        "score": score,
        "metric": Metric.cosine.value,
        "threshold": decision,
        "far": None,
        "contract_id": first.contract_id,
        "note": "the threshold was given by hand: nobody measured its false accept rate",
    }


def _show(answer: dict[str, Any]) -> None:
    word = "same person" if answer["same"] else "different people"
    rate = "" if answer["far"] is None else f", the threshold for a false accept rate of {answer['far']:g}"
    relation = ">" if answer["score"] > answer["threshold"] else "<="
    stdout.print(
        f"{word}: {answer['metric']} {answer['score']:.4f} {relation} {answer['threshold']:.4f}{rate}",
        soft_wrap=True,
    )
    if answer["note"]:
        stderr.print(answer["note"], markup=False, soft_wrap=True)
