"""Analyze, verify, embed and identify the faces of photos with one object: what `edgeface.load` returns."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, overload

import numpy as np
from numpy.typing import NDArray

from edgeface.errors import EngineClosed, FaceError, ImageError, InputError
from edgeface.files import Closing
from edgeface.model.contract import Alignment, ModelContract
from edgeface.model.embedding import Embedding, Embeddings
from edgeface.pipeline.observation import Face, FaceObservation, from_left, largest_face
from edgeface.pipeline.pipeline import Pipeline
from edgeface.recognize.identify import Identification, Identifier, Verdict
from edgeface.recognize.index import PersonRule
from edgeface.recognize.known import choose_threshold
from edgeface.recognize.open_set import SearchThreshold, choose_search_threshold
from edgeface.recognize.threshold import Threshold, Verification, verify
from edgeface.runtime.embedder import Embedder
from edgeface.vision.align import align
from edgeface.vision.detector import Detector, FoundBy
from edgeface.vision.image import Image, read_image
from edgeface.vision.liveness import LivenessChecker
from edgeface.vision.networks import NetworkDetector
from edgeface.vision.quality import QualityGate
from edgeface.vision.source import Frame

if TYPE_CHECKING:
    from edgeface.gallery.index import LiveIndex
    from edgeface.gallery.store.base import GalleryStore

_log = logging.getLogger(__name__)

_BATCH_SIZE, _PREFETCH = 8, 2
_GATE = QualityGate()
_ORIENTATION = 0x0112
"""EXIF 2.32, table 4."""
_UPRIGHT = {2: 0, 3: 3, 4: 1, 5: 5, 6: 4, 7: 6, 8: 2}
"""EXIF orientation -> the `PIL.Image.Transpose` that sets it upright, as `PIL.ImageOps.exif_transpose` does."""


class PillowImage(Protocol):
    """The part of `PIL.Image.Image` that is used; Pillow itself is never imported."""

    mode: str
    info: dict[Any, Any]

    def getexif(self) -> Any:
        """Return the EXIF tags, a mapping."""

    def convert(self, mode: str, /) -> Any:
        """Return the image in another mode."""


PhotoLike = str | os.PathLike[str] | bytes | NDArray[Any] | PillowImage
"""A photo: the path or the bytes of a JPEG, PNG, WebP or BMP file; pixels as `read_image` takes them, (H, W, 3)
uint8 BGR in most cases; or a Pillow image."""


def read_photo(photo: PhotoLike, *, name: str = "photo") -> Image:
    """Read a photo given as a path, bytes, pixels or a Pillow image.

    Parameters
    ----------
    photo
        See `PhotoLike`. EXIF orientation is applied to files and Pillow images, transparency is laid over white,
        gray becomes three equal channels.
    name
        Of a photo that is no file, in an error's text.

    Returns
    -------
    (H, W, 3) uint8, BGR, 0-255

    Raises
    ------
    ImageError
        If there is no such file, or it is no image, damaged or too large.
    InputError
        If it is of another type.

    Examples
    --------
    >>> read_photo(np.zeros((4, 6), np.uint8)).shape
    (4, 6, 3)
    """
    if isinstance(photo, (str, os.PathLike)):
        return read_image(Path(photo))
    try:
        if isinstance(photo, (bytes, np.ndarray)):
            return read_image(photo)
        if hasattr(photo, "getexif") and hasattr(photo, "convert"):
            return _read_pillow(photo)
    except ImageError as error:
        raise error.with_path(name) from error
    raise InputError(
        path=name,
        expected="a path, the bytes of an image file, an array or a Pillow image",
        found=type(photo).__name__,
        remedy="pass one of these",
    )


def _read_pillow(photo: PillowImage) -> Image:
    mode = photo.mode
    if mode == "F":
        raise ImageError("expected 8 or 16 bits a channel, found a Pillow image of mode F; convert it first")
    try:
        orientation = photo.getexif().get(_ORIENTATION, 1)
        image: Any = photo
        if mode in ("1", "L"):
            image = photo.convert("L")
        elif mode != "I" and not mode.startswith("I;16"):
            transparent = mode in ("RGBA", "RGBa", "LA", "La", "PA") or "transparency" in photo.info
            image = photo.convert("RGBA" if transparent else "RGB")
        if orientation in _UPRIGHT:
            image = image.transpose(_UPRIGHT[orientation])
        pixels = np.asarray(image)
    except (OSError, SyntaxError, ValueError) as error:
        raise ImageError(f"Pillow cannot decode it: {error}") from error
    if mode.startswith("I"):
        pixels = np.clip(pixels, 0, 0xFFFF).astype(np.uint16)
    if pixels.ndim == 3:
        pixels = pixels[:, :, [2, 1, 0, 3][: pixels.shape[2]]]
    return read_image(np.ascontiguousarray(pixels))


class FaceAnalyzer(Closing):
    """Find, verify, embed and identify faces with one model and one detector. Made by `edgeface.load`.

    A context manager; closing it releases the model and the detector. All methods may be called from several
    threads.

    Parameters
    ----------
    embedder
        Of the default image format; closed with the analyzer.
    detector
        Closed with the analyzer. None: every photo is one aligned crop. A whole photo, a blank image, noise and
        a mosaic are refused.
    liveness
        Closed with the analyzer; it needs a detector. `analyze` and `identify` then fill `Face.liveness`, which changes
        no other answer.
    fixed_size
        Whether the detector's own smallest face is looked for in each call; see `found_by`.

    Raises
    ------
    InputError
        If there is liveness without a detector: a crop has no surroundings to look at.
    """

    def __init__(
        self,
        embedder: Embedder,
        detector: Detector | None,
        liveness: LivenessChecker | None = None,
        *,
        fixed_size: bool = True,
    ) -> None:
        if liveness is not None and detector is None:
            raise InputError(
                expected="a detector, because liveness looks at whole photos",
                found="aligned crops",
                remedy="name a detector, or leave liveness out",
            )
        self._embedder, self._detector, self._liveness = embedder, detector, liveness
        self._fixed_size = fixed_size or not isinstance(detector, NetworkDetector)
        self._index: tuple[GalleryStore, LiveIndex] | None = None
        self._compared: set[str] = set()
        self._closed = False

    @property
    def contract(self) -> ModelContract:
        """What the model is, and how its input has to look."""
        return self._embedder.contract

    @property
    def embedder(self) -> Embedder:
        """The model without the detector, for aligned crops; it is closed with the analyzer."""
        return self._embedder

    @property
    def detector(self) -> Detector | None:
        """What finds the faces; it is closed with the analyzer. None: every photo is one crop."""
        return self._detector

    @property
    def liveness(self) -> LivenessChecker | None:
        """What judges whether faces are live; it is closed with the analyzer."""
        return self._liveness

    @property
    def precision(self) -> str | None:
        """Precision that the device computes in, whatever that of the weights; see `ExecutionReport.precision`."""
        return self._embedder.execution.precision

    @property
    def hint(self) -> str | None:
        """What the model was loaded for, ``latency`` or ``throughput``; see `edgeface.load`."""
        asked = self._embedder.execution.hint
        return asked and asked.lower()

    def found_by(self, gate: QualityGate | None = None) -> FoundBy:
        """Return what finds the faces in a call with this gate, from which size on, and why.

        That is the size that `edgeface.load` is given as `min_size`, or a detector that is given to it has; else the
        smallest that the gate lets pass; without a gate a fifth of the model's input, and at least 20 pixels.
        """
        if self._detector is None:
            return FoundBy()
        if self._fixed_size:
            return FoundBy.loaded(self._detector, asked=True)
        return FoundBy.choose(self._detector.name, self.contract.input_size, gate)

    def pipeline(self, *, faces: Literal["all", "largest"] = "all", gate: QualityGate | None = None) -> Pipeline:
        """Return a `Pipeline` for many photos or a video; it must not outlive the analyzer.

        Raises `EngineClosed` if the analyzer is closed, as all methods that need the model do.
        """
        if self._closed:
            raise EngineClosed("this FaceAnalyzer is closed; load it again")
        detector = self._detector
        if not self._fixed_size and isinstance(detector, NetworkDetector):
            detector = detector.with_min_size(self.found_by(gate).min_size or 0)
        return Pipeline(detector, self._embedder, gate=gate, faces=faces, batch_size=_BATCH_SIZE, prefetch=_PREFETCH)

    def analyze(self, photo: PhotoLike, *, gate: QualityGate | None = None) -> list[Face]:
        """Find, judge and embed all faces of a photo.

        Parameters
        ----------
        photo
            See `PhotoLike`.
        gate
            Faces below its limits are not embedded; their `reasons` say why, and smaller ones are not looked for: see
            `found_by`. None: embed faces of any quality.

        Returns
        -------
        list of Face
            From left to right.

        Raises
        ------
        ImageError
            If the photo cannot be read.

        Examples
        --------
        >>> with edgeface.load() as app:  # doctest: +SKIP
        ...     app.analyze("group.jpg")
        [Face(box=(60, 43, 148, 160), score=0.999, quality=0.83, embedded)]
        """
        image = read_photo(photo)
        faces = from_left(self.pipeline(gate=gate).process(image))
        if self._liveness is None or not faces:
            return faces
        judged = self._liveness.check(image, Face.stack(faces))
        return [replace(face, liveness=answer) for face, answer in zip(faces, judged, strict=True)]

    def verify(
        self,
        a: PhotoLike,
        b: PhotoLike,
        *,
        far: float | None = None,
        threshold: Threshold | float | Path | None = None,
        face_a: int | None = None,
        face_b: int | None = None,
    ) -> Verification:
        """Decide whether two photos show the same person.

        Parameters
        ----------
        a, b
            See `PhotoLike`.
        far
            Target false accept rate, for which there must be a threshold; by default 0.001.
        threshold
            What decides; see `choose_threshold`. By default one of `thresholds_for` the model.
        face_a, face_b
            Number of the face, from the left, from 1. None: the face that `largest_face` chooses.

        Returns
        -------
        Verification
            True if the score exceeds the threshold, with both faces.

        Raises
        ------
        ImageError, FaceError
            If a photo cannot be read, or has no usable face.
        InputError, ContractError, MissingError
            As `choose_threshold`; or if there is no face of this number.

        Examples
        --------
        >>> with edgeface.load() as app:  # doctest: +SKIP
        ...     app.verify("a.jpg", "b.jpg", far=1e-4)
        Verification(matched=True, cosine 0.8123 > 0.5701, far=0.0001)
        """
        decisive = choose_threshold(threshold, self.contract, far=far)
        name_a, name_b = _name(a, "photo a"), _name(b, "photo b")
        begun_a, begun_b = self._start(a, face_a, name=name_a), self._start(b, face_b, name=name_b)
        first, second = begun_a.finish(), begun_b.finish()  # b was found while a's network computed
        answer = verify(_embedding(first, name_a), _embedding(second, name_b), decisive)
        return replace(answer, face_a=first, face_b=second, model=self.contract.name)

    @overload
    def embed(self, photos: PhotoLike) -> Embedding: ...
    @overload
    def embed(self, photos: list[Any] | tuple[Any, ...]) -> Embeddings: ...
    def embed(self, photos: PhotoLike | list[Any] | tuple[Any, ...]) -> Embedding | Embeddings:
        """Embed one face of each photo, the one that `largest_face` chooses.

        Parameters
        ----------
        photos
            One photo, or a list or tuple of them.

        Returns
        -------
        Embedding
            Of one photo, (D,) float32.
        Embeddings
            Of several, (N, D) float32 in their order.

        Raises
        ------
        ImageError, FaceError
            If a photo cannot be read, or has no usable face.
        """
        if not isinstance(photos, (list, tuple)):
            name = _name(photos, "photo")
            return _embedding(self.embed_face(photos, name=name), name)
        names = [_name(photo, f"photos[{i}]") for i, photo in enumerate(photos)]
        frames = (Frame(read_photo(photo, name=names[i]), i, float(i), names[i]) for i, photo in enumerate(photos))
        vectors = np.empty((len(photos), self.contract.embedding_dim), np.float32)
        with contextlib.closing(self.pipeline(faces="largest").run(frames)) as answers:
            for frame, faces in answers:
                if not faces:
                    raise self.found_by().no_face(frame.source)
                vectors[frame.index] = _embedding(faces[0], frame.source).vector
        return Embeddings(vectors, self.contract.contract_id)

    def embed_face(self, photo: PhotoLike, number: int | None = None, *, name: str = "photo") -> Face:
        """Embed one face of a photo, and return it.

        Parameters
        ----------
        photo
            See `PhotoLike`.
        number
            From the left, from 1. None: the face that `largest_face` chooses.
        name
            Of a photo that is no file, in an error's text.

        Raises
        ------
        ImageError, FaceError
            If the photo cannot be read, or has no usable face.
        InputError
            If there is no face of this number.
        """
        face = self._start(photo, number, name=name).finish()
        _embedding(face, name)
        return face

    def _start(self, photo: PhotoLike, number: int | None, *, name: str) -> FaceObservation:
        """Find the face of `embed_face`, and hand it to the embedder."""
        image, pipeline = read_photo(photo, name=name), self.pipeline()
        faces = from_left(pipeline.find(image))
        if not faces:
            raise self.found_by().no_face(name)
        if isinstance(number, bool) or (number is not None and not 1 <= number <= len(faces)):
            raise InputError(path=name, expected=f"a face number from 1 to {len(faces)}", found=str(number))
        index = largest_face(faces, (image.shape[0], image.shape[1])) if number is None else number - 1
        return pipeline.start_embedding(image, faces[index])

    def identify(
        self,
        photo: PhotoLike,
        gallery: str | Path | GalleryStore | LiveIndex,
        *,
        fpir: float | None = None,
        threshold: SearchThreshold | Threshold | float | Path | None = None,
        rule: PersonRule | str = "max",
        margin: float = 0.0,
        gate: QualityGate | None = _GATE,
    ) -> list[Identification]:
        """Identify the faces of a photo among the people of a gallery.

        Parameters
        ----------
        photo
            See `PhotoLike`.
        gallery
            Address of a gallery (`edgeface.gallery.address`): it is opened for this call, with the key in
            EDGEFACE_GALLERY_KEY. Or an open gallery: its search index is then reused by later calls. Or that index,
            where several galleries are searched in turn. A gallery, not an index, that was made with another detector
            than this analyzer's is told in the log, once; see `edgeface.choose_detector`.
        fpir
            Target false positive identification rate: the share of searches for people who are not enrolled that
            may return a person. Default: 0.01.
        threshold
            Score above which a person is accepted. Default: chosen for `fpir` and the size of the gallery; see
            `search_threshold`.
        rule
            How a person's score is computed from templates: ``max`` or ``mean-of-best-N``.
        margin
            How far, in cosine, the second-best person's score must be below the best; otherwise the verdict is
            inconclusive. What suits one model refuses everybody with another: see `Identifier`.
        gate
            Faces below its limits are unusable. None: use faces of any quality.

        Returns
        -------
        list of Identification
            One for each face, from left to right. A person is assigned to one face at most. All answers come from
            one generation of the gallery.

        Raises
        ------
        ImageError
            If the photo cannot be read.
        GalleryError, ContractError
            If the gallery cannot be opened, or is of another model.
        InputError, MissingError
            As `search_threshold`.

        Examples
        --------
        >>> with edgeface.load() as app:  # doctest: +SKIP
        ...     app.identify("door.jpg", "people.gallery")
        [Identification(accepted, person='Ada Lovelace', score=0.8312)]
        """
        scored = PersonRule.parse(rule) if isinstance(rule, str) else rule
        with self._opened(gallery) as index:
            if not isinstance(threshold, SearchThreshold):
                threshold = self.search_threshold(index, fpir=fpir, threshold=threshold)
            faces = self.analyze(photo, gate=gate)
            return self.identify_faces(faces, index, threshold=threshold, rule=scored, margin=margin)

    def identify_faces(
        self,
        faces: Sequence[Face],
        gallery: LiveIndex,
        *,
        threshold: SearchThreshold,
        rule: PersonRule | None = None,
        margin: float = 0.0,
    ) -> list[Identification]:
        """Identify the faces that `analyze` found in one photo; see `identify`, of which this is the second half.

        Nobody is named whose consent has expired: see `edgeface.gallery.retention.withhold`.
        """
        from edgeface.gallery.retention import withhold  # here, because who verifies has no gallery

        with gallery.snapshot() as index:
            identifier = Identifier(index, threshold, rule=rule, margin=margin)
            answers = identifier.identify_frame([face.embedding for face in faces if face.embedding is not None])
            found = iter([withhold(index, answer) for answer in answers])
        unusable = Identification(verdict=Verdict.unusable, threshold=threshold, rule=identifier.rule)
        name = self.contract.name
        return [replace(unusable if face.embedding is None else next(found), face=face, model=name) for face in faces]

    def search_threshold(
        self,
        gallery: str | Path | GalleryStore | LiveIndex,
        *,
        fpir: float | None = None,
        threshold: Threshold | float | Path | None = None,
    ) -> SearchThreshold:
        """Choose the threshold that `identify` uses, for the gallery's size now; see `choose_search_threshold`."""
        with self._opened(gallery) as index:
            size = max(1, len(index))
        return choose_search_threshold(threshold, self.contract, fpir=fpir, gallery_size=size)

    def align(self, photo: PhotoLike) -> NDArray[np.uint8]:
        """Cut out all faces of a photo the way the model needs them.

        Returns
        -------
        (N, height, width, 3) uint8, BGR
            Of the contract's input size, from left to right. Faces that cannot be aligned are left out.

        Raises
        ------
        ImageError
            If the photo cannot be read.
        """
        image, size = read_photo(photo), self.contract.input_size
        recipe = Alignment("none") if self._detector is None else self.contract.alignment
        crops = []
        for face in from_left(self.pipeline().find(image)):
            with contextlib.suppress(FaceError):
                crops.append(align(image, face.box, face.landmarks, recipe, size))
        return np.stack(crops) if crops else np.empty((0, *size, 3), np.uint8)

    def close(self) -> None:
        """Release the models and the detector; closing again does nothing."""
        self._index, self._closed = None, True
        with contextlib.ExitStack() as closing:
            for each in (self._liveness, self._detector, self._embedder):
                if each is not None:
                    closing.callback(each.close)

    def __repr__(self) -> str:
        detector = "crops" if self._detector is None else self._detector.name
        return f"FaceAnalyzer({self.contract.name}, {detector}, contract {self.contract.contract_id})"

    @contextlib.contextmanager
    def _opened(self, gallery: str | Path | GalleryStore | LiveIndex) -> Iterator[LiveIndex]:
        from edgeface.gallery.index import LiveIndex  # here, because who verifies has no gallery
        from edgeface.gallery.keys import find_key
        from edgeface.gallery.opening import open_gallery

        if isinstance(gallery, LiveIndex):
            yield gallery
            return
        if isinstance(gallery, (str, Path)):
            key = find_key(None, beside=gallery)
            with open_gallery(gallery, key=key, contract_id=self.contract.contract_id) as store:
                self._compare_detectors(store)
                yield LiveIndex(store)
            return
        if self._index is None or self._index[0] is not gallery:
            self._compare_detectors(gallery)
            self._index = gallery, LiveIndex(gallery)
        yield self._index[1]

    def _compare_detectors(self, store: GalleryStore) -> None:
        """Log, once for each gallery, that another detector found the faces of its templates."""
        from edgeface.gallery.records import detector_note

        if self._detector is None or store.info.gallery_id in self._compared:
            return
        self._compared.add(store.info.gallery_id)
        if note := detector_note(store.detectors(), self._detector.name):
            _log.warning("%s", note)


def _name(photo: object, otherwise: str) -> str:
    """Name a photo in an error's text."""
    return os.fspath(photo) if isinstance(photo, (str, Path)) else otherwise


def _embedding(face: Face, name: str) -> Embedding:
    if face.embedding is None:
        which = "the face" if face.number is None else f"face {face.number}"
        raise FaceError(f"{name}: {which} cannot be used: {'; '.join(face.reasons)}")
    return face.embedding
