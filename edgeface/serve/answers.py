"""Define what the service's own API answers: the models that the OpenAPI is made of, and that answers are checked by.

Embeddings, cosines and pixels are what `edgeface.Face`, `edgeface.Verification` and `edgeface.Identification` have.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Annotated, Any, Generic, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field

from edgeface.model.contract import ModelContract
from edgeface.pipeline.observation import Face
from edgeface.recognize.open_set import SearchThreshold
from edgeface.recognize.threshold import Threshold
from edgeface.vision.quality import Quality

Rate = Annotated[float, Field(gt=0, lt=1)]
Share = Annotated[float, Field(ge=0, le=1)]
Cosine = Annotated[float, Field(ge=-1.001, le=1.001)]
Vector = list[float]
Point = Annotated[list[float], Field(min_length=2, max_length=2)]
Interval = Annotated[list[Share], Field(min_length=2, max_length=2)]
T = TypeVar("T")


class Answer(BaseModel):
    """One JSON object of which every key is known."""

    model_config = ConfigDict(
        extra="forbid",
        use_attribute_docstrings=True,
        protected_namespaces=(),
        hide_input_in_errors=True,  # the log has no names
    )


class FaceAnswer(Answer):
    """One face of a photo."""

    box: Annotated[list[float], Field(min_length=4, max_length=4)]
    """x0, y0, x1, y1 in pixels of the upright photo; may lie partly outside."""
    landmarks: Annotated[list[Point], Field(min_length=5, max_length=5)] | None
    """x, y of both eyes, the nose and both corners of the mouth, the photo's left one first; null if unknown."""
    score: float
    """Of the detector, 0 to 1."""
    quality: Share | None
    """To compare photos of one person by; an order, not a probability."""
    liveness: float | None
    """Null: not measured."""
    reasons: list[str]
    """Why the face is not used; empty if it is."""
    number: int | None
    """From the left, from 1."""
    total: int | None
    """Faces of the photo."""
    track_id: int | None
    """Null in photos."""


class MeasurementsAnswer(Answer):
    """What `quality` and `reasons` follow from; null: unknown without landmarks."""

    box_side: float
    """Shorter side of the box, pixels."""
    eye_distance: float | None
    """Pixels."""
    sharpness: float
    """Falls with blur and enlargement; a face of a usable photo has 0.004 or more."""
    yaw: float | None
    """Degrees; positive if the nose points to the right of the photo."""
    pitch: float | None
    """Degrees; positive if the nose points down."""
    roll: float | None
    """Degrees; positive if the head is turned clockwise in the photo."""
    brightness: float
    """Mean gray value, 0 to 255."""
    contrast: float
    """Standard deviation of the gray values."""
    clipped: Share
    """Share of pixels that are nearly black or nearly white."""
    inside: Share
    """Share of the box inside the photo."""
    covered: list[str]
    """Landmarks that may be hidden."""


class AnalyzedFaceAnswer(FaceAnswer):
    """One face, with what was measured, and its embedding if it was asked for."""

    measurements: MeasurementsAnswer | None
    """Null for a crop."""
    embedding: Vector | None = None
    """Unit length; null if it was not asked for, or the face is not used."""


class ByModel(Answer):
    """What computed an answer."""

    model: str
    """The service's name of the model."""
    version: int
    """Grows with each load of the model."""
    contract_id: str
    """Embeddings and thresholds of different ids are never compared."""


class FoundByAnswer(Answer):
    """What found the faces of an answer."""

    detector: str | None
    """Its name; null, as both others: the photos are aligned crops."""
    min_size: int | None
    """Shorter side of the smallest face that was looked for, pixels."""
    min_size_from: Literal["min-size", "gate", "model", "default"] | None
    """Why: the model's min_size in the configuration; the smallest that the quality gate lets pass; a fifth of the
    model's input; or the default, 20, where that is less."""


class AnalyzeAnswer(ByModel, FoundByAnswer):
    """The faces of a photo."""

    width: int
    """Pixels of the upright photo."""
    height: int
    """Pixels of the upright photo."""
    faces: list[AnalyzedFaceAnswer]
    """From left to right."""


class EmbedAnswer(ByModel, FoundByAnswer):
    """The embedding of one face of a photo."""

    embedding: Vector
    """Unit length."""
    face: FaceAnswer
    """The face that was embedded."""


class IdentificationAnswer(Answer):
    """Who one face is."""

    verdict: Literal["accepted", "unknown", "inconclusive", "unusable"]
    """accepted: the person; unknown: nobody's score exceeds the threshold, or see reason; inconclusive: two people are
    too close, take another photo; unusable: see the face's reasons."""
    reason: str = ""
    """consent-expired: whose face it would be must not be recognised any more; empty: the scores decided."""
    known: bool
    """Whether the verdict is accepted."""
    person_id: int | None
    """Who it is, or would be."""
    person: str | None
    """Name of person_id."""
    score: Cosine | None
    """Of person_id, else of the most similar person; null without one."""
    runner_up_id: int | None
    """The next person."""
    runner_up: str | None
    """Name of runner_up_id."""
    runner_up_score: Cosine | None
    """Of runner_up_id."""
    margin: float | None
    """score minus runner_up_score."""
    taken: bool
    """Whether score is of a person who is another face of the photo."""
    looks: int
    """Photos that were used."""
    threshold: float
    """Cosine above which a person is accepted."""
    fpir: float | None
    """Target false positive identification rate of the threshold; null: set by hand."""
    measured_on: str
    """What photos that rate was measured on; empty: unknown."""
    rule: str
    """How a person's score is computed from templates."""
    model: str
    """Name in the model's contract."""
    contract_id: str
    """Of the gallery and the model."""
    face: FaceAnswer
    """Where it is."""


class IdentifyAnswer(FoundByAnswer):
    """Who the faces of a photo are."""

    gallery: str
    """That was searched."""
    snapshot_age: float | None
    """Seconds since its server last confirmed the snapshot that was searched; null: the gallery itself was."""
    faces: list[IdentificationAnswer]
    """From left to right; a person is assigned to one face at most."""


class VerifyAnswer(ByModel, FoundByAnswer):
    """Whether two photos show one person."""

    matched: bool
    """The decision."""
    score: float
    """On the scale of metric."""
    metric: str
    """For the thresholds that ship, the cosine similarity: higher is more similar."""
    threshold: float
    """Beyond which score is accepted."""
    far: float | None
    """Target false accept rate of the threshold; null: it was given by hand."""
    far_interval: Interval
    """95 % interval of that rate, by the data it was calibrated on."""
    supported: bool
    """Whether these data are enough for that rate."""
    measured_on: str
    """Short name of these data; empty: unknown."""
    note: str
    """What to know about the rate; empty if nothing."""
    face_a: FaceAnswer
    """The face of photo_a that was compared."""
    face_b: FaceAnswer
    """The face of photo_b that was compared."""


class ModelAnswer(ByModel):
    """A model that answers."""

    name: str
    """In its contract."""
    device: str
    """OpenVINO device it was loaded for."""
    devices: list[str]
    """Devices that compute."""
    precision: str | None
    """That the device computes in; null: it does not say."""
    weights: Literal["FP32", "FP16", "INT8"]
    """Precision of the stored weights."""
    hint: str | None
    """What it was loaded for: latency or throughput."""
    dimensions: int
    """Of an embedding."""
    detector: str | None
    """What finds faces; null: photos are aligned crops."""
    galleries: list[str]
    """Galleries of this model that the key may use."""


class ModelsAnswer(Answer):
    """The models that answer."""

    models: list[ModelAnswer]
    """By name."""


class ModelDetailAnswer(ModelAnswer):
    """A model, with its contract."""

    contract: ModelContract
    """What it expects and returns."""
    settings: dict[str, Any]
    """Everything that faces and embeddings of a photo depend on, as the files of `edgeface embed` record it."""


class ThresholdAnswer(Answer):
    """A threshold of verification, and the error rates it was measured with."""

    far: float | None
    """Target false accept rate."""
    value: float
    """Scores beyond it are accepted."""
    metric: str
    """Of the scores."""
    observed_far: float | None
    """On the calibration data, at most far."""
    far_interval: Interval
    """Clopper-Pearson interval of the false accept rate."""
    frr: float | None
    """False reject rate on the calibration data."""
    frr_interval: Interval
    """Clopper-Pearson interval of the false reject rate."""
    impostors: int
    """Impostor pairs."""
    genuines: int
    """Genuine pairs."""
    confidence: float
    """Of the intervals."""
    supported: bool
    """Whether the data are enough for far."""
    measured_on: str
    """Short name of the data; empty: unknown."""
    note: str
    """What to know about the rate; empty if nothing."""


class SearchThresholdAnswer(Answer):
    """A threshold of identification, for one size of gallery."""

    fpir: float | None
    """Target false positive identification rate."""
    value: Cosine
    """Cosine above which a person is accepted."""
    templates: int
    """Size of the gallery; a larger one needs a stricter threshold."""
    expected_fpir: float | None
    """By the calibration data."""
    fpir_interval: Interval
    """Interval of that rate."""
    expected_fnir: float | None
    """Share of searches with photos of enrolled people that will find nobody."""
    supported: bool
    """Whether the data are enough for fpir."""
    measured_on: str
    """Short name of the data; empty: unknown."""
    note: str
    """What to know about the rate; empty if nothing."""


class ThresholdsAnswer(ByModel):
    """The thresholds that are known for a model."""

    verification: list[ThresholdAnswer]
    """By far, the least strict first; empty: none is known."""
    search: SearchThresholdAnswer | None
    """For fpir and templates of the request; null if templates was not given, or none is known."""


class ProblemAnswer(Answer):
    """A problem, as RFC 9457 describes it."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "type": "urn:edgeface:problem:no-face",
                    "title": "no face",
                    "status": 422,
                    "code": "no-face",
                    "detail": "photo: expected a face, found none; use a photo with a larger or clearer face; "
                    "faces are looked for from 32 pixels on (--min-size; in Python min_size)",
                    "expected": "a face",
                    "found": "none",
                    "remedy": "use a photo with a larger or clearer face; "
                    "faces are looked for from 32 pixels on (--min-size; in Python min_size)",
                }
            ]
        }
    )
    type: str
    """A URN that ends in code."""
    title: str
    """code in words."""
    status: Annotated[int, Field(ge=400, le=599)]
    """That of HTTP."""
    code: str
    """What programs can rely on, e.g. no-face."""
    detail: str
    """For people."""
    expected: str | None = None
    """What was needed."""
    found: str | None = None
    """What was there instead."""
    remedy: str | None = None
    """What to do."""
    errors: list[dict[str, Any]] | None = None
    """What is wrong with each part, where there are several."""


class BatchLine(Answer, Generic[T]):
    """One line of a batch's answer: of one photo, in the order of the request. One of result and problem is there."""

    photo: Annotated[int, Field(ge=0)]
    """Number of the photo in the request, from 0."""
    name: str | None = None
    """File name or id that the request gave it."""
    result: T | None = None
    """What the operation for one photo answers."""
    problem: ProblemAnswer | None = None
    """Why there is no result for this photo; the others are not concerned."""


class AnalyzeLine(BatchLine[AnalyzeAnswer]):
    """One photo's line of the answer to `analyze/batch`."""


class IdentifyLine(BatchLine[IdentifyAnswer]):
    """One photo's line of the answer to `identify/batch`."""


class EmbedLine(BatchLine[EmbedAnswer]):
    """One photo's line of the answer to `embed/batch`."""


def plain(number: float) -> float | None:
    """Return a number as JSON has it: null instead of NaN and infinity."""
    return number if math.isfinite(number) else None


def measurements_of(quality: Quality | None) -> dict[str, Any] | None:
    """Return the fields of `MeasurementsAnswer`."""
    if quality is None:
        return None
    fields = dataclasses.asdict(quality) | {"covered": list(quality.covered)}
    return {name: plain(value) if isinstance(value, float) else value for name, value in fields.items()}


def analyzed_face(face: Face) -> dict[str, Any]:
    """Return the fields of `AnalyzedFaceAnswer`."""
    vector = None if face.embedding is None else face.embedding.vector.tolist()
    return face.to_dict() | {"measurements": measurements_of(face.quality), "embedding": vector}


def search_fields(kind: type[SearchThresholdAnswer], chosen: SearchThreshold) -> dict[str, Any]:
    """Return what a threshold of identification says of the fields of an answer of this kind."""
    known = {name: getattr(chosen, name, None) for name in kind.model_fields}
    return known | {"templates": chosen.gallery_size, "note": chosen.note(chosen.gallery_size)}


def threshold_answer(threshold: Threshold) -> dict[str, Any]:
    """Return the fields of `ThresholdAnswer`."""
    known = threshold.to_dict()
    return {name: known[name] for name in ThresholdAnswer.model_fields}
