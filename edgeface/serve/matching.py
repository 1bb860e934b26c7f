"""Find, rank and compare faces as the clients of other servers ask for it, and describe them as CompreFace does."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from edgeface.errors import FaceError, MissingError
from edgeface.gallery.index import LiveIndex
from edgeface.gallery.records import Person
from edgeface.gallery.retention import EXPIRED, Consent, withhold
from edgeface.model.contract import ModelContract
from edgeface.model.embedding import Embedding
from edgeface.pipeline.observation import Face
from edgeface.pipeline.pipeline import Pipeline
from edgeface.recognize.identify import Identification, Identifier
from edgeface.recognize.index import rank_people
from edgeface.recognize.known import choose_threshold
from edgeface.recognize.metrics import Metric, paired
from edgeface.recognize.open_set import SearchThreshold
from edgeface.recognize.threshold import Threshold, verify
from edgeface.serve.problems import Problem
from edgeface.serve.service import ServedGallery, ServedModel, Service
from edgeface.serve.similarity import SimilarityScale, scale_of
from edgeface.vision.detector import FoundBy
from edgeface.vision.quality import QualityGate


@dataclass(frozen=True, slots=True, kw_only=True)
class FaceQuery:
    """What the query of a request asks for.

    Attributes
    ----------
    limit
        Most faces of a photo, the largest first; 0: all.
    predictions
        Most people of a face.
    least_score
        Detection score below which a face is none.
    plugins
        What a face is answered with: ``landmarks`` and ``calculator`` are known, all others are left out.
    status
        Answer times and versions too.
    detect
        False: the photo is one aligned crop.
    """

    limit: int = 0
    predictions: int = 1
    least_score: float = 0.0
    plugins: frozenset[str] = frozenset()
    status: bool = False
    detect: bool = True


@dataclass(frozen=True, slots=True)
class FoundFaces:
    """The faces of a photo, the largest first, where they were found, and milliseconds."""

    faces: Sequence[Face]
    height: int
    width: int
    detector_ms: float
    calculator_ms: float

    def describe(self, face: Face, query: FaceQuery) -> dict[str, Any]:
        """Return a face as CompreFace describes it."""
        x0, y0, x1, y1 = np.rint(face.box).astype(int).tolist()
        box = {"probability": round(face.score, 5)}
        box |= {"x_max": min(x1, self.width), "y_max": min(y1, self.height), "x_min": max(x0, 0), "y_min": max(y0, 0)}
        known: dict[str, Any] = {"box": box}
        if "landmarks" in query.plugins and np.isfinite(face.landmarks).all():
            known["landmarks"] = np.rint(face.landmarks).astype(int).tolist()
        if "calculator" in query.plugins and face.embedding is not None:
            known["embedding"] = face.embedding.vector.tolist()
        if query.status:
            known["execution_time"] = {"detector": self.detector_ms, "calculator": self.calculator_ms}
        if face.reasons:
            known["reasons"] = list(face.reasons)
        return known


def find_faces(
    service: Service,
    model: ServedModel,
    photo: bytes,
    query: FaceQuery,
    *,
    name: str = "file",
    gate: QualityGate | None = None,
    embed: bool = True,
) -> FoundFaces:
    """Find and embed the faces of a photo; `FaceError` if there is none, `Problem` if there are more than the limit."""
    image, analyzer = service.read_photo(photo, name), model.analyzer
    pipeline = analyzer.pipeline(gate=gate) if query.detect else Pipeline(None, analyzer.embedder, gate=gate)
    began = time.perf_counter()
    found = [face for face in pipeline.find(image) if face.score >= query.least_score]
    faces = sorted(found, key=lambda face: float(np.prod(face.box[2:] - face.box[:2])), reverse=True)
    faces = faces[: query.limit or None]
    if not faces:
        raise (analyzer.found_by(gate) if query.detect else FoundBy()).no_face(name)
    service.refuse_crowd(len(faces), name)
    detected = time.perf_counter()
    if embed:
        faces = [pipeline.embed(image, face) for face in faces]
    embedded = (time.perf_counter() - detected) / len(faces)
    height, width = image.shape[:2]
    return FoundFaces(faces, height, width, round((detected - began) * 1e3, 1), round(embedded * 1e3, 1))


@dataclass(frozen=True, slots=True)
class RankedFace:
    """A face, the names and cosines of the most similar people, and what the gallery's threshold says of the first."""

    face: Face
    people: Sequence[tuple[str, float]]
    identification: Identification | None


@dataclass(frozen=True, slots=True)
class RankedPhoto:
    """What `recognise` found in a photo."""

    found: FoundFaces
    ranked: Sequence[RankedFace]
    scale: SimilarityScale
    contract_id: str
    snapshot_age: float | None = None

    def describe(self, ranked: RankedFace, query: FaceQuery) -> dict[str, Any]:
        """Return a face as CompreFace describes it."""
        subjects = [subject_like(each, self.scale) for each in ranked.people]
        decided: dict[str, Any] = {"contract_id": self.contract_id}
        if self.snapshot_age is not None:
            decided["snapshot_age"] = round(self.snapshot_age, 1)
        if ranked.face.embedding is None:
            decided["decision"] = "unusable"
        elif (answer := ranked.identification) is not None:
            decided |= {"decision": answer.verdict.value, "threshold": answer.threshold.value}
            decided |= {"reason": answer.reason} if answer.reason else {}
        return {**self.found.describe(ranked.face, query), "subjects": subjects, **decided}


def recognise(service: Service, gallery: ServedGallery, photo: bytes, query: FaceQuery) -> RankedPhoto:
    """Rank the people of a gallery for each face of a photo, in one generation of it.

    Each face is decided by itself, so that a decision is always of the first of the people: one person may be two
    faces of a photo, as in CompreFace.
    """
    with service.models.use(gallery.options.model) as model:
        found, contract = find_faces(service, model, photo, query, gate=gallery.gate), model.contract
        with gallery.index.snapshot() as index:
            threshold = _search_threshold(service, model, gallery)
            most = most_people(service, query)
            ranked = [RankedFace(face, *_rank(index, face.embedding, threshold, gallery, most)) for face in found.faces]
            age = index.age
    return RankedPhoto(found, ranked, scale_of(contract), contract.contract_id, age)


Ranking = tuple[Sequence[tuple[str, float]], Identification | None]
"""Names and cosines of the most similar people, and what the gallery's threshold says of the first, if one is known."""


def rank_embeddings(
    service: Service, gallery: ServedGallery, probes: Sequence[Embedding], query: FaceQuery
) -> list[Ranking]:
    """Rank the people of a gallery for each embedding, as `recognise`."""
    with service.models.use(gallery.options.model) as model, gallery.index.snapshot() as index:
        threshold = _search_threshold(service, model, gallery)
        return [_rank(index, probe, threshold, gallery, most_people(service, query)) for probe in probes]


def most_people(service: Service, query: FaceQuery) -> int:
    """Return how many people a face is answered with."""
    return min(query.predictions, service.settings.limits.people_page)


def _rank(
    index: LiveIndex, probe: Embedding | None, threshold: SearchThreshold | None, gallery: ServedGallery, most: int
) -> Ranking:
    if probe is None:
        return (), None
    people = people_like(index, probe, most)
    if threshold is None:
        return people, None
    return people, withhold(index, Identifier(index, threshold, margin=gallery.options.margin).identify(probe))


def people_like(index: LiveIndex, probe: Embedding, most: int) -> list[tuple[str, float]]:
    """Return names and cosines of the `most` similar people, without those whose consent has expired."""
    ranking = rank_people(index, probe, count=most)
    ranked = zip(map(index.person, ranking.person_ids.tolist()), ranking.scores.tolist(), strict=True)
    return [(person.name, score) for person, score in ranked if not Consent.of_has_expired(person)]


def subject_like(person: tuple[str, float], scale: SimilarityScale) -> dict[str, Any]:
    """Return a name and a cosine as CompreFace describes them."""
    name, cosine = person
    return {"subject": name, "similarity": scale.similarity(cosine), "cosine": round(cosine, 6)}


def _search_threshold(service: Service, model: ServedModel, gallery: ServedGallery) -> SearchThreshold | None:
    """Return what decides in a gallery; None if no threshold is known for its model."""
    try:
        return service.search_threshold(model, gallery)
    except MissingError:
        return None


def pair_threshold(gallery: ServedGallery, contract: ModelContract) -> Threshold | None:
    """Return what decides whether two faces match; None if no threshold is known for the model."""
    try:
        return choose_threshold(gallery.options.threshold, contract)
    except MissingError:
        return None


@dataclass(frozen=True, slots=True)
class PairComparer:
    """Compares faces with one embedding."""

    reference: Embedding
    threshold: Threshold | None
    scale: SimilarityScale
    whose: Person | None = None

    def compare(self, probe: Embedding | None) -> dict[str, Any]:
        """Return what a comparison adds to a face.

        One without an embedding is similar to nobody, and nobody to a person whose consent has expired.
        """
        known: dict[str, Any] = {"contract_id": self.reference.contract_id}
        if self.whose is not None and Consent.of_has_expired(self.whose):
            return {"similarity": 0.0, "decision": "no-match", "reason": EXPIRED, **known}
        if probe is None:
            return {"similarity": 0.0, "decision": "unusable", **known}
        cosine = float(paired(Metric.cosine, self.reference.vector[None], probe.vector[None])[0])
        known |= {"similarity": self.scale.similarity(cosine), "cosine": round(cosine, 6)}
        if self.threshold is not None:
            answer = verify(self.reference, probe, self.threshold)
            known |= {"decision": "match" if answer else "no-match", "threshold": self.threshold.value}
        return known


def verify_faces(service: Service, gallery: ServedGallery, photos: tuple[bytes, bytes], query: FaceQuery) -> Any:
    """Compare the only face of a photo with all of another."""
    with service.models.use(gallery.options.model) as model:
        source = find_faces(service, model, photos[0], query, name="source_image")
        if len(source.faces) > 1:
            raise Problem(400, "several-faces", "More than one face in the source image")
        (face,) = source.faces
        if face.embedding is None:
            raise FaceError(path="source_image", expected="a usable face", found="; ".join(face.reasons))
        target = find_faces(service, model, photos[1], query, name="target_image")
        comparer = PairComparer(face.embedding, pair_threshold(gallery, model.contract), scale_of(model.contract))
    matches = [{**target.describe(each, query), **comparer.compare(each.embedding)} for each in target.faces]
    return {"source_image_face": source.describe(face, query), "face_matches": matches}


def detect_faces(service: Service, gallery: ServedGallery, photo: bytes, query: FaceQuery) -> Any:
    """Find the faces of a photo; they are embedded only if the embeddings are asked for."""
    with service.models.use(gallery.options.model) as model:
        found = find_faces(service, model, photo, query, embed="calculator" in query.plugins)
    return [found.describe(face, query) for face in found.faces]
