"""Options that several commands share, and what they ask for."""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from inspect import Parameter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_type_hints

import typer

import edgeface
from edgeface.cli.output import warn_if_seeded
from edgeface.errors import InputError

if TYPE_CHECKING:
    from edgeface.analyzer import FaceAnalyzer
    from edgeface.convert.recipe import RecipeParts
    from edgeface.evaluate.faces import FaceSource
    from edgeface.model.contract import ModelContract
    from edgeface.vision.detector import Detector
    from edgeface.vision.liveness import LivenessChecker


FlipName = Literal["none", "average", "concatenate"]
"""Use of the mirror image of a face."""
MetricName = Literal["cosine", "cosine-distance", "squared-l2", "arccos", "euclidean"]
"""`edgeface.Metric`, without importing what computes it."""
DetectorName = Literal["auto", "mtcnn", "yunet", "retail-0004"]
"""Detectors of edgeface and its zoo; ``auto`` is one of them."""
ModelOption = Annotated[
    Path | None,
    typer.Option(
        "--model",
        "-m",
        help="IR (.xml) with a contract, a zoo name, or ovms://host:port/model. Default: EDGEFACE_MODEL, else as "
        "'edgeface zoo default' says.",
    ),
]
DeviceOption = Annotated[str, typer.Option("--device", "-d", help="OpenVINO device, e.g. CPU, GPU, NPU or AUTO.")]
ImagesOption = Annotated[Path, typer.Option(help="Folder of photos, as NAME/NAME_0001.jpg.")]
CropsOption = Annotated[bool, typer.Option("--crops", help="The images are aligned crops, not photos; skip detection.")]
BoxesOption = Annotated[
    Path | None, typer.Option(help="File (.npz) of boxes and landmarks found earlier, used instead of a detector.")
]
_DETECTOR_HELP = "Face detector; auto: YuNet if it is downloaded, else MTCNN."
DetectorOption = Annotated[DetectorName, typer.Option("--detector", help=_DETECTOR_HELP)]
GalleryDetectorOption = Annotated[
    DetectorName, typer.Option("--detector", help=_DETECTOR_HELP.replace("auto:", "auto: the gallery's, else"))
]
ChosenDetectorOption = Annotated[
    DetectorName | None, typer.Option("--detector", help=f"{_DETECTOR_HELP} Default: auto.")
]
DetectorModelOption = Annotated[
    Path | None,
    typer.Option(
        "--detector-model",
        metavar="PATH",
        help="Model of --detector, without which it is MTCNN's. Default: the downloaded model; MTCNN's is installed.",
    ),
]
LandmarksModelOption = Annotated[
    Path | None,
    typer.Option(
        "--landmarks-model",
        metavar="XML",
        help="Landmark model (landmarks-regression-retail-0009) for retail-0004. Default: the downloaded model.",
    ),
]


def min_size_option(default: str) -> Any:
    """Make the option --min-size of a command, whose default the help says."""
    return typer.Option(
        "--min-size", min=1, help=f"Shorter side of the smallest face's box, pixels. Default: {default}."
    )


_BY_MODEL = "a fifth of the model's input, e.g. 32 of 160, but at least 20"
NoGateOption = Annotated[bool, typer.Option("--no-gate", help="Use faces of any quality, blurred or dark ones too.")]
FlipOption = Annotated[
    FlipName, typer.Option(help="How to combine the embedding of each face with that of its mirror image.")
]
AllowSeededOption = Annotated[
    bool, typer.Option("--allow-seeded", help="Use a model of random (seeded) weights too, which recognises no one.")
]
FarsOption = Annotated[list[float], typer.Option("--far", help="Target false accept rate, 0 to 1. Repeatable.")]
FarOption = Annotated[
    float | None, typer.Option(help="Target false accept rate; selects the threshold. Default: 0.001.")
]
ThresholdOption = Annotated[
    str | None,
    typer.Option(
        "--threshold",
        metavar="FILE|VALUE",
        help="File written by 'edgeface calibrate', or a cosine similarity. Default: the one shipped with the model.",
    ),
]


def parse_threshold(text: str | None) -> float | Path | None:
    """Read --threshold: a number is a cosine similarity, anything else names a file, which is read."""
    if text is None:
        return None
    try:
        value = float(text)
    except ValueError:
        from edgeface.recognize.threshold import load_thresholds

        load_thresholds(Path(text))  # refused before a model is loaded
        return Path(text)
    if not -1 <= value <= 1:
        raise InputError(f"--threshold: expected a file, or a cosine similarity from -1 to 1, found {text}")
    return value


@dataclass(frozen=True, kw_only=True)
class DetectorOptions:
    """Options of a command that finds faces."""

    detector: DetectorOption = "auto"
    detector_model: DetectorModelOption = None
    landmarks_model: LandmarksModelOption = None
    min_size: Annotated[int | None, min_size_option("20")] = None
    device: DeviceOption = "CPU"

    def load_detector(self, **options: Any) -> Detector:
        """Load the detector."""
        from edgeface.runtime.cache import usual_folder

        return edgeface.load_detector(
            self.detector,
            device=self.device,
            model=self.detector_model,
            landmarks_model=self.landmarks_model,
            min_size=self.min_size,
            cache_dir=usual_folder(),
            **options,
        )


@dataclass(frozen=True, kw_only=True)
class AnalyzerOptions(DetectorOptions):
    """Options of a command that finds and embeds faces."""

    min_size: Annotated[int | None, min_size_option(_BY_MODEL)] = None
    model: ModelOption = None
    crops: CropsOption = False
    allow_seeded: AllowSeededOption = False

    def load(self, *, photos: int | None = None, made_with: Iterable[str] = ()) -> FaceAnalyzer:
        """Load the model and the detector, for `arguments`, and for so many photos: up to two as fast as one can be."""
        arguments = self.arguments(made_with)
        app = edgeface.load(**arguments, hint="latency" if photos in (1, 2) else "throughput")
        warn_if_seeded(app.contract.provenance)
        return app

    def arguments(self, made_with: Iterable[str] = ()) -> dict[str, Any]:
        """Return what `edgeface.load` is called with; `made_with` are the detectors of the gallery.

        Raises InputError if a detector's options are given with aligned crops, in which none is searched.
        """
        from edgeface.runtime.cache import usual_folder

        chosen = self.detector != "auto" or self.detector_model or self.landmarks_model or self.min_size is not None
        if self.crops and chosen:
            raise InputError(
                "expected --crops (aligned already) or a detector (--detector, --detector-model, --landmarks-model, "
                "--min-size), found both; leave one out"
            )
        detector = self.detector
        if detector == "auto":  # here, for all machines that load it
            given = self.detector_model or self.landmarks_model
            detector = "mtcnn" if given else edgeface.choose_detector(made_with)
        return {
            "model": self.model,
            "device": self.device,
            "detector": None if self.crops else detector,
            "detector_model": self.detector_model,
            "landmarks_model": self.landmarks_model,
            "min_size": self.min_size,
            "cache_dir": usual_folder(),
            "allow_seeded": self.allow_seeded,
        }


@dataclass(frozen=True, kw_only=True)
class GalleryAnalyzerOptions(AnalyzerOptions):
    """Options of a command whose faces meet those of a gallery."""

    detector: GalleryDetectorOption = "auto"
    min_size: Annotated[
        int | None, min_size_option(f"the smallest that the quality gate lets pass, 32; with --no-gate {_BY_MODEL}")
    ] = None


@dataclass(frozen=True, kw_only=True)
class LivenessOptions(DetectorOptions):
    """Options of a command that judges whether faces are live."""

    liveness: Annotated[
        Path | None,
        typer.Option(
            "--liveness",
            metavar="PATH",
            help="IR (.xml) of a liveness model, or a folder of them. Default: both downloaded models.",
        ),
    ] = None
    threshold: Annotated[
        float, typer.Option("--threshold", min=0.5, max=0.999, help="Probability that a live face has to exceed.")
    ] = 0.5

    def load_checker(self) -> LivenessChecker:
        """Load the liveness models."""
        checker = edgeface.load_liveness(self.liveness, device=self.device, threshold=self.threshold)
        for contract in checker.contracts:
            warn_if_seeded(contract.provenance)
        return checker


@dataclass(frozen=True, kw_only=True)
class LabelledOptions:
    """Options of a command about labelled photos."""

    boxes: BoxesOption = None
    crops: CropsOption = False
    detector: ChosenDetectorOption = None
    detector_model: DetectorModelOption = None
    landmarks_model: LandmarksModelOption = None
    device: DeviceOption = "CPU"

    @contextlib.contextmanager
    def open(self, contract: ModelContract | None = None) -> Iterator[FaceSource]:
        """Yield the source of faces, for a model: of faces from the size on that `edgeface verify` looks from.

        Raises
        ------
        InputError
            If more than one of boxes, crops and a detector is asked for.
        """
        chosen = self.detector or self.detector_model or self.landmarks_model
        if (self.boxes is not None) + self.crops + bool(chosen) > 1:
            raise InputError(
                "expected one of --boxes (found earlier), --crops (aligned already) and a detector, found several; "
                "leave the others out"
            )
        from edgeface.evaluate.faces import FaceSource, load_boxes

        if self.boxes is not None:
            yield FaceSource(load_boxes(self.boxes), None, f"boxes of {self.boxes.name}")
        elif self.crops:
            yield FaceSource(None, None, "images used as aligned crops")
        else:
            from edgeface.vision.detector import FoundBy

            name = self.detector or "auto"
            least = None if contract is None else FoundBy.choose(name, contract.input_size).min_size
            with edgeface.load_detector(
                name,
                device=self.device,
                model=self.detector_model,
                landmarks_model=self.landmarks_model,
                min_size=least,
            ) as loaded:
                size = f", faces of {least} pixels and more" if least else ""
                yield FaceSource(None, loaded, f"{loaded.name}{size}")


@dataclass(frozen=True, kw_only=True)
class EvaluationOptions(LabelledOptions):
    """Options of a command that recognises the faces of labelled photos."""

    allow_seeded: AllowSeededOption = False


@dataclass(frozen=True, kw_only=True)
class RecipeOptions:
    """Options of a command that takes a model without a contract: parts of its recipe."""

    name: Annotated[str | None, typer.Option(help="Name of the IR. A zoo name also selects that model's recipe.")] = (
        None
    )
    recipe: Annotated[
        Path | None,
        typer.Option(metavar="FILE.yml", help="Recipe file with any of the parts below; options override it."),
    ] = None
    size: Annotated[str | None, typer.Option(metavar="N|HxW", help="Size of a crop in pixels.")] = None
    color: Annotated[str | None, typer.Option(metavar="RGB|BGR", help="Channel order that the model expects.")] = None
    layout: Annotated[str | None, typer.Option(metavar="NCHW|NHWC", help="Layout of the source model's input.")] = None
    mean: Annotated[
        str | None,
        typer.Option(metavar="X|X,X,X", help="The model expects (x - mean) / scale of values 0-255, in its colours."),
    ] = None
    scale: Annotated[str | None, typer.Option(metavar="X|X,X,X", help="Divides the values: 255 for 0-1.")] = None
    alignment: Annotated[
        str | None, typer.Option(metavar="RECIPE[:MARGIN]", help="Alignment of a crop, e.g. five-point-112.")
    ] = None
    output: Annotated[str | None, typer.Option(metavar="NAME", help="Output that is the embedding.")] = None
    normalized: Annotated[
        bool | None,
        typer.Option("--normalized/--raw", help="Whether embeddings have unit length. Default: as the model returns."),
    ] = None
    lrn: Annotated[
        str | None,
        typer.Option(
            metavar="keras|torch|none", help="Response normalisation of an OpenFace model. Default: as the file says."
        ),
    ] = None

    def parts(self) -> RecipeParts:
        """Return the recipe file's parts, replaced by the options that are given.

        Raises InputError for the first part that is wrong.
        """
        from edgeface.convert.recipe import parse_recipe, read_recipe

        for option, value in (("color", self.color), ("layout", self.layout)):
            if value in ("rgb", "bgr", "nchw", "nhwc"):  # edgeface 0.1's options of that name described the IR
                raise InputError(
                    f"--{option} {value}: expected the source model's {option} in capitals, {value.upper()}, or "
                    f"--ir-{option} {value} for the IR's input"
                )
        given = {part.name: getattr(self, part.name) for part in dataclasses.fields(self)}
        path, _ = given.pop("recipe"), given.pop("name")  # an IR's name may be any file name
        told = parse_recipe(**given)
        return told if path is None else read_recipe(path).model_copy(update=told.told())


def with_options(command: Callable[..., None]) -> Callable[..., None]:
    """Replace the command's parameter of a class of options by the options that are the fields of that class.

    Parameters
    ----------
    command
        With one parameter annotated by a dataclass of options.
    """
    hints = get_type_hints(command, include_extras=True)
    group, kind = next((name, hint) for name, hint in hints.items() if dataclasses.is_dataclass(hint))
    assert isinstance(kind, type)
    annotations = get_type_hints(kind, include_extras=True)
    options = [
        Parameter(each.name, Parameter.KEYWORD_ONLY, default=each.default, annotation=annotations[each.name])
        for each in dataclasses.fields(kind)
    ]
    own = [
        each.replace(kind=Parameter.KEYWORD_ONLY, annotation=hints[each.name])
        for each in inspect.signature(command).parameters.values()
    ]
    place = [each.name for each in own].index(group)

    def run(**values: Any) -> None:
        given = {each.name: values.pop(each.name) for each in options}
        command(**values, **{group: kind(**given)})

    run.__name__, run.__doc__ = command.__name__, command.__doc__
    parameters = [*own[:place], *options, *own[place + 1 :]]
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {each.name: each.annotation for each in parameters}
    return run
