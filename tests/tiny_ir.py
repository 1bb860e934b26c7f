"""An IR with a contract that embeds a crop as its mean colour: enough to see which crop went in."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import openvino as ov
from contracts import sample_contract

from edgeface.convert.ir import save_ir
from edgeface.model.contract import Alignment
from edgeface.vision.detector import Faces

try:
    from openvino import opset13 as ops
except ImportError:  # OpenVINO 2024
    from openvino.runtime import opset13 as ops

TINY_SIZE = 32


def tiny_crop(color: object) -> np.ndarray:
    """Draw a crop, (32, 32, 3) uint8, of this mean colour but darker, with the edges and contrast that a face has."""
    blocks = np.random.default_rng(5).uniform(0.3, 1.0, (4, 4, 1)).repeat(8, axis=0).repeat(8, axis=1)
    return np.rint(np.array(color) * blocks).clip(0, 255).astype(np.uint8)


def write_tiny_ir(
    folder: Path, *, name: str = "tiny", source: str = "a", margin: int = 0, unit: bool = True, **changes: object
) -> Path:
    """Write folder/name.xml: (B, 3, 32, 32) BGR to means of blue, green and red, of unit length or as they are."""
    image = ops.parameter([-1, 3, TINY_SIZE, TINY_SIZE], np.float32, name="image")
    mean = ops.reduce_mean(image, ops.constant(np.array([2, 3])), keep_dims=False)
    output = ops.normalize_l2(mean, ops.constant(np.array([1])), 1e-10, "max") if unit else mean
    model = ov.Model([output], [image], name)
    model.input(0).set_names({"image"})
    model.output(0).set_names({"embeddings"})
    contract = sample_contract(
        name=name,
        source_sha256=source * 64,
        input_size=(TINY_SIZE, TINY_SIZE),
        embedding_dim=3,
        alignment=Alignment("mtcnn-box-margin", margin),
        **{"normalized": unit, **changes},
    )
    return save_ir(model, folder, contract)[0]


BLUE, GREEN, RED, TEAL = (220, 20, 20), (20, 220, 20), (20, 20, 220), (200, 200, 20)
SIDE = 40


class SquareDetector:
    """Every bright square of 40 pixels on the grid of 40 is a face; the last one is found first."""

    name = "squares"
    settings: dict[str, object] = {"name": "squares", "min_size": SIDE}  # noqa: RUF012
    closed = 0

    def detect(self, images: Sequence[np.ndarray]) -> list[Faces]:
        return [self._find(image) for image in images]

    def _find(self, image: np.ndarray) -> Faces:
        height, width = image.shape[:2]
        boxes = [
            [x, y, x + SIDE, y + SIDE]
            for x in range(0, width - SIDE + 1, SIDE)
            for y in range(0, height - SIDE + 1, SIDE)
            if image[y : y + SIDE, x : x + SIDE].max() > 150
        ][::-1]
        count = len(boxes)
        return Faces(
            np.array(boxes, np.float32).reshape(-1, 4),
            np.full((count, 5, 2), np.nan, np.float32),
            np.linspace(0.9, 0.8, count, dtype=np.float32),
        )

    def close(self) -> None:
        self.closed += 1


def draw(*colours: tuple[int, int, int] | None, margin: int = 0) -> np.ndarray:
    """Squares side by side, None for a dark one, in a frame of so many dark squares."""
    image = np.zeros(((2 * margin + 1) * SIDE, (2 * margin + len(colours)) * SIDE, 3), np.uint8)
    y = margin * SIDE
    for number, colour in enumerate(colours):
        x = (margin + number) * SIDE
        image[y : y + SIDE, x : x + SIDE] = colour or (0, 0, 0)
        image[y : y + SIDE : 4, x : x + SIDE] //= 2
    return image
