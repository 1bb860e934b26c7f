"""Read the catalog of models (model_zoo.yml, or Open Model Zoo's model.yml), naming each mistake with its line."""

from __future__ import annotations

import difflib
import fnmatch
import reprlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from edgeface.errors import CatalogError, InputError, ModelNotFoundError
from edgeface.untrusted import YAML_BYTES, YAML_NODES, YAML_WORD, read_text, reading
from edgeface.zoo.schema import MODEL_NAME, Conversion, ModelEntry, known_keys

CATALOG_VERSION = 1
CATALOG_FILE = "model_zoo.yml"
COMPOSITE_FILE = "composite-model.yml"

KeyPath = Sequence[str | int]

_EXPECTED = {
    "int_type": "a whole number",
    "float_type": "a number",
    "string_type": "text",
    "bool_type": "true or false",
    "tuple_type": "a list",
    "dict_type": "a mapping",
    "model_type": "a mapping",
}


class Catalog(Mapping[str, ModelEntry]):
    """The known models, by name, in the order of their file."""

    def __init__(self, entries: Sequence[ModelEntry], *, source: str) -> None:
        self._entries = {entry.name: entry for entry in entries}
        self.source = source

    def __getitem__(self, name: str) -> ModelEntry:
        """Return one entry.

        Raises ModelNotFoundError if there is none of this name; the message suggests similar ones.
        """
        try:
            return self._entries[name]
        except KeyError:
            raise ModelNotFoundError(self._no_such(name)) from None

    def get(self, name: str, default: Any = None, /) -> Any:
        """Return one entry, or the default; `Mapping.get` expects a KeyError of `__getitem__`."""
        return self._entries.get(name, default)

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def match(self, patterns: str) -> list[ModelEntry]:
        """Return entries whose names match any of comma-separated shell patterns, in the catalog's order.

        Raises ModelNotFoundError if one of the patterns matches nothing.
        """
        wanted = [pattern.strip() for pattern in patterns.split(",") if pattern.strip()]
        for pattern in wanted or [patterns]:
            if not fnmatch.filter(self._entries, pattern):
                raise ModelNotFoundError(self._no_such(pattern))
        return [each for name, each in self._entries.items() if any(fnmatch.fnmatchcase(name, one) for one in wanted)]

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
    """Read a model_zoo.yml, by default the one that belongs to this edgeface.

    Raises CatalogError with the file, the line, the key, what was expected there and what was found.
    """
    document = Document.read(default_catalog_path() if path is None else path)
    top = _mapping(document, (), document.data)
    for key in top.keys() - {"schema_version", "models"}:
        raise document.error((key,), "unknown key; expected schema_version and models")
    if top.get("schema_version") != CATALOG_VERSION:
        raise document.error(
            ("schema_version",),
            f"expected {CATALOG_VERSION}, found {_shortened(top.get('schema_version'))}; update edgeface",
        )
    models = _mapping(document, ("models",), top.get("models"))
    entries = [_entry(document, name, model, at=("models", name)) for name, model in models.items()]
    return Catalog(entries, source=document.name)


def load_model_yml(path: Path) -> ModelEntry:
    """Read one entry in Open Model Zoo's form, whose name is that of the folder.

    `path` is a model.yml, or a composite-model.yml whose parts lie in folders beside it. Raises as `load_catalog`.
    """
    folder, document = path.resolve().parent, Document.read(path)
    name = folder.name
    if path.name == COMPOSITE_FILE:
        return _composite(document, name, folder)
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
    """Set the converter's source from Open Model Zoo's ``--input_model=$dl_dir/...``, or the first IR."""
    if entry.conversion is not None:
        return entry
    prefix = "--input_model=$dl_dir/"
    candidates = [text.removeprefix(prefix) for text in entry.model_optimizer_args or () if text.startswith(prefix)]
    candidates += [file.name for file in entry.files if entry.framework == "dldt" and file.name.endswith(".xml")]
    return entry.model_copy(update={"conversion": Conversion(source=candidates[0])}) if candidates else entry


def _entry(document: Document, name: Any, model: Any, *, at: Sequence[str | int]) -> ModelEntry:
    if not isinstance(name, str) or not MODEL_NAME.fullmatch(name):
        raise document.error(at, f"expected a name of letters, digits, '.', '_' and '-', found {_shortened(name)}")
    fields = _mapping(document, at, model)
    if "name" in fields:
        raise document.error((*at, "name"), f"unknown key; the entry's name is {name!r} already")
    try:
        return ModelEntry.model_validate({"name": name, **fields})
    except ValidationError as error:
        raise document.explain(error, at=at, keys=known_keys()) from error


def _mapping(document: Document, at: Sequence[str | int], value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise document.error(at, f"expected a mapping, found {_shortened(value)}")
    for key in value:
        if not isinstance(key, str):
            raise document.error((*at, key), f"expected a key that is text, found {_shortened(key)}")
    return value


class Document:
    """One YAML file, read with the safe loader, in which no key may occur twice; `name` is its name in messages.

    Raises CatalogError if the text is no YAML, or has a key twice in one mapping.
    """

    def __init__(self, text: str, *, name: str) -> None:
        self.name = name
        with reading(name, "YAML that can be read", error=CatalogError):
            # and what else PyYAML lets through: a date like 2020-13-40, `!!bool maybe`, ten thousand brackets
            try:
                loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)(text)  # libyaml's is seven times as fast
                root = loader.get_single_node()
                if root is not None:
                    _count_nodes(root, {})
                    self._refuse_doubled_keys(root, set())
                self.data = None if root is None else loader.construct_document(root)
            except yaml.YAMLError as error:
                mark = getattr(error, "problem_mark", None)
                problem = getattr(error, "problem", None) or str(error).splitlines()[0]
                line = 1 if mark is None else mark.line + 1
                raise CatalogError(f"{name}:{line}: expected YAML: {problem}") from error
        self._root = root

    @classmethod
    def read(cls, path: Path) -> Document:
        """Read a file.

        Raises CatalogError if it cannot be read, is not UTF-8 or YAML, or has a key twice in one mapping.
        """
        return cls(read_text(path, "a YAML file", error=CatalogError, limit=YAML_BYTES), name=path.name)

    def error(self, path: KeyPath, message: str) -> CatalogError:
        """Return the error for the value at `path`, or for the nearest mapping that should hold it."""
        node, shown = self._root, []
        for position, part in enumerate(path):
            child = _child(node, part)
            if child is None and position < len(path) - 1:
                continue  # pydantic puts the tags of unions into its paths
            if child is None and not isinstance(node, yaml.MappingNode | yaml.SequenceNode):
                break
            shown.append(part)
            node = child if child is not None else node
        line = 1 if node is None else node.start_mark.line + 1
        return CatalogError(f"{self.name}:{line}: {_dotted(shown) or 'the file'}: {message}")

    def explain(self, error: ValidationError, *, at: KeyPath, keys: Sequence[str]) -> CatalogError:
        """Return the error for what pydantic found first below the path `at`; `keys` are suggested for typos."""
        problems = error.errors(include_url=False)
        first = next((problem for problem in problems if problem["type"] == "extra_forbidden"), problems[0])
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        return self.error((*at, *first["loc"]), explain_problem(first, keys) + more)

    def _refuse_doubled_keys(self, node: yaml.Node, seen: set[int]) -> None:
        if id(node) in seen:  # an alias
            return
        seen.add(id(node))
        if isinstance(node, yaml.MappingNode):
            keys: dict[str, int] = {}
            for key, value in node.value:
                line = key.start_mark.line + 1
                if not isinstance(key, yaml.ScalarNode):
                    raise CatalogError(f"{self.name}:{line}: expected a key that is text, found a {key.id}")
                if key.value in keys:
                    raise CatalogError(
                        f"{self.name}:{line}: {key.value}: expected each key once, found it on line "
                        f"{keys[key.value]} too"
                    )
                keys[key.value] = line
                self._refuse_doubled_keys(value, seen)
        elif isinstance(node, yaml.SequenceNode):
            for item in node.value:
                self._refuse_doubled_keys(item, seen)


def _count_nodes(node: yaml.Node, counts: dict[int, int]) -> int:
    """Return the number of values that a node stands for, each alias expanded; refuse too many, and circles."""
    if (known := counts.get(id(node))) is not None:
        return known
    counts[id(node)] = YAML_NODES + 1  # until it is known: an alias to what it stands in
    children: list[yaml.Node] = []
    if isinstance(node, yaml.MappingNode):
        children = [part for pair in node.value for part in pair]
    elif isinstance(node, yaml.SequenceNode):
        children = node.value
    elif len(node.value) > YAML_WORD and node.tag != "tag:yaml.org,2002:str":  # 1:1:1:... is a number to YAML
        raise InputError(expected=f"numbers of at most {YAML_WORD:,} characters", found=f"one of {len(node.value):,}")
    counts[id(node)] = count = 1 + sum(_count_nodes(child, counts) for child in children)
    if count > YAML_NODES:
        raise InputError(
            expected=f"at most {YAML_NODES:,} values, aliases expanded", found="more, or an alias inside of its anchor"
        )
    return count


def _child(node: yaml.Node | None, part: str | int) -> yaml.Node | None:
    if isinstance(node, yaml.MappingNode):
        return next((value for key, value in node.value if key.value == part), None)
    if isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
        item: yaml.Node = node.value[part]
        return item
    return None


def _dotted(path: Sequence[str | int]) -> str:
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path)
    return text.removeprefix(".")


def explain_problem(problem: Any, keys: Sequence[str]) -> str:
    """Return what pydantic expected and found; `keys` are suggested for a mistyped one."""
    kind, last = problem["type"], problem["loc"][-1] if problem["loc"] else ""
    if kind == "extra_forbidden":
        close = difflib.get_close_matches(str(last), keys, n=1)
        return "unknown key" + (f"; did you mean {close[0]!r}?" if close else "")
    if kind == "missing":
        return "expected this key, found none" if isinstance(last, str) else "expected one more item, found none"
    found = f"found {_shortened(problem['input'])}"
    if kind == "literal_error":
        return f"expected {problem['ctx']['expected']}, {found}"
    if kind in _EXPECTED:
        return f"expected {_EXPECTED[kind]}, {found}"
    message = problem["msg"].removeprefix("Value error, ")
    return message if "found" in message else f"{message}, {found}"


_SHORTENED = reprlib.Repr()  # of what it leaves out, nothing is made
_SHORTENED.maxstring = _SHORTENED.maxother = 80


def _shortened(value: Any) -> str:
    text = _SHORTENED.repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
