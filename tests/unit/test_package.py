"""What `import edgeface` offers, and what it keeps from happening."""

from __future__ import annotations

import json
import subprocess
import sys

import edgeface

_LOOK = """
import json, multiprocessing, sys, threading
import {first}
import openvino
print(json.dumps([threading.active_count(), len(multiprocessing.active_children())]))
"""


def test_the_package_exports_what_it_promises_and_no_more() -> None:
    assert sorted(edgeface.__all__) == ["Alignment", "EdgeFaceError", "ModelContract", "__version__"]
    assert all(hasattr(edgeface, name) for name in edgeface.__all__)


def test_openvino_behind_edgeface_starts_no_telemetry_thread_or_process() -> None:
    looked = subprocess.run(
        [sys.executable, "-c", _LOOK.format(first="edgeface")], capture_output=True, check=True, timeout=120
    )

    assert json.loads(looked.stdout) == [1, 0]


def test_every_error_has_an_exit_code_of_the_command_line() -> None:
    def tree(kind: type[edgeface.EdgeFaceError]) -> list[type[edgeface.EdgeFaceError]]:
        return [kind, *(each for child in kind.__subclasses__() for each in tree(child))]

    assert {kind.exit_code for kind in tree(edgeface.EdgeFaceError)} <= {1, 2, 3, 4}
