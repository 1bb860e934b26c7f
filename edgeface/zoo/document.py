"""YAML text in, data and the line of every value out, so that a mistake is named where it stands."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from edgeface.errors import CatalogError

KeyPath = Sequence[str | int]

_LARGEST = 4 << 20
"""Bytes; the whole of Open Model Zoo's catalog is a tenth of it."""

_EXPECTED = {
    "int_type": "a whole number",
    "float_type": "a number",
    "string_type": "text",
    "bool_type": "true or false",
    "tuple_type": "a list",
    "dict_type": "a mapping",
    "model_type": "a mapping",
}


class Document:
    """One YAML file, read with the safe loader; a key that stands twice is an error.

    Attributes
    ----------
    name
        How messages call the file.
    data
        Its content.
    """

    def __init__(self, text: str, *, name: str) -> None:
        self.name = name
        try:
            loader = yaml.SafeLoader(text)
            root = loader.get_single_node()
            if root is not None:
                self._refuse_doubled_keys(root, set())
            self.data = None if root is None else loader.construct_document(root)
        except yaml.YAMLError as error:
            mark = getattr(error, "problem_mark", None)
            problem = getattr(error, "problem", None) or str(error).splitlines()[0]
            line = 1 if mark is None else mark.line + 1
            raise CatalogError(f"{name}:{line}: expected YAML: {problem}") from error
        except (ValueError, LookupError, AttributeError, TypeError, RecursionError) as error:
            # what PyYAML lets through: a date like 2020-13-40, `!!bool maybe`, ten thousand brackets
            raise CatalogError(f"{name}:1: expected YAML that can be read: {error!r}") from error
        self._root = root

    @classmethod
    def read(cls, path: Path) -> Document:
        """Read a file.

        Raises
        ------
        CatalogError
            If it cannot be read, is not UTF-8 or YAML, or has a key twice in one mapping.
        """
        try:
            if path.stat().st_size > _LARGEST:
                raise CatalogError(f"{path}: expected at most {_LARGEST:,} bytes of YAML, found more")
            text = path.read_text(encoding="utf-8")
        except OSError as error:
            raise CatalogError(f"{path}: expected a YAML file: {error.strerror}") from error
        except UnicodeDecodeError as error:
            raise CatalogError(f"{path}: expected UTF-8 text: {error}") from error
        return cls(text, name=path.name)

    def error(self, path: KeyPath, message: str) -> CatalogError:
        """Make the error for the value at `path`, or for the nearest mapping that should have held it."""
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
        """Say in one line what pydantic found first below the path `at`; `keys` are offered for typos."""
        problems = error.errors(include_url=False)
        first = next((problem for problem in problems if problem["type"] == "extra_forbidden"), problems[0])
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        return self.error((*at, *first["loc"]), _explain(first, keys) + more)

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


def _explain(problem: Any, keys: Sequence[str]) -> str:
    kind, last = problem["type"], problem["loc"][-1] if problem["loc"] else ""
    if kind == "extra_forbidden":
        close = difflib.get_close_matches(str(last), keys, n=1)
        return "unknown key" + (f"; did you mean {close[0]!r}?" if close else "")
    if kind == "missing":
        return (
            "expected this key, found none" if isinstance(last, str) else "expected one more item, found none"
        )
    found = f"found {_shortened(problem['input'])}"
    if kind == "literal_error":
        return f"expected {problem['ctx']['expected']}, {found}"
    if kind in _EXPECTED:
        return f"expected {_EXPECTED[kind]}, {found}"
    message = problem["msg"].removeprefix("Value error, ")
    return message if "found" in message else f"{message}, {found}"


def _shortened(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
