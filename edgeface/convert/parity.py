"""Compare the embeddings of an IR with those of its source model, or with golden vectors."""

from __future__ import annotations

import dataclasses
import importlib.util
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
from numpy.typing import NDArray

from edgeface.convert.tensorflow import checkpoint_of, ports_of
from edgeface.errors import ExtraNotInstalledError, InputError
from edgeface.limits import require_room_to_compile
from edgeface.model.contract import Color, Layout, ModelContract, Precision
from edgeface.model.embedding import what_is_wrong
from edgeface.model.ir_file import read_contract
from edgeface.untrusted import read_npz
from edgeface.zoo.schema import ModelEntry

Images = NDArray[np.uint8]
Embeddings = NDArray[np.floating[Any]]

MAX_ABS_DIFFERENCE = 1e-5
"""Limit for FP32 embeddings of unit length; TensorFlow and OpenVINO differ by about 2e-7 (summation order)."""
MIN_COSINE: dict[Precision, float] = {"FP32": 0.999999, "FP16": 0.9999, "INT8": 0.97}


@dataclass(frozen=True, slots=True)
class ParityReport:
    """How an IR's embeddings compare with the expected ones."""

    against: str  # origin of the expected embeddings, such as ``TensorFlow 2.21.0``
    images: int
    max_abs_diff: float  # largest difference of one component, of rows longer than 1 in units of their length
    min_cosine: float  # over the images
    mean_cosine: float
    passed: bool  # cosine at least `MIN_COSINE`, and in FP32 no component `MAX_ABS_DIFFERENCE` apart

    def __bool__(self) -> bool:
        return self.passed

    @property
    def verdict(self) -> str:
        """``same`` or ``different``."""
        return "same" if self.passed else "different"

    @property
    def summary(self) -> str:
        """The comparison in one line."""
        return (
            f"{self.images} images against {self.against}: max |diff| {self.max_abs_diff:.2e}, "
            f"cosine min {self.min_cosine:.8f}, mean {self.mean_cosine:.8f}: {self.verdict}"
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the report as JSON types, with the verdict."""
        return {**dataclasses.asdict(self), "verdict": self.verdict}


def check_parity(source: Path, ir: Path, *, golden: Path | None = None) -> ParityReport:
    """Compare an IR with golden vectors, or with live TensorFlow if that is installed and the model is one of its.

    `golden` is an .npz of ``images`` (N, H, W, 3) uint8 RGB aligned crops and ``embeddings`` (N, D) float32.

    Raises ExtraNotInstalledError if there is neither TensorFlow nor a golden file, and InputError if the model is of
    another framework and there is no golden file.
    """
    _, contract = read_contract(ir)
    images, expected = load_golden(golden) if golden else (_random_crops(contract), None)
    _require_size(images, contract, golden or ir)
    if contract.framework == "tf" and importlib.util.find_spec("tensorflow") is not None:
        against, expected = _embed_with_tensorflow(source, images, contract)
    elif expected is not None and golden is not None:
        against = golden.name
    elif contract.framework != "tf":
        raise InputError(
            path=source,
            expected="golden vectors to compare with, as only TensorFlow models are run live",
            found="none",
            remedy="pass --golden FILE.npz with RGB images and their embeddings",
        )
    else:
        raise ExtraNotInstalledError("parity", needed_for="comparing with TensorFlow without a --golden file")
    return compare(expected, embed_with_ir(ir, images), against=against, precision=contract.precision)


def compare(expected: Embeddings, found: Embeddings, *, against: str, precision: Precision) -> ParityReport:
    """Compare two (N, D) arrays of embeddings row by row.

    Raises InputError if their shapes differ.
    """
    if expected.shape != found.shape:
        raise InputError(f"parity: expected embeddings of shape {expected.shape}, found {found.shape}")
    expected, found = expected.astype(np.float64), found.astype(np.float64)
    lengths = np.linalg.norm(expected, axis=1) * np.linalg.norm(found, axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        cosine = (expected * found).sum(axis=1) / lengths
    longest = np.maximum(np.linalg.norm(expected, axis=1, keepdims=True), 1)
    difference = float((np.abs(expected - found) / longest).max())
    close = difference <= MAX_ABS_DIFFERENCE or precision != "FP32"
    return ParityReport(
        against=against,
        images=len(expected),
        max_abs_diff=difference,
        min_cosine=float(cosine.min()),
        mean_cosine=float(cosine.mean()),
        passed=bool(cosine.min() >= MIN_COSINE[precision]) and close,  # NaN compares false: not passed
    )


def load_golden(path: Path) -> tuple[Images, Embeddings]:
    """Read golden vectors.

    Raises InputError if the file is no .npz with ``images`` and ``embeddings`` of matching length.
    """
    wanted = {"images", "embeddings"}
    stored = read_npz(path, "an .npz with 'images' and 'embeddings'", names=wanted)
    if missing := wanted - stored.keys():
        raise InputError(f"{path}: expected an .npz with 'images' and 'embeddings'; {min(missing)!r} is missing")
    images, embeddings = stored["images"], stored["embeddings"]
    is_rgb = images.ndim == 4 and images.shape[3] == 3 and images.dtype == np.uint8
    if not is_rgb or embeddings.ndim != 2 or not 0 < len(images) == len(embeddings):
        raise InputError(
            f"{path}: expected images (N, H, W, 3) uint8 and embeddings (N, D), N at least 1, "
            f"found {images.shape} {images.dtype} and {embeddings.shape}"
        )
    if embeddings.dtype.kind != "f":
        raise InputError(f"{path}: expected embeddings of floating-point numbers, found {embeddings.dtype}")
    if wrong := what_is_wrong(embeddings):
        raise InputError(f"{path}: {wrong}")
    return images, embeddings


def embed_with_ir(ir: Path, images: Images) -> Embeddings:
    """Embed aligned crops with an IR that has a contract, in FP32 on the CPU.

    The images are (N, H, W, 3) uint8, RGB, 0-255, and reordered to the layout and colour order of the IR; the result
    is (N, D) float32. Raises InputError if the images are not of the contract's size, or an embedding is not finite or
    has length 0.
    """
    model, contract = read_contract(ir)
    _require_size(images, contract, ir)
    found = run_model(model, to_input(images, layout=contract.layout, color=contract.color))
    if wrong := what_is_wrong(found):
        raise InputError(f"{ir}: {wrong}; convert the model again")
    return found


def run_model(model: ov.Model, batch: NDArray[np.float32]) -> Embeddings:
    """Run an image model over a batch of any size, in FP32 on the CPU; its own batch may be static."""
    require_room_to_compile()
    compiled = ov.Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    size = model.input(0).get_partial_shape()[0]
    step = len(batch) if size.is_dynamic else size.get_length()
    padded = np.concatenate([batch, np.repeat(batch[-1:], -len(batch) % step, axis=0)])
    request = compiled.create_infer_request()
    rows = [request.infer({0: padded[start : start + step]})[0].copy() for start in range(0, len(padded), step)]
    return np.concatenate(rows)[: len(batch)]


def to_input(images: Images, *, layout: Layout, color: Color) -> NDArray[np.float32]:
    """Reorder (N, H, W, 3) uint8 RGB images into a model's layout and colour order, still 0-255."""
    ordered = images[..., ::-1] if color == "BGR" else images
    if layout == "NCHW":
        ordered = ordered.transpose(0, 3, 1, 2)
    return np.ascontiguousarray(ordered, np.float32)


def draw_faces(size: tuple[int, int]) -> Images:
    """Return two drawn faces, (2, H, W, 3) uint8 RGB, for `fingerprint_of`.

    `size` is (height, width) in pixels. They are ellipses in integer arithmetic, so they are the same on every machine
    and in every release: a change here makes every fingerprint of the zoo useless.
    """
    height, width = size
    y, x = np.arange(height)[:, np.newaxis] * 200 // height, np.arange(width) * 200 // width
    faces = np.empty((len(_DRAWN_COLORS), height, width, 3), np.uint8)
    for face, colors in zip(faces, _DRAWN_COLORS, strict=True):
        face[:] = colors[0]
        for color, center_x, center_y, radius_x, radius_y in _DRAWN_ELLIPSES:
            inside = ((x - center_x) * radius_y) ** 2 + ((y - center_y) * radius_x) ** 2 <= (radius_x * radius_y) ** 2
            face[inside] = colors[color]
    return faces


_DRAWN_COLORS = (  # background, hair, skin, white of the eye, iris, nose, mouth
    ((90, 120, 160), (60, 40, 25), (224, 172, 138), (240, 240, 240), (60, 90, 40), (196, 150, 120), (170, 60, 70)),
    ((200, 190, 120), (15, 15, 20), (120, 80, 55), (240, 240, 240), (40, 25, 15), (105, 70, 48), (150, 50, 60)),
)
_DRAWN_ELLIPSES = (  # color, centre and radii in 200ths of the image
    (1, 100, 90, 80, 100), (2, 100, 105, 65, 85), (3, 72, 85, 14, 7), (3, 128, 85, 14, 7), (4, 72, 85, 6, 6),
    (4, 128, 85, 6, 6), (5, 100, 118, 8, 14), (6, 100, 150, 26, 9),
)  # fmt: skip


def fingerprint_of(embeddings: Embeddings) -> Embeddings:
    """Return what identifies a model: the first 16 numbers of its unit-length embeddings of `draw_faces`."""
    return unit_rows(embeddings)[:, :16]


def recognise(contract: ModelContract, fingerprint: Embeddings, entries: Iterable[ModelEntry]) -> ModelContract:
    """Return the contract of an IR with weights, mean, scale and provenance of the zoo model that has its fingerprint.

    Another tool rounds the constants that it folds differently, so its IR's weights have a digest of their own. The
    embeddings of fixed images identify the model all the same, within the tolerances of `edgeface.convert.parity`. An
    INT8 model is never recognised: its numbers depend on what it was calibrated with.
    """
    if contract.precision == "INT8" or contract.provenance == "seeded":
        return contract
    for entry in entries:
        conversion, preprocessing = entry.conversion, entry.preprocessing
        if conversion is None or preprocessing is None or not fits_fingerprint(contract, entry):
            continue
        expected = np.array(conversion.fingerprint, np.float64).reshape(fingerprint.shape)
        if compare(expected, fingerprint, against=entry.name, precision=contract.precision):
            return dataclasses.replace(
                contract,
                weights_id=conversion.weights_id or contract.weights_id,
                mean=preprocessing.mean,
                scale=preprocessing.scale,
                provenance="published",
            )
    return contract


def fits_fingerprint(contract: ModelContract, entry: ModelEntry) -> bool:
    """Whether a zoo model has a fingerprint that an IR of this input and output could have."""
    preprocessing, embedding = entry.preprocessing, entry.embedding
    if preprocessing is None or embedding is None or entry.conversion is None or entry.conversion.fingerprint is None:
        return False
    return (preprocessing.size, embedding.dim) == (contract.input_size, contract.embedding_dim)


def unit_rows(embeddings: Embeddings) -> Embeddings:
    """Return embeddings (N, D) scaled to unit length."""
    return np.asarray(embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True))


def _require_size(images: Images, contract: ModelContract, source: Path) -> None:
    if images.shape[1:3] != contract.input_size:
        raise InputError(f"{source}: expected images of {contract.input_size}, found {images.shape[1:3]}")


def _random_crops(contract: ModelContract, count: int = 8) -> Images:
    """Return seeded RGB images, coarse enough that their embeddings differ."""
    height, width = contract.input_size
    coarse = np.random.default_rng(0).integers(0, 256, (count, -(-height // 16), -(-width // 16), 3), np.uint8)
    return coarse.repeat(16, axis=1).repeat(16, axis=2)[:, :height, :width]


def _embed_with_tensorflow(source: Path, images: Images, contract: ModelContract) -> tuple[str, Embeddings]:
    """Run the original graph, queue, conditions and all, in inference mode."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    if not os.path.isabs(os.path.expanduser("~")):  # noqa: PTH111, PTH117  # no home: Keras would make a folder "~" here
        os.environ.setdefault("KERAS_HOME", os.devnull)
    import tensorflow

    tf: Any = tensorflow.compat.v1
    standardised = (images - np.array(contract.mean, np.float32)) / np.array(contract.scale, np.float32)
    with tf.Graph().as_default() as graph, tf.Session(graph=graph) as session:
        checkpoint = checkpoint_of(source)
        if checkpoint is not None:
            meta, prefix = checkpoint
            tf.train.import_meta_graph(str(meta), clear_devices=True).restore(session, str(prefix))
        elif source.is_dir() or source.name == "saved_model.pb":
            folder = source if source.is_dir() else source.parent
            tf.saved_model.load(session, ["serve"], str(folder))
        else:
            definition = tf.GraphDef.FromString(source.read_bytes())
            tf.import_graph_def(definition, name="")
        ports = ports_of(source)
        feed = {f"{ports.input}:0": standardised, **{f"{name}:0": False for name in ports.training}}
        embeddings = session.run(f"{ports.output}:0", feed)
    return f"TensorFlow {tensorflow.__version__}", np.asarray(embeddings, np.float32)
