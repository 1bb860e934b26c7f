"""A model_zoo.yml, or Open Model Zoo's own model.yml, in; checked model entries by name out."""

from __future__ import annotations

import difflib
import fnmatch
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from edgeface.errors import ModelNotFoundError
from edgeface.zoo.document import Document
from edgeface.zoo.schema import MODEL_NAME, Conversion, ModelEntry, known_keys

CATALOG_VERSION = 1
CATALOG_FILE = "model_zoo.yml"
COMPOSITE_FILE = "composite-model.yml"


class Catalog(Mapping[str, ModelEntry]):
    """Entries by name, in the order of their file."""

    def __init__(self, entries: Sequence[ModelEntry], *, source: str) -> None:
        self._entries = {entry.name: entry for entry in entries}
        self.source = source

    def __getitem__(self, name: str) -> ModelEntry:
        """Return one entry.

        Raises
        ------
        ModelNotFoundError
            If there is none of this name; the message offers the nearest ones.
        """
        try:
            return self._entries[name]
        except KeyError:
            raise ModelNotFoundError(self._no_such(name)) from None

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def match(self, patterns: str) -> list[ModelEntry]:
        """Entries whose names match any of comma-separated shell patterns, in the catalog's order.

        Raises
        ------
        ModelNotFoundError
            If one of the patterns matches nothing: a typo must not silently shrink the work.
        """
        wanted = [pattern.strip() for pattern in patterns.split(",") if pattern.strip()]
        for pattern in wanted or [patterns]:
            if not fnmatch.filter(self._entries, pattern):
                raise ModelNotFoundError(self._no_such(pattern))
        return [
            entry
            for name, entry in self._entries.items()
            if any(fnmatch.fnmatchcase(name, pattern) for pattern in wanted)
        ]

    def _no_such(self, name: str) -> str:
        close = difflib.get_close_matches(name, self._entries, n=3, cutoff=0.5)
        hint = f"did you mean {' or '.join(close)}?" if close else "see them with: edgeface zoo list"
        return f"no model {name!r} in {self.source}; {hint}"


def default_catalog_path() -> Path:
    """Return the model_zoo.yml that belongs to this edgeface.

    It lies inside the package in an installed wheel, and at the root of a clone.
    """
    package = Path(__file__).resolve().parents[1]
    packaged = package / CATALOG_FILE
    return packaged if packaged.is_file() else package.parent / CATALOG_FILE


def load_catalog(path: Path | None = None) -> Catalog:
    """Read a catalog.

    Parameters
    ----------
    path
        A model_zoo.yml; by default the one that belongs to this edgeface.

    Raises
    ------
    CatalogError
        Naming the file, the line, the key, what was expected there and what was found.
    """
    document = Document.read(default_catalog_path() if path is None else path)
    top = _mapping(document, (), document.data)
    for key in top.keys() - {"schema_version", "models"}:
        raise document.error((key,), "unknown key; expected schema_version and models")
    if top.get("schema_version") != CATALOG_VERSION:
        raise document.error(
            ("schema_version",),
            f"expected {CATALOG_VERSION}, found {top.get('schema_version')!r}; update edgeface",
        )
    models = _mapping(document, ("models",), top.get("models"))
    entries = [_entry(document, name, model, at=("models", name)) for name, model in models.items()]
    return Catalog(entries, source=document.name)


def load_model_yml(path: Path) -> ModelEntry:
    """Read one entry the way Open Model Zoo keeps it; its name is that of the folder.

    Parameters
    ----------
    path
        A model.yml, or a composite-model.yml whose parts lie in folders beside it.

    Raises
    ------
    CatalogError
        As for `load_catalog`.
    """
    name = path.resolve().parent.name
    document = Document.read(path)
    if path.name == COMPOSITE_FILE:
        return _composite(document, name, path.resolve().parent)
    return _with_conversion(_entry(document, name, document.data, at=()))


def _composite(document: Document, name: str, folder: Path) -> ModelEntry:
    model = dict(_mapping(document, (), document.data))
    order = model.pop("stages_order", None) or sorted(part.parent.name for part in folder.glob("*/model.yml"))
    stages = [load_model_yml(folder / str(stage) / "model.yml") for stage in order]
    entry = _entry(document, name, {**model, "files": []}, at=())
    return entry.model_copy(
        update={
            "stages": tuple(stage.name for stage in stages),
            "files": _inside_stages(stages, "name", "files"),
            "postprocessing": _inside_stages(stages, "file", "postprocessing"),
            "input_info": tuple(tensor for stage in stages for tensor in stage.input_info),
        }
    )


def _inside_stages(stages: Sequence[ModelEntry], key: str, field: str) -> tuple[BaseModel, ...]:
    return tuple(
        part.model_copy(update={key: f"{stage.name}/{getattr(part, key)}"})
        for stage in stages
        for part in getattr(stage, field)
    )


def _with_conversion(entry: ModelEntry) -> ModelEntry:
    """Take the converter's source from Open Model Zoo's ``--input_model=$dl_dir/...``, or the first IR."""
    if entry.conversion is not None:
        return entry
    prefix = "--input_model=$dl_dir/"
    candidates = [
        text.removeprefix(prefix) for text in entry.model_optimizer_args or () if text.startswith(prefix)
    ]
    candidates += [
        file.name for file in entry.files if entry.framework == "dldt" and file.name.endswith(".xml")
    ]
    return entry.model_copy(update={"conversion": Conversion(source=candidates[0])}) if candidates else entry


def _entry(document: Document, name: Any, model: Any, *, at: Sequence[str | int]) -> ModelEntry:
    if not isinstance(name, str) or not MODEL_NAME.fullmatch(name):
        raise document.error(at, f"expected a name of letters, digits, '.', '_' and '-', found {name!r}")
    fields = _mapping(document, at, model)
    if "name" in fields:
        raise document.error((*at, "name"), f"unknown key; the entry's name is {name!r} already")
    try:
        return ModelEntry.model_validate({"name": name, **fields})
    except ValidationError as error:
        raise document.explain(error, at=at, keys=known_keys()) from error


def _mapping(document: Document, at: Sequence[str | int], value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise document.error(at, f"expected a mapping, found {value!r}")
    for key in value:
        if not isinstance(key, str):
            raise document.error((*at, key), f"expected a key that is text, found {key!r}")
    return value
