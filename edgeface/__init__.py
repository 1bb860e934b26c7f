"""Recognize faces with OpenVINO: load a model once, then analyze, verify, embed and identify.

>>> import edgeface
>>> app = edgeface.load("facenet.xml")  # doctest: +SKIP
>>> app.verify("a.jpg", "b.jpg")  # doctest: +SKIP
Verification(matched=True, cosine 0.8123 > 0.5701, far=0.001)
"""

from __future__ import annotations

import contextlib
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

# `import openvino` reports itself to Intel and Google from a forked process: nothing that a kiosk should do, and the
# child keeps pipes open and can deadlock. OpenVINO goes without where the package cannot be imported.
if "openvino" not in sys.modules:
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]

from edgeface import errors
from edgeface.errors import *  # noqa: F403 - every error, as `errors.__all__` lists them
from edgeface.errors import InputError, ModelNotFoundError
from edgeface.lazy import exports
from edgeface.version import __version__

if TYPE_CHECKING:
    from collections.abc import Iterable
    from concurrent.futures import Future

    from edgeface.analyzer import FaceAnalyzer, PhotoLike
    from edgeface.model.contract import Alignment, ModelContract
    from edgeface.model.embedding import Embedding, Embeddings
    from edgeface.pipeline.observation import Face
    from edgeface.recognize.identify import Identification, Verdict
    from edgeface.recognize.metrics import Metric
    from edgeface.recognize.open_set import SearchThreshold
    from edgeface.recognize.threshold import Threshold, Verification
    from edgeface.vision.detector import Detector
    from edgeface.vision.liveness import Liveness, LivenessChecker, LivenessLimits
    from edgeface.vision.quality import Quality, QualityGate

__all__ = [
    "Alignment",
    "Embedding",
    "Embeddings",
    "Face",
    "FaceAnalyzer",
    "Identification",
    "Liveness",
    "LivenessLimits",
    "Metric",
    "ModelContract",
    "Quality",
    "QualityGate",
    "SearchThreshold",
    "Threshold",
    "Verdict",
    "Verification",
    "__version__",
    "choose_detector",
    "find_model",
    "load",
    "load_detector",
    "load_liveness",
    "verify",
]
__all__ += errors.__all__

__getattr__ = exports(  # importing edgeface loads neither OpenVINO nor OpenCV
    __name__,
    {
        "analyzer": ("FaceAnalyzer", "PhotoLike"),
        "model.contract": ("Alignment", "ModelContract"),
        "model.embedding": ("Embedding", "Embeddings"),
        "pipeline.observation": ("Face",),
        "recognize.identify": ("Identification", "Verdict"),
        "recognize.metrics": ("Metric",),
        "recognize.open_set": ("SearchThreshold",),
        "recognize.threshold": ("Threshold", "Verification"),
        "vision.liveness": ("Liveness", "LivenessChecker", "LivenessLimits"),
        "vision.quality": ("Quality", "QualityGate"),
    },
)

LIVENESS_MODELS = ("minifasnet-v2", "minifasnet-v1se")
"""Zoo names of the models of `load_liveness`."""

_DOWNLOADED = {
    "yunet": ("yunet", "yunet_n_dynamic.onnx"),
    "retail-0004": ("face-detection-retail-0004", "FP32/face-detection-retail-0004.xml"),
}
"""Zoo name and file of each detector's model."""

MODEL_VARIABLE = "EDGEFACE_MODEL"
"""Environment variable with the path of the default model."""


def load(
    model: str | Path | None = None,
    *,
    device: str = "CPU",
    detector: Literal["auto", "mtcnn", "yunet", "retail-0004"] | Detector | None = "auto",
    detector_model: Path | None = None,
    landmarks_model: Path | None = None,
    min_size: int | None = None,
    liveness: bool | str | Path | LivenessChecker = False,
    flip: Literal["average", "concatenate"] | None = None,
    hint: Literal["latency", "throughput"] = "throughput",
    cache_dir: Path | None = None,
    key: bytes | None = None,
    allow_seeded: bool = False,
) -> FaceAnalyzer:
    """Load a model and a detector.

    Parameters
    ----------
    model
        The .xml of an IR with a contract, or as for `find_model`.
    device
        OpenVINO device of the model and the detector, e.g. ``CPU``, ``GPU``, ``NPU`` or ``AUTO``.
    detector
        Name for `load_detector`; a loaded detector, which is closed with the result; or None: every photo is one
        aligned crop. ``auto`` knows no gallery: for one, give ``choose_detector(store.detectors())``, as commands do.
    detector_model, landmarks_model
        For a detector given by name; see `load_detector`.
    min_size
        For a detector given by name: shorter side in pixels of the smallest face that is looked for. None: in each call
        the smallest that its quality gate lets pass; without a gate a fifth of the model's input, and at least 20; see
        `FaceAnalyzer.found_by`.
    liveness
        Whether to judge if faces are live: True, the models that `load_liveness` finds; the path of an IR of such a
        model, or of a folder of them; or a loaded checker, which is closed with the result.
    flip
        Embed each crop's mirror image too; see `edgeface.runtime.flip.Flip`.
    hint
        ``latency``: one face at a time is embedded by all cores, for single calls; ``throughput``: each core embeds its
        own, for many photos and for many callers. On two cores a lone face takes half the time, and many take a tenth
        more. One compiled model cannot do both: each packs the weights for itself.
    cache_dir
        Folder for compiled models, the detector's too, which makes later loads faster; None: compile every time.
    key
        The 32 bytes that an encrypted IR was encrypted with.
    allow_seeded
        Load a model of random weights too, which recognises no one.

    Returns
    -------
    FaceAnalyzer
        A context manager.

    Raises
    ------
    InputError
        If the hint or the detector's name is unknown.
    ModelNotFoundError
        If no model is given and there is no default; the text says how to make one.
    ModelFormatError, ContractError
        If it is not an IR, damaged, has no contract, or has seeded weights.
    DeviceError
        If the device is absent or cannot run the model.

    Examples
    --------
    >>> with edgeface.load("facenet.xml", device="AUTO") as app:  # doctest: +SKIP
    ...     faces = app.analyze("group.jpg")
    """
    from concurrent.futures import ThreadPoolExecutor

    from edgeface.analyzer import FaceAnalyzer
    from edgeface.runtime.embedder import Embedder

    if hint not in ("latency", "throughput"):
        raise InputError(path="hint", expected="latency or throughput", found=repr(hint), remedy="give one of them")
    path = find_model(model)
    with contextlib.ExitStack() as opened, ThreadPoolExecutor(1) as beside:
        loading: Future[Detector] | None = None
        finder = None if isinstance(detector, str) else detector
        if isinstance(detector, str):  # OpenVINO compiles in parallel
            loading = beside.submit(
                load_detector,
                detector,
                device=device,
                model=detector_model,
                landmarks_model=landmarks_model,
                min_size=min_size,
                cache_dir=cache_dir,
            )
            opened.callback(_close_loaded, loading)
        embedder = Embedder.load(
            path,
            device=device,
            hint="LATENCY" if hint == "latency" else "THROUGHPUT",
            flip=flip,
            cache_dir=cache_dir,
            key=key,
            allow_seeded=allow_seeded,
        )
        opened.callback(embedder.close)
        if loading is not None:
            finder = loading.result()
        checker: LivenessChecker | None = None
        if not isinstance(liveness, (bool, str, Path)):
            checker = liveness
        elif liveness is not False:
            checker = load_liveness(None if liveness is True else liveness, device=device)
            opened.callback(checker.close)
        chosen = min_size is not None or loading is None
        analyzer = FaceAnalyzer(embedder, finder, checker, fixed_size=chosen)
        opened.pop_all()
    return analyzer


def _close_loaded(loading: Future[Detector]) -> None:
    if loading.exception() is None:
        loading.result().close()


def verify(
    a: PhotoLike,
    b: PhotoLike,
    *,
    model: str | Path | None = None,
    device: str = "CPU",
    allow_seeded: bool = False,
    **options: Any,
) -> Verification:
    """Decide whether two photos show the same person. Use `load` to compare more than two.

    Parameters
    ----------
    a, b
        Paths, bytes of image files, (H, W, 3) uint8 BGR arrays, or Pillow images.
    model, device, allow_seeded
        As for `load`.
    options
        ``far``, ``threshold``, ``face_a``, ``face_b``, as for `FaceAnalyzer.verify`.

    Returns
    -------
    Verification
        True if both are of one person.

    Examples
    --------
    >>> edgeface.verify("a.jpg", "b.jpg")  # doctest: +SKIP
    Verification(matched=True, cosine 0.8123 > 0.5701, far=0.001)
    """
    with load(model, device=device, hint="latency", allow_seeded=allow_seeded) as app:
        return app.verify(a, b, **options)


def find_model(model: str | Path | None = None) -> Path:
    """Return the path of a model, or of the default one.

    Parameters
    ----------
    model
        The .xml of an IR, or a zoo name. None: the environment variable EDGEFACE_MODEL, else what 'edgeface zoo
        default' says. A model that was only downloaded is converted first.

    Raises
    ------
    ModelNotFoundError
        If none is given and there is no default; or the model of a zoo name is not downloaded.
    """
    given = model or os.environ.get(MODEL_VARIABLE)
    if given and (Path(given).suffix or Path(given).name != str(given) or Path(given).exists()):
        return Path(given)
    try:
        from edgeface.zoo.catalog import load_catalog
        from edgeface.zoo.default import default_model, zoo_model
    except ImportError as error:
        raise ModelNotFoundError(
            expected=f"a model, or its path in {MODEL_VARIABLE}", found="none", remedy="name the .xml of an IR"
        ) from error

    def convert(*arguments: Any, **options: Any) -> object:
        from edgeface.convert import convert as run

        return run(*arguments, **options)

    if given and str(given) not in load_catalog():
        return Path(given)
    path: Path = zoo_model(str(given), convert=convert) if given else default_model(convert=convert)
    return path


def choose_detector(made_with: Iterable[str] = ()) -> Literal["mtcnn", "yunet", "retail-0004"]:
    """Return the name of the detector that ``auto`` is: YuNet where it is downloaded, else MTCNN.

    Parameters
    ----------
    made_with
        Detectors of a gallery, as `GalleryStore.detectors`: one of them is taken if it is here, because another one
        draws other boxes.

    Examples
    --------
    >>> choose_detector(["mtcnn"])
    'mtcnn'
    """
    names: tuple[Literal["yunet", "mtcnn", "retail-0004"], ...] = ("yunet", "mtcnn", "retail-0004")
    here, known = [name for name in names if name == "mtcnn" or _stored(name)], set(made_with)
    return next((name for name in here if name in known), here[0])


def _stored(detector: str) -> Path | None:
    """Return the downloaded model of a detector, if it is here; the catalog, which takes 0.2 s, is not read."""
    from edgeface.files import MODEL_MARKER, default_root

    name, file = _DOWNLOADED[detector]
    folder = default_root() / "models" / name
    return folder / file if (folder / MODEL_MARKER).is_file() and (folder / file).is_file() else None


def load_detector(
    name: Literal["auto", "mtcnn", "yunet", "retail-0004"] = "auto",
    *,
    device: str = "CPU",
    model: Path | None = None,
    landmarks_model: Path | None = None,
    min_size: int | None = None,
    threshold: float | None = None,
    cache_dir: Path | None = None,
) -> Detector:
    """Load a detector; models that are not given are those that 'edgeface zoo download' stored.

    Parameters
    ----------
    name
        ``mtcnn``, whose weights are installed with edgeface; ``yunet``; ``retail-0004``; or ``auto``: as
        `choose_detector`, but ``mtcnn`` if a model is given.
    device, model, landmarks_model, min_size, threshold, cache_dir
        See `edgeface.vision.load.load_detector`.

    Raises
    ------
    ModelNotFoundError
        If a model is not given and not downloaded.
    InputError, MissingError
        As `edgeface.vision.load.load_detector`.
    """
    from edgeface.vision.load import load_detector as run

    if name == "auto":
        name = "mtcnn" if model or landmarks_model else choose_detector()
    if model is None and name in _DOWNLOADED:
        model = _stored(name) or _downloaded(*_DOWNLOADED[name])
    if name == "retail-0004":
        landmarks_model = landmarks_model or _downloaded(
            "landmarks-regression-retail-0009", "FP32/landmarks-regression-retail-0009.xml"
        )
    return run(
        name,
        device=device,
        model=model,
        landmarks_model=landmarks_model,
        min_size=min_size,
        threshold=threshold,
        cache_dir=cache_dir,
    )


def load_liveness(
    models: str | Path | None = None,
    *,
    device: str = "CPU",
    threshold: float = 0.5,
    limits: LivenessLimits | None = None,
) -> LivenessChecker:
    """Load the models that judge whether a face is live; those of the zoo are converted at their first use.

    Parameters
    ----------
    models
        The .xml of an IR with a liveness contract, or a folder of them. None: both models that 'edgeface zoo download'
        stored.
    device, threshold, limits
        See `edgeface.vision.liveness.LivenessChecker`.

    Raises
    ------
    ModelNotFoundError
        If no models are given, and they are not downloaded.
    ModelFormatError, ContractError
        If one is no liveness model.

    Examples
    --------
    >>> with edgeface.load_liveness() as checker:  # doctest: +SKIP
    ...     checker.check(frame, detector.detect([frame])[0])
    [Liveness(live, score 0.9936, threshold 0.5)]
    """
    from edgeface.vision.liveness import load_liveness as run

    found = [find_model(name) for name in LIVENESS_MODELS] if models is None else Path(models)
    return run(found, device=device, threshold=threshold, limits=limits)


def _downloaded(name: str, file: str) -> Path:
    from edgeface.zoo.catalog import load_catalog
    from edgeface.zoo.store import ModelStore

    return ModelStore().model_dir(load_catalog()[name]) / file
