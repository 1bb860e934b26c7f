"""Compute what the service's own API answers about faces; all functions are synchronous and run in worker threads."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from edgeface.recognize.known import thresholds_for
from edgeface.recognize.open_set import USUAL_FPIR, choose_search_threshold
from edgeface.serve.answers import (
    AnalyzeAnswer,
    EmbedAnswer,
    ModelAnswer,
    ModelDetailAnswer,
    Rate,
    SearchThresholdAnswer,
    ThresholdsAnswer,
    VerifyAnswer,
    analyzed_face,
    search_fields,
    threshold_answer,
)
from edgeface.serve.service import Caller, ServedModel, Service
from edgeface.vision.quality import QualityGate

Number = Annotated[int, Field(ge=1, le=1000)]


class Options(BaseModel):
    """The query of one operation; a key that it does not know is refused, not ignored."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class EmbedOptions(Options):
    """Of `embed`."""

    model: str | None = None
    """Name of the model; by default the first one."""


class AnalyzeOptions(EmbedOptions):
    """Of `analyze`."""

    embeddings: bool = False
    """Answer embeddings too."""
    gate: bool = False
    """Give reasons against faces that are too small, blurred, dark or turned, and do not embed them."""


class VerifyOptions(EmbedOptions):
    """Of `verify`."""

    far: Rate | None = None
    """False accept rate that chooses the threshold; by default 0.001."""
    threshold: Annotated[float, Field(ge=-1, le=1)] | None = None
    """Cosine similarity instead of far; its error rates are unknown."""
    face_a: Number | None = None
    """Number of the face in photo_a, from the left; by default the largest one near the centre."""
    face_b: Number | None = None
    """Number of the face in photo_b."""


class IdentifyOptions(Options):
    """Of `identify`."""

    gallery: str | None = None
    """Name of the gallery; by default the key's, or the first one."""
    fpir: Rate | None = None
    """False positive identification rate that chooses the threshold; by default the gallery's."""


class ThresholdOptions(Options):
    """Of `thresholds`."""

    templates: Annotated[int, Field(ge=1, le=1_000_000_000)] | None = None
    """Size of the gallery that a search threshold is for."""
    fpir: Rate = USUAL_FPIR
    """False positive identification rate that a search threshold is for."""


def _by(model: ServedModel) -> dict[str, Any]:
    return {"model": model.name, "version": model.version, "contract_id": model.contract.contract_id}


def name_of_model(service: Service, options: EmbedOptions) -> str:
    """Return the name of the model that a request asks for."""
    return options.model or next(iter(service.settings.models))


def analyze(service: Service, options: AnalyzeOptions, photo: bytes) -> AnalyzeAnswer:
    """Find and judge the faces of a photo; embed them if asked for."""
    with service.models.use(name_of_model(service, options)) as model:
        image = service.read_photo(photo)
        gate = QualityGate() if options.gate else None
        faces = service.analyze(model, image, gate=gate, embeddings=options.embeddings)
        answer = {"width": image.shape[1], "height": image.shape[0], "faces": [analyzed_face(each) for each in faces]}
        return AnalyzeAnswer.model_validate(_by(model) | asdict(model.analyzer.found_by(gate)) | answer)


def verify(service: Service, options: VerifyOptions, photo_a: bytes, photo_b: bytes) -> VerifyAnswer:
    """Decide whether two photos show one person."""
    with service.models.use(name_of_model(service, options)) as model:
        decision = model.analyzer.verify(
            service.read_photo(photo_a, "photo_a"),
            service.read_photo(photo_b, "photo_b"),
            far=options.far,
            threshold=options.threshold,
            face_a=options.face_a,
            face_b=options.face_b,
        )
        known = decision.to_dict() | _by(model) | asdict(model.analyzer.found_by())
        return VerifyAnswer.model_validate({name: known[name] for name in VerifyAnswer.model_fields})


def embed(service: Service, options: EmbedOptions, photo: bytes) -> EmbedAnswer:
    """Embed one face of a photo."""
    with service.models.use(name_of_model(service, options)) as model:
        face = model.analyzer.embed_face(service.read_photo(photo))
        answer = {"embedding": analyzed_face(face)["embedding"], "face": face.to_dict()}
        return EmbedAnswer.model_validate(_by(model) | asdict(model.analyzer.found_by()) | answer)


def _describe(service: Service, model: ServedModel, caller: Caller) -> dict[str, Any]:
    contract, execution = model.contract, model.analyzer.embedder.execution
    detector = model.analyzer.detector
    only = caller.key.gallery
    return _by(model) | {
        "name": contract.name,
        "device": execution.requested_device,
        "devices": list(execution.execution_devices),
        "precision": model.analyzer.precision,
        "weights": contract.precision,
        "hint": model.analyzer.hint,
        "dimensions": contract.embedding_dim,
        "detector": detector and detector.name,
        "galleries": [
            name
            for name, each in service.galleries.items()
            if each.options.model == model.name and only in (None, name)
        ],
    }


def list_models(service: Service, caller: Caller) -> list[ModelAnswer]:
    """Describe all models that answer."""
    found = []
    for name in service.models.names():
        with service.models.use(name) as model:
            found.append(ModelAnswer.model_validate(_describe(service, model, caller)))
    return found


def describe_model(service: Service, name: str, caller: Caller) -> ModelDetailAnswer:
    """Describe a model, with its contract."""
    with service.models.use(name) as model:
        details = {"contract": model.contract, "settings": model.analyzer.pipeline(faces="largest").settings}
        return ModelDetailAnswer.model_validate(_describe(service, model, caller) | details)


def thresholds(service: Service, name: str, options: ThresholdOptions) -> ThresholdsAnswer:
    """Return the thresholds that are known for a model."""
    with service.models.use(name) as model:
        contract = model.contract
        known = thresholds_for(contract)
        search = None
        if known and options.templates is not None:
            chosen = choose_search_threshold(None, contract, fpir=options.fpir, gallery_size=options.templates)
            search = search_fields(SearchThresholdAnswer, chosen)
        answer = {"verification": [threshold_answer(each) for each in known], "search": search}
        return ThresholdsAnswer.model_validate(_by(model) | answer)
