"""Hold models, galleries, keys and the audit log for as long as the service runs, and compute what requests ask for."""

from __future__ import annotations

import contextlib
import functools
import logging
import re
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
from filelock import FileLock, Timeout
from numpy.typing import NDArray

import edgeface
from edgeface.analyzer import FaceAnalyzer
from edgeface.errors import ContractError, ImageError, InputError, Overloaded
from edgeface.files import Closing, output_errors
from edgeface.gallery.records import Erasure, Proof, detector_note
from edgeface.model.embedding import require_same_contract
from edgeface.pipeline.observation import Face, from_left
from edgeface.recognize.identify import Identification, Verdict
from edgeface.runtime.adapter import ImageFormat
from edgeface.runtime.cache import usual_folder
from edgeface.runtime.devices import resolve_device
from edgeface.runtime.embedder import Embedder
from edgeface.runtime.plan import default_plan
from edgeface.serve.audit import AuditLog
from edgeface.serve.galleries import ServedGallery as ServedGallery
from edgeface.serve.galleries import recorded_detectors, serve_gallery
from edgeface.serve.job_store import JobStore
from edgeface.serve.keys import Key, KeyRefused, KeyStore, Role
from edgeface.serve.offline_queue import QueuedItem
from edgeface.serve.problems import NotFound, Problem
from edgeface.serve.rates import Rates
from edgeface.serve.settings import Gallery, Model, Settings
from edgeface.vision.detector import FoundBy
from edgeface.vision.image import Image, ImageLimits, read_image
from edgeface.vision.quality import QualityGate

if TYPE_CHECKING:
    from edgeface.gallery.store.base import GalleryStore
    from edgeface.model.contract import ModelContract
    from edgeface.recognize.open_set import SearchThreshold

_log = logging.getLogger(__name__)


@dataclass(slots=True)
class ServedModel:
    """One version of a model: what answers requests for it until another version takes over."""

    name: str
    version: int
    path: Path
    analyzer: FaceAnalyzer
    options: Model
    cache: Path | None
    users: int = 0
    retired: bool = False
    exact: Embedder | None = None
    _compiling: threading.Lock = field(default_factory=threading.Lock)

    @property
    def contract(self) -> ModelContract:
        """What the model is."""
        return self.analyzer.contract

    def embed_exactly(self, pixels: NDArray[np.float32]) -> NDArray[np.float32]:
        """Embed crops of float32, 0-255, in the IR's own layout and colour order, in float32 on every device.

        The engine for it is compiled at the first use: FaceNet takes 200 MB and 0.4 s more, and of uint8 crops in
        bfloat16, which the other engine may compute, the cosine to this is 0.9999.

        Raises ContractError if the file was replaced since this version was loaded.
        """
        with self._compiling:
            if self.exact is None:
                contract = self.contract
                exact = Embedder.load(
                    self.path,
                    plan=default_plan(resolve_device(self.options.device), precision="f32"),
                    image_format=ImageFormat(layout=contract.layout, color=contract.color, dtype="f32"),
                    cache_dir=self.cache,
                    allow_seeded=self.options.allow_seeded,
                )
                if exact.contract.contract_id != contract.contract_id:
                    exact.close()
                    raise ContractError(
                        f"{self.name}: expected the IR of contract {contract.contract_id}, which answers, found "
                        f"another of {exact.contract.contract_id} in its place; load the model again"
                    )
                self.exact = exact
        return self.exact.embed(pixels)

    def close(self) -> None:
        """Release the model."""
        self.analyzer.close()
        if self.exact is not None:
            self.exact.close()


def find_version(model: str | None, number: int | None = None) -> tuple[Path, int | None]:
    """Return the IR that a configuration names, and its number if it is one of a folder of versions.

    Parameters
    ----------
    model
        As for `edgeface.find_model`; or a folder that holds one folder a version, as OpenVINO Model Server and Triton
        have them: a positive number with one .xml in it.
    number
        The version; None: the highest.
    """
    if model is None or not Path(model).is_dir():
        if number is not None:
            raise InputError(f"version {number}: expected a model that is configured as a folder of versions")
        return edgeface.find_model(model), None
    found = {int(each.name): each for each in Path(model).iterdir() if re.fullmatch("[1-9][0-9]{0,8}", each.name)}
    number = max(found, default=0) if number is None else number
    if number not in found:
        raise NotFound("version", number)
    irs = sorted(found[number].glob("*.xml"))
    if len(irs) != 1:
        raise InputError(path=found[number], expected="one .xml in the folder of a version", found=str(len(irs)))
    return irs[0], number


class Models:
    """The models by name; a new version answers once it is tested, and the old one ends with its last request.

    Parameters
    ----------
    cache
        Folder of compiled models; None: they are compiled each time.
    load
        As `edgeface.load`.
    """

    def __init__(self, cache: Path | None, load: Callable[..., FaceAnalyzer] = edgeface.load) -> None:
        self._cache, self._load, self._lock = cache, load, threading.Lock()
        self._changing = threading.Lock()  # one load at a time
        self._loaded: dict[str, ServedModel] = {}
        self._versions: dict[str, int] = {}

    def names(self) -> list[str]:
        """Return the names of the models that answer."""
        return sorted(self._loaded)

    def require(self, name: str) -> None:
        """Raise `NotFound` unless a model of this name answers."""
        with self.use(name):
            pass

    @contextlib.contextmanager
    def use(self, name: str) -> Iterator[ServedModel]:
        """Keep the version that answers now until the block ends, whatever is loaded meanwhile."""
        with self._lock:
            model = self._loaded.get(name)
            if model is None:
                raise NotFound("model", name, remedy=f"the models are {', '.join(sorted(self._loaded)) or 'none'}")
            model.users += 1
        try:
            yield model
        finally:
            with self._lock:
                model.users -= 1
                over = model.retired and not model.users
            if over:
                model.close()

    def load(
        self,
        name: str,
        options: Model,
        *,
        number: int | None = None,
        accept: Callable[[ModelContract], None] = lambda contract: None,
    ) -> ServedModel:
        """Load a model, test it, and let it answer instead of the version before; raise what `edgeface.load` raises.

        `number` is as for `find_version`; `accept` raises an error if a model of this contract must not answer.
        """
        with self._changing:
            path, found = find_version(options.model, number)
            analyzer = self._load(
                path,
                device=options.device,
                detector=options.detector,
                min_size=options.min_size,
                hint=options.hint,
                cache_dir=self._cache,
                allow_seeded=options.allow_seeded,
            )
            version = found or self._versions.get(name, 0) + 1
            model, old = ServedModel(name, version, path, analyzer, options, self._cache), self._loaded.get(name)
            try:
                accept(analyzer.contract)
                self_test(analyzer)
                if old is not None and old.exact is not None:  # its clients shall not wait for a compilation
                    model.embed_exactly(np.full(analyzer.contract.input_shape(1), 127.5, np.float32))
            except BaseException:
                model.close()
                raise
            self._versions[name] = version
            with self._lock:
                self._loaded[name] = model
            self._retire(old)
            _log.info("model %s version %d: %s on %s", name, version, analyzer.contract.contract_id, options.device)
            return model

    def unload(self, name: str) -> None:
        """Let a model answer no more; it ends with its last request."""
        with self._changing:
            with self._lock:
                old = self._loaded.pop(name, None)
            if old is None:
                raise NotFound("model", name)
            self._retire(old)

    def _retire(self, model: ServedModel | None) -> None:
        if model is None:
            return
        with self._lock:
            model.retired, over = True, not model.users
        if over:
            model.close()

    def close(self) -> None:
        """Unload all."""
        for name in list(self._loaded):
            self.unload(name)


def self_test(analyzer: FaceAnalyzer) -> None:
    """Embed an image that is no face twice; raise ContractError unless both vectors are equal, as the contract says.

    A contract without `normalized`, as dlib's, has vectors of any length.
    """
    height, width = analyzer.contract.input_size
    noise = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    first, second = (analyzer.embedder.embed(noise[np.newaxis])[0] for _ in range(2))
    length = float(np.linalg.norm(first))
    if np.allclose(first, second, atol=1e-3 * length) and not (analyzer.contract.normalized and abs(length - 1) > 0.01):
        return
    raise ContractError(
        f"{analyzer.contract.name}: expected the same vector twice in the self-test, of the length that the contract "
        f"says, found lengths {length:.4g} and {float(np.linalg.norm(second)):.4g}; convert the model again"
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """Who asks: a key, and the id of the request."""

    key: Key
    request_id: str

    @property
    def key_id(self) -> str:
        """Id of the key."""
        return self.key.id


class Asking(Protocol):
    """For whom something is done, as the audit log has it: a `Caller`, or a job of one."""

    @property
    def key_id(self) -> str: ...
    @property
    def request_id(self) -> str: ...


@dataclass(frozen=True, slots=True)
class WithoutKey:
    """For whom something is done without a key, as the audit log has it."""

    key_id: str
    request_id: str


class Service(Closing):
    """Everything that outlives a request. Its methods may be called from several threads; a context manager.

    Parameters
    ----------
    settings
        See `Settings`.
    load
        As `edgeface.load`.

    Attributes
    ----------
    outcomes
        How many faces were identified with each verdict.
    expired, forgotten_expired
        How many people of each gallery have a consent that has expired, at the last look, and how many of them were
        forgotten for it since the start.
    elsewhere
        Erases people of a gallery from what others keep of them, after the gallery has; returns the proof. It never
        raises.
    deliver
        Sends an item of a gallery's queue to its server; see `SnapshotKeeper.start`.
    first_key
        Text of a key for administrators, which is made when this is first asked for; to be shown once. None: there was
        one.
    """

    def __init__(self, settings: Settings, *, load: Callable[..., FaceAnalyzer] = edgeface.load) -> None:
        self.settings = settings
        self.elsewhere: Callable[[ServedGallery, Sequence[int]], Proof | None] = lambda gallery, person_ids: None
        self.deliver: Callable[[ServedGallery, QueuedItem, GalleryStore], None] = lambda gallery, item, store: None
        self.expired, self.forgotten_expired = dict[str, int](), 0
        self.outcomes, self._lock = dict.fromkeys(Verdict, 0), threading.Lock()
        self.limits, self._leaving = _image_limits(settings), list[ServedGallery]()
        self._loading = threading.Lock()
        with contextlib.ExitStack() as stack:
            stack.enter_context(_alone_in(settings.state))
            self.keys = stack.enter_context(contextlib.closing(KeyStore(settings.state / "keys.sqlite")))
            self.jobs = stack.enter_context(contextlib.closing(JobStore(settings.state)))
            self.rates = _rates(settings)
            self.audit: AuditLog | None = None
            if settings.audit.enabled:
                self.audit = stack.enter_context(contextlib.closing(AuditLog(settings.state / "audit.sqlite")))
            self.models = Models(settings.cache or usual_folder(), load)
            stack.callback(self.models.close)
            for name in settings.models:
                self.models.load(name, _with_detector(settings, name))
            self.galleries: dict[str, ServedGallery] = {}
            stack.callback(self._close_galleries)
            for name, gallery in settings.galleries.items():
                self.galleries[name] = self._open(name, gallery)
            self._stack = stack.pop_all()

    @functools.cached_property
    def first_key(self) -> str | None:
        return None if self.keys.count_admins() else self.keys.add("first", Role.admin)[1]

    def close(self) -> None:
        """Close models, galleries, keys and the audit log; closing again does nothing."""
        self._stack.close()

    def authenticate(self, headers: Mapping[bytes, bytes], address: str) -> Key:
        """Return the key of a request by its headers, lower case; `Problem` if it has none that may ask now."""
        text = headers.get(b"x-api-key", b"").decode("latin-1").strip()
        kind, _, token = headers.get(b"authorization", b"").decode("latin-1").partition(" ")
        if not text and kind.lower() == "bearer":
            text = token.strip()
        if not text:
            no_key = "expected a key in the header x-api-key, or as a bearer token, found none"
            raise self._refuse_key(address, "no-key", no_key)
        try:
            key = self.keys.find(text)
        except KeyRefused as error:
            raise self._refuse_key(address, f"key-{error.reason}", str(error)) from None
        if wait := self.rates.wait_for_address(address) or self.rates.wait_for_key(key.id):
            raise _too_often(wait)
        return key

    def refuse_guess(self, address: str) -> None:
        """Count a wrong code of an address; `Problem` if it gives too many."""
        if wait := self.rates.wrong_key(address):
            raise _too_often(wait)

    def _refuse_key(self, address: str, code: str, text: str) -> Problem:
        """Count a request without a right key; return its refusal, once its address has too many as `_too_often`."""
        wait = self.rates.wrong_key(address)
        return _too_often(wait) if wait else Problem(401, code, text)

    def admit_address(self, address: str) -> None:
        """Count a request whose key is not known yet; `Problem` if its address asks too often."""
        if wait := self.rates.wait_for_address(address):
            raise _too_often(wait)

    def note(
        self,
        caller: Asking,
        action: str,
        *,
        gallery: str | None = None,
        people: Sequence[int] = (),
        decision: str | None = None,
        contract_id: str | None = None,
    ) -> None:
        """Write a row of the audit log: takes a lock and 50 microseconds, so never on the event loop.

        The contract is that of the gallery, unless it is given.
        """
        if contract_id is None and gallery is not None and gallery in self.galleries:
            contract_id = self.galleries[gallery].info.contract_id
        if self.audit is not None:
            self.audit.record(
                action,
                key_id=caller.key_id,
                gallery=gallery,
                people=people,
                decision=decision,
                contract_id=contract_id,
                request_id=caller.request_id,
            )

    def note_identifications(
        self, caller: Caller, gallery: ServedGallery, faces: Sequence[Identification | None]
    ) -> None:
        """Count the faces of a photo that was identified, and write a row of the audit log for each.

        Those that no threshold decided, None, have one row together.
        """
        decided = [face for face in faces if face is not None]
        if len(decided) < len(faces):
            self.note(caller, "identify", gallery=gallery.name)
        with self._lock:
            for face in decided:
                self.outcomes[face.verdict] += 1
        for face in decided:
            people = () if face.person_id is None else (face.person_id,)
            self.note(
                caller,
                "identify",
                gallery=gallery.name,
                people=people,
                decision=face.reason or face.verdict.value,
                contract_id=face.threshold.contract_id,
            )

    def load_model(self, name: str, number: int | None = None) -> ServedModel:
        """Load a configured model anew, which answers once it is tested; see `find_version` for the number.

        Raises ContractError if a gallery has embeddings of another contract than the model that was found, Overloaded
        while another one is loaded, and what `edgeface.load` raises. The version before goes on answering then.
        """
        options = self.settings.models.get(name)
        if options is None:
            raise NotFound("model", name, remedy=f"the models are {', '.join(sorted(self.settings.models))}")
        if not self._loading.acquire(blocking=False):
            raise Overloaded("a model is being loaded; try again when that is done")
        try:
            if options.detector == "auto":
                options = self._as_loaded(name)
            return self.models.load(name, options, number=number, accept=functools.partial(self._fits, name))
        finally:
            self._loading.release()

    def _as_loaded(self, name: str) -> Model:
        """Return the settings of the version that answers, whose detector is chosen; else of one that would."""
        with contextlib.suppress(NotFound), self.models.use(name) as answering:
            return answering.options
        return _with_detector(self.settings, name)

    def _fits(self, name: str, contract: ModelContract) -> None:
        for gallery in self.galleries.values():
            if gallery.options.model == name:
                require_same_contract(
                    contract.contract_id, gallery.info.contract_id, what=f"model {name} and gallery {gallery.name}"
                )

    def reload(self, settings: Settings) -> list[str]:
        """Take another configuration while requests are answered; return the keys whose change needs a restart.

        Models that changed are loaded beside those that answer. A gallery that changed or left ends with the next
        reload, when the last request for it has long been answered. If anything fails all is as it was, but for
        models.
        """
        kept = [
            name
            for name in ("state", "listen", "tls", "cache", "audit", "telemetry")
            if getattr(settings, name) != getattr(self.settings, name)
        ]
        for name, served in self.galleries.items():  # two would send one queue
            changed = settings.galleries.get(name)
            if served.keeper is not None and changed is not None and changed != served.options:
                kept.append(f"galleries.{name}")
                settings = settings.model_copy(update={"galleries": {**settings.galleries, name: served.options}})
        for name, model in settings.models.items():
            if self.settings.models.get(name) != model:
                self.models.load(name, _with_detector(settings, name))
        opened: dict[str, ServedGallery] = {}
        try:
            for name, gallery in settings.galleries.items():
                if self.settings.galleries.get(name) != gallery:
                    opened[name] = self._open(name, gallery)
        except BaseException:
            for served in opened.values():
                served.close()
            raise
        old, self.galleries = (
            self.galleries,
            {name: opened.get(name) or self.galleries[name] for name in settings.galleries},
        )
        for name in self.settings.models.keys() - settings.models.keys():
            self.models.unload(name)
        for served in self._leaving:
            served.close()
        for name, served in old.items():
            if served.keeper is not None and self.galleries.get(name) is not served:
                served.keeper.close()
        self._leaving = [served for name, served in old.items() if self.galleries.get(name) is not served]
        self.settings, self.rates = settings, _rates(settings)
        self.limits = _image_limits(settings)
        return kept

    # Galleries

    def gallery(self, name: str | None, caller: Caller | None = None) -> ServedGallery:
        """Return a gallery by name, or the first; raise `Problem` if there is none, or the key is for another one."""
        only = caller.key.gallery if caller else None
        name = name or only or next(iter(self.galleries))
        if name not in self.galleries or only not in (None, name):
            raise NotFound("gallery", name)
        return self.galleries[name]

    def _open(self, name: str, options: Gallery) -> ServedGallery:
        def contract() -> ModelContract:
            with self.models.use(options.model) as model:
                return model.contract

        seeded = self.settings.models[options.model].allow_seeded
        served = serve_gallery(name, options, self.settings.state, contract, allow_seeded=seeded)
        if served.keeper is not None:
            served.keeper.start(lambda item, store: self.deliver(served, item, store))
        if note := self.detector_note(served):
            _log.warning("gallery %s: %s", name, note)
        return served

    def detector_note(self, gallery: ServedGallery) -> str | None:
        """Say that the templates of a gallery were made with another detector than the one of its model, if so."""
        with self.models.use(gallery.options.model) as model:
            detector = model.analyzer.detector
            return None if detector is None else detector_note(gallery.searched.detectors(), detector.name)

    def _close_galleries(self) -> None:
        for served in (*self.galleries.values(), *self._leaving):
            served.close()

    # What requests ask for

    def read_photo(self, data: bytes, name: str = "photo") -> Image:
        """Decode an image within the limits; ImageError names the upload."""
        try:
            return read_image(data, limits=self.limits)
        except ImageError as error:
            raise error.with_path(name) from error

    def refuse_crowd(self, faces: int, name: str = "photo") -> None:
        """Raise `Problem` for more faces of a photo than the limit."""
        if faces > (most := self.settings.limits.faces):
            raise Problem(422, "too-many-faces", f"{name}: expected at most {most} faces, found {faces}")

    def analyze(
        self, model: ServedModel, image: Image, *, gate: QualityGate | None = None, embeddings: bool = True
    ) -> list[Face]:
        """Find the faces of a photo, from left to right, and embed them; `Problem` if there are more than the limit."""
        pipeline = model.analyzer.pipeline(gate=gate)
        faces = pipeline.find(image)
        self.refuse_crowd(len(faces))
        return from_left(pipeline.embed_all(image, faces) if embeddings else faces)

    def identify(
        self, photo: bytes, gallery: ServedGallery, *, fpir: float | None = None
    ) -> tuple[list[Identification], FoundBy]:
        """Identify the faces of a photo in one generation of a gallery, by one version of its model."""
        with self.models.use(gallery.options.model) as model:
            threshold = self.search_threshold(model, gallery, fpir=fpir)
            gate, margin, analyzer = gallery.gate, gallery.options.margin, model.analyzer
            faces = self.analyze(model, self.read_photo(photo), gate=gate)
            found = analyzer.identify_faces(faces, gallery.index, threshold=threshold, margin=margin)
            return found, analyzer.found_by(gate)

    def state_of(self, model: str, gallery: ServedGallery | None, read: bool) -> tuple[object, ...]:
        """Return what answers depend on beside their requests: another value after each change, whoever made it.

        `read` False gives the gallery as it was last searched, and reads nothing.
        """
        with self.models.use(model) as version:
            found = gallery and (gallery.searched if read else gallery.index)
            return self.settings, version, found and found.last_commit()

    def forget(self, gallery: ServedGallery, wanted: Mapping[int, Sequence[int] | None]) -> tuple[Erasure, ...]:
        """Erase people, or those of their templates that are named, as `GalleryStore.forget_many`; and `elsewhere`."""
        done = gallery.store.forget_many(wanted)
        if gallery.keeper is not None and (proof := gallery.keeper.prove_erased()) is not None:
            done = tuple(each.also(proof) for each in done)
        people = [person_id for person_id, templates in wanted.items() if templates is None]
        proof = self.elsewhere(gallery, people) if people else None
        return tuple(each.also(proof) if proof and each.person_id in people else each for each in done)

    def search_threshold(
        self, model: ServedModel, gallery: ServedGallery, *, fpir: float | None = None
    ) -> SearchThreshold:
        """Return what decides in a gallery of this size, by the gallery's own rate or another one."""
        options = gallery.options
        fpir = fpir or (None if options.threshold is not None else options.fpir)
        return model.analyzer.search_threshold(gallery.index, fpir=fpir, threshold=options.threshold)


@contextlib.contextmanager
def _alone_in(state: Path) -> Iterator[None]:
    """Make the folder and hold it, so that no other service writes to it."""
    with output_errors(state):
        state.mkdir(mode=0o700, parents=True, exist_ok=True)
    lock = FileLock(state / "serve.lock", mode=0o600)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise InputError(
            path=state, expected="a folder of one service", found="another service that runs", remedy="set state"
        ) from None
    try:
        yield
    finally:
        lock.release()


def _with_detector(settings: Settings, name: str) -> Model:
    """Return a model's settings with the detector that ``auto`` is."""
    model = settings.models[name]
    if model.detector != "auto":
        return model
    made_with = recorded_detectors(settings.galleries, name, settings.state)
    return model.model_copy(update={"detector": edgeface.choose_detector(made_with)})


def _image_limits(settings: Settings) -> ImageLimits:
    return ImageLimits(max_bytes=settings.limits.image_bytes, max_pixels=settings.limits.image_pixels)


def _rates(settings: Settings) -> Rates:
    keys = settings.keys
    return Rates(per_key=keys.per_key, per_address=keys.per_address, wrong_per_address=keys.wrong_per_address)


def _too_often(wait: float) -> Problem:
    return Problem(429, "too-often", "expected fewer requests a second; wait as Retry-After says", retry_after=wait)
