"""Run OpenVINO's frontends in a process of bounded memory: they fold constants whatever becomes of them, or crash.

A graph of a hundred bytes can fill and repeat a tensor to any size; the frontend computes it while it reads the graph.
"""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import resource
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import openvino as ov

from edgeface import errors
from edgeface.convert.source import run_frontend
from edgeface.errors import ConversionError, EdgeFaceError
from edgeface.files import output_errors
from edgeface.untrusted import IMPORT_BYTES, IMPORT_RATIO

Converted = tuple[ov.Model, dict[str, Any]]
"""A model, and what else was found, as JSON types."""

WITHOUT_TOOLS = "sys.modules['openvino_telemetry'] = sys.modules['openvino.tools.ovc'] = None; "
"""Begins a program that uses neither; both take time to import, and OpenVINO goes without.

The first would also fork a process that reports to its makers, can outlive its parent, and keeps stderr open.
"""

_RUN = f"{WITHOUT_TOOLS}from edgeface.convert.apart import main; main()"
_SECONDS = 600


@contextlib.contextmanager
def process_apart() -> Iterator[subprocess.Popen[bytes]]:
    """Start the process of `convert_apart`, which imports OpenVINO while the caller reads the model's files.

    Raises ConversionError if no process can be started.
    """
    command = [sys.executable, "-c", f"import sys; sys.path[:] = {sys.path!r}; {_RUN}"]
    try:
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    except OSError as error:
        raise ConversionError(f"no process can be started for the conversion: {error.strerror}") from error
    with process:
        try:
            yield process
        finally:
            process.kill()


def convert_apart(
    process: subprocess.Popen[bytes], convert: Callable[..., Converted], *arguments: Any, path: Path, size: int
) -> Converted:
    """Call a function of a module in `process_apart`, once, and return what it returns.

    `path` is the file's name in messages. The process may use `IMPORT_BYTES` and `IMPORT_RATIO` times `size`, that of
    the model's files in bytes.

    Raises what the function raises, or ConversionError if the process ends otherwise.
    """
    folder = Path(tempfile.tempdir or os.environ.get("TMPDIR", "/tmp"))
    with (
        output_errors(folder, hint=" for temporary files through TMPDIR"),
        tempfile.TemporaryDirectory(prefix="edgeface-") as temporary,
    ):
        task = pickle.dumps((convert, arguments, path, Path(temporary), IMPORT_BYTES + IMPORT_RATIO * size))
        try:
            _, told = process.communicate(task, timeout=_SECONDS)
        except subprocess.TimeoutExpired:
            raise ConversionError(f"{path}: OpenVINO did not convert this graph within {_SECONDS} s") from None
        answer = Path(temporary, "answer.json")
        if not answer.is_file():
            lines = told.decode(errors="replace").strip().splitlines()
            reason = lines[-1] if lines else f"its process ended with {process.returncode}"
            raise ConversionError(f"{path}: OpenVINO cannot convert this graph: {reason}")
        found = json.loads(answer.read_text(encoding="utf-8"))
        if "error" in found:
            raise getattr(errors, found["error"])(found["message"])
        core = ov.Core()
        core.set_property({"ENABLE_MMAP": False})  # the file ends with the block
        return core.read_model(Path(temporary, "model.xml")), found


def import_by_frontend(framework: str, file: Path, path: Path) -> Converted:
    """`run_frontend`, for `convert_apart`: here, so that its process need not import what reads models."""
    return run_frontend(framework, file, path), {}


def main() -> None:
    """Do what stdin says: write the model and ``answer.json`` into the folder that it names too."""
    convert, arguments, path, folder, limit = pickle.load(sys.stdin.buffer)  # from the process that started this one
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    try:
        model, found = convert(*arguments)
        ov.serialize(model, str(folder / "model.xml"), str(folder / "model.bin"))
    except EdgeFaceError as error:
        found = {"error": type(error).__name__, "message": str(error)}
    except MemoryError:
        found = {"error": "ConversionError", "message": f"{path}: converting it takes more than {limit:,} bytes"}
    Path(folder, "answer.json").write_text(json.dumps(found), encoding="utf-8")
