"""State what a model expects and returns where its file does not say it: a zoo entry, a YAML file, or options.

A zoo entry gives all of it, a YAML file or options any part; what is told later replaces what was told before.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, Strict, ValidationError

from edgeface.errors import ContractError, InputError
from edgeface.model.contract import Alignment, Color, Layout
from edgeface.zoo.catalog import Document, explain_problem
from edgeface.zoo.schema import ModelEntry, PreprocessingSpec

Triple = tuple[float, float, float]
Lrn = Literal["keras", "torch", "none"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """What a contract needs to know about an embedding model beyond its file.

    Attributes
    ----------
    name
        Name of the model, and of its IR.
    size
        (height, width) of a crop in pixels; None where the file says it.
    color
        Channel order that the model expects.
    layout
        ``NCHW`` or ``NHWC``, of the source model's input; None where the file says it.
    mean, scale
        The model expects ``(x - mean) / scale`` of raw values x in 0-255, per channel, in the order of `color`.
    alignment
        How a crop is cut out of a photo.
    output
        Name of the source model's output that is the embedding; None where it has one output.
    normalized
        Whether embeddings leave the IR with unit length. True normalises them where the source model does not;
        False requires a model that does not. None leaves them as the model gives them.
    lrn
        Local response normalisation of an OpenFace model: that of the Keras port, that of the original in Torch, or
        none; None where the file says it. Other models have none to choose.
    """

    name: str
    size: tuple[int, int] | None = None
    color: Color = "RGB"
    layout: Layout | None = None
    mean: Triple = (0.0, 0.0, 0.0)
    scale: Triple = (1.0, 1.0, 1.0)
    alignment: Alignment
    output: str | None = None
    normalized: bool | None = None
    lrn: Lrn | None = None


def is_raw(recipe: Recipe | PreprocessingSpec) -> bool:
    """Whether preprocessing leaves values of 0-255 as they are."""
    return not any(recipe.mean) and set(recipe.scale) == {1.0}


def _triple(value: Any) -> Any:
    """One number stands for three channels; in text, numbers are separated by commas."""
    if isinstance(value, str):
        try:
            value = [float(part) for part in value.split(",")]
        except ValueError:
            raise ValueError("expected one number, or three separated by commas") from None
    if isinstance(value, int | float) and not isinstance(value, bool):
        value = [value]
    if isinstance(value, list | tuple) and len(value) not in (1, 3):
        raise ValueError(f"expected one number, or three, found {len(value)}")
    return list(value) * 3 if isinstance(value, list | tuple) and len(value) == 1 else value


def _size(value: Any) -> Any:
    """One number stands for a square; in text, height and width are separated by ``x``."""
    if isinstance(value, str):
        try:
            value = [int(part) for part in value.lower().split("x")]
        except ValueError:
            raise ValueError("expected pixels of one side, or HEIGHTxWIDTH") from None
    if isinstance(value, int) and not isinstance(value, bool):
        value = [value]
    if isinstance(value, list | tuple) and len(value) not in (1, 2):
        raise ValueError(f"expected one number, or height and width, found {len(value)}")
    return list(value) * 2 if isinstance(value, list | tuple) and len(value) == 1 else value


def _divisor(value: Triple) -> Triple:
    if 0 in value:
        raise ValueError("expected numbers other than 0")
    return value


def _alignment(value: Any) -> Any:
    """``recipe`` or ``recipe:margin``; a zoo entry's mapping too."""
    try:
        if isinstance(value, str):
            value = Alignment.parse(value)
        elif isinstance(value, dict):
            value = Alignment(**value)
    except (ContractError, TypeError) as error:
        raise ValueError(str(error)) from error
    if isinstance(value, Alignment) and value.margin and not value.recipe.startswith("mtcnn-box"):
        raise ValueError(f"expected no margin with {value.recipe}, found {value.margin}; leave it out")
    return value


Pixels = Annotated[int, Strict(), Field(ge=1)]
Number = Annotated[float, Field(allow_inf_nan=False)]


class RecipeParts(BaseModel):
    """The parts of a recipe that a person gave: the keys of a recipe file and the options of `edgeface convert`.

    Examples
    --------
    >>> parts = RecipeParts(size=112, color="RGB", mean=127.5, scale=128, alignment="five-point-112")
    >>> recipe = parts.complete(RecipeParts(name="mine", normalized=False))
    >>> recipe.size, recipe.mean, recipe.alignment.recipe
    ((112, 112), (127.5, 127.5, 127.5), 'five-point-112')
    """

    model_config = ConfigDict(extra="forbid", frozen=True, arbitrary_types_allowed=True)

    name: Annotated[str, Strict()] | None = None
    size: Annotated[tuple[Pixels, Pixels], BeforeValidator(_size)] | None = None
    color: Color | None = None
    layout: Layout | None = None
    mean: Annotated[tuple[Number, Number, Number], BeforeValidator(_triple)] | None = None
    scale: Annotated[tuple[Number, Number, Number], BeforeValidator(_triple), AfterValidator(_divisor)] | None = None
    alignment: Annotated[Alignment, BeforeValidator(_alignment)] | None = None
    output: Annotated[str, Strict()] | None = None
    normalized: Annotated[bool, Strict()] | None = None
    lrn: Lrn | None = None

    def told(self) -> dict[str, Any]:
        """Return the parts that were given."""
        return {name: value for name in type(self).model_fields if (value := getattr(self, name)) is not None}

    def complete(self, *later: RecipeParts) -> Recipe:
        """Return the recipe of these parts, each replaced by those of `later` that give it too.

        Raises InputError with the options that are missing: a recipe is never guessed.
        """
        told: dict[str, Any] = {}
        for parts in (self, *later):
            told.update(parts.told())
        required = ("name", "color", "mean", "scale", "alignment")
        if missing := [name for name in required if name not in told]:
            raise InputError(
                expected="a recipe of the model: its preprocessing and alignment",
                found=f"none of {', '.join(missing)}" if len(missing) > 1 else f"no {missing[0]}",
                remedy=f"pass {' '.join(f'--{name}' for name in missing)}, or a recipe file with --recipe FILE.yml",
            )
        return Recipe(**told)


def parse_recipe(**options: Any) -> RecipeParts:
    """Check parts of a recipe, given as options; None is not given.

    Raises InputError for the first option that is wrong.
    """
    try:
        return RecipeParts(**{name: value for name, value in options.items() if value is not None})
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        name = str(problem["loc"][0]) if problem["loc"] else "recipe"
        raise InputError(f"--{name}: {explain_problem(problem, list(RecipeParts.model_fields))}") from error


def read_recipe(path: Path) -> RecipeParts:
    """Read a recipe file: YAML with any of the keys of `RecipeParts`.

    Raises CatalogError, which is an InputError, with the line of the first key that is wrong.
    """
    document = Document.read(path)
    try:
        return RecipeParts.model_validate(document.data or {})
    except ValidationError as error:
        raise document.explain(error, at=(), keys=list(RecipeParts.model_fields)) from error


def parts_of(entry: ModelEntry) -> RecipeParts:
    """Return the recipe of a zoo entry as parts.

    Raises InputError if the entry is no embedding model.
    """
    preprocessing, embedding = entry.preprocessing, entry.embedding
    if preprocessing is None or embedding is None or preprocessing.size is None:
        raise InputError(f"{entry.name}: expected a face embedding model, found one for {entry.task_type}")
    return RecipeParts(
        name=entry.name,
        size=preprocessing.size,
        color=preprocessing.color,
        layout=preprocessing.layout,
        mean=preprocessing.mean,
        scale=preprocessing.scale,
        alignment=entry.alignment or Alignment("none"),
        normalized=embedding.normalized,
    )


def require_agreement(told: RecipeParts, entry: ModelEntry) -> None:
    """Refuse parts that contradict what a zoo entry says about the model's input.

    Size, alignment, output and unit length may differ from the entry's: they are chosen, not given by the weights.

    Raises InputError if they do.
    """
    known = parts_of(entry).told()
    for part in ("color", "layout", "mean", "scale"):
        found = getattr(told, part)
        if found is not None and found != known.get(part, found):
            raise InputError(
                f"--{part}: the recipe of {entry.name} says {known[part]}, found {found}; leave it out, or give a "
                "model of your own another --name"
            )
