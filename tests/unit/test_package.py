"""What `import edgeface` offers, what it loads, and what it keeps from happening."""

from __future__ import annotations

import importlib
import inspect
import json
import pkgutil
import shlex
import subprocess
import sys
import types
from pathlib import Path

import pytest

import edgeface
from edgeface import errors

_LOOK = """
import json, multiprocessing, sys, threading
import edgeface
import openvino
print(json.dumps([threading.active_count(), len(multiprocessing.active_children())]))
"""

FRONT_DOOR = [
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


def look(code: str) -> object:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, timeout=120)
    return json.loads(done.stdout)


def every_error() -> list[type[edgeface.EdgeFaceError]]:
    def tree(kind: type[edgeface.EdgeFaceError]) -> list[type[edgeface.EdgeFaceError]]:
        return [kind, *(each for child in kind.__subclasses__() for each in tree(child))]

    return [kind for kind in dict.fromkeys(tree(edgeface.EdgeFaceError)) if kind.__module__ == errors.__name__]


def test_the_package_exports_the_front_door_and_every_error_and_no_more() -> None:
    assert sorted(edgeface.__all__) == sorted([*FRONT_DOOR, *(kind.__name__ for kind in every_error())])
    for name in edgeface.__all__:
        thing = getattr(edgeface, name)
        assert inspect.isclass(thing) or inspect.isfunction(thing) or name == "__version__"


def test_importing_edgeface_loads_no_heavy_package() -> None:
    loaded = look("import edgeface, json, sys; print(json.dumps([name.partition('.')[0] for name in sys.modules]))")
    assert isinstance(loaded, list)
    assert not {"openvino", "cv2", "scipy", "numpy", "typer", "pydantic", "PIL"} & set(loaded)


def test_importing_edgeface_loads_few_modules() -> None:
    """Its time cannot be tested on a machine that does other work too: its modules can."""
    program = (
        "import sys; before = set(sys.modules); import edgeface, json; print(json.dumps([*set(sys.modules) - before]))"
    )
    loaded = look(program)
    assert isinstance(loaded, list)
    assert {name for name in loaded if name.startswith("edgeface.")} == {
        "edgeface.errors",
        "edgeface.lazy",
        "edgeface.text",
        "edgeface.version",
    }
    assert len(loaded) < 60


def test_what_analyzes_photos_imports_no_library_that_only_other_work_needs() -> None:
    """Importing SciPy, the libraries of encryption and of web clients took half of the time of a verification."""
    loaded = look("import edgeface.analyzer, json, sys; print(json.dumps([*sys.modules]))")
    assert isinstance(loaded, list)
    assert not {"scipy", "cryptography", "pydantic", "joblib", "asyncio", "typer", "edgeface.gallery"} & set(loaded)


def test_the_help_of_all_commands_imports_neither_pydantic_nor_numpy() -> None:
    program = "import json, sys; from edgeface.cli import main; main(['--help']); print(json.dumps([*sys.modules]))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True, timeout=120)
    loaded = set(json.loads(done.stdout.splitlines()[-1]))
    assert "typer" in loaded
    assert not {"openvino", "cv2", "scipy", "numpy", "pydantic", "httpx", "yaml", "urllib.request"} & loaded


def test_the_names_are_found_without_importing_what_they_do_not_need() -> None:
    """A contract is read where no image is: on a server that only keeps galleries."""
    loaded = look("import json, sys; from edgeface import Threshold; print(json.dumps(list(sys.modules)))")
    assert isinstance(loaded, list)
    assert "cv2" not in loaded


def test_openvino_behind_edgeface_starts_no_telemetry_thread_or_process() -> None:
    assert look(_LOOK) == [1, 0]


def test_every_error_has_an_exit_code_of_the_command_line() -> None:
    assert {kind.exit_code for kind in every_error()} <= {1, 2, 3, 4}


def public_classes() -> list[type]:
    """Every class without a leading underscore that a module of edgeface defines."""
    found = []
    for module in pkgutil.walk_packages(edgeface.__path__, "edgeface."):
        if module.name.endswith("__main__"):
            continue
        try:
            loaded = importlib.import_module(module.name)
        except ModuleNotFoundError as error:  # of an extra that is not installed
            if not error.name or error.name.partition(".")[0] == "edgeface":
                raise
            continue
        for name, thing in vars(loaded).items():
            if not name.startswith("_") and inspect.isclass(thing) and thing.__module__ == module.name:
                found.append(thing)
    return found


DECISIONS = {"matched", "known", "passed", "ok", "intact", "proved", "accepted"}
"""Attributes that answer yes or no to the question that the class is about."""


def test_every_class_that_is_a_decision_is_true_or_false_by_it() -> None:
    """An `if verify(...)` that is always true opens the door to everybody."""
    decisions = set()
    for kind in public_classes():
        if hasattr(kind, "model_json_schema"):
            continue  # it describes the JSON of an answer to a client, and is never one here
        own = {*vars(kind), *getattr(kind, "__annotations__", {})}
        answers = DECISIONS & own
        if answers:
            assert "__bool__" in own, f"{kind.__module__}.{kind.__name__}: has {answers}, and is always true"
        if "__bool__" in own:
            decisions.add(kind.__name__)
    assert decisions >= {
        *("Verification", "Identification", "Verdict", "QualityVerdict"),
        *("ParityReport", "FileCheck", "DetectorOutcome", "Outcome"),
        *("Erasure", "CheckReport", "FolderEnrolment"),
    }


@pytest.mark.parametrize(
    ("record", "line"),
    [
        ('{"url": "file:///src/edge%20face", "dir_info": {}}', "pip install '/src/edge face[demo]'"),
        (
            '{"url": "file:///x/edgeface-1.whl", "archive_info": {}}',
            "pip install 'edgeface[demo] @ file:///x/edgeface-1.whl'",
        ),
        (
            '{"url": "https://host/e.git", "vcs_info": {"vcs": "git"}}',
            "pip install 'edgeface[demo] @ git+https://host/e.git'",
        ),
        (None, "pip install 'edgeface[demo]'"),
        ("damaged", "pip install 'edgeface[demo]'"),
    ],
)
def test_the_line_that_installs_an_extra_fits_the_installation(
    monkeypatch: pytest.MonkeyPatch, record: str | None, line: str
) -> None:
    clone = Path(errors.__file__).resolve().parents[1]
    assert errors.install_line("demo") == f"pip install -e {shlex.quote(f'{clone}[demo]')}"
    monkeypatch.setattr(errors, "__file__", "/nowhere/site-packages/edgeface/errors.py")
    monkeypatch.setattr(
        "importlib.metadata.distribution", lambda name: types.SimpleNamespace(read_text=lambda file: record)
    )
    assert errors.install_line("demo") == line
