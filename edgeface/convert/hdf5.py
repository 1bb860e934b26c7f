"""Read arrays of a Keras .h5 in a process of its own: the HDF5 library crashes on some damaged files, or never ends.

Nothing but names and arrays is read. The configuration in the file, where Lambda layers are marshalled Python code, and
links to other files are left alone.
"""

from __future__ import annotations

import importlib.util
import io
import json
import os
import subprocess
import sys
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeface.errors import ExtraNotInstalledError, ModelFormatError
from edgeface.untrusted import HDF5_BYTES, HDF5_SECONDS

Shapes = Mapping[str, Mapping[str, tuple[int, ...]]]
"""Shapes of arrays by layer, then by the array's name: ``{"conv1": {"kernel": (7, 7, 3, 64)}}``."""


@dataclass(frozen=True, slots=True)
class KerasArrays:
    """What a Keras .h5 holds.

    Attributes
    ----------
    layers
        Names of all its layers, those without weights among them, in order.
    arrays
        By layer and name; float16, float32 or float64.
    found
        By layer and name, what stands in the place of a wanted array that is of another shape or type.
    """

    layers: tuple[str, ...]
    arrays: dict[tuple[str, str], NDArray[Any]]
    found: dict[tuple[str, str], str]


def read_keras_arrays(path: Path, wanted: Shapes) -> KerasArrays:
    """Read arrays of these shapes from what Keras's `model.save` or `save_weights` wrote as .h5.

    Raises ModelFormatError if the file is damaged or no such .h5; ExtraNotInstalledError if h5py is not installed.
    """
    if importlib.util.find_spec("h5py") is None:
        raise ExtraNotInstalledError("keras", needed_for="reading a Keras .h5")
    expected = "an .h5 that Keras saved"
    if not path.is_file():
        raise ModelFormatError(path=path, expected=expected, found="no file")
    request = json.dumps({"path": os.fspath(path.resolve()), "wanted": wanted})
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            f"import sys; sys.path[:] = {sys.path!r}; from edgeface.convert.hdf5 import main; main()",
        ],
        input=request.encode(),
        capture_output=True,
        check=False,
        env={**os.environ, "OPENBLAS_NUM_THREADS": "1"},  # its threads' buffers count as memory
    )
    if done.returncode != 0:
        lines = done.stderr.decode(errors="replace").strip().splitlines()
        reason = lines[-1] if done.returncode == _REFUSED and lines else f"HDF5 ended with {done.returncode} on it"
        raise ModelFormatError(path=path, expected=expected, found=f"another or a damaged file ({reason})")
    with np.load(io.BytesIO(done.stdout), allow_pickle=False) as stored:
        contents = {name: stored[name] for name in stored.files}
    answer = json.loads(str(contents.pop(_ANSWER)))
    return KerasArrays(
        tuple(answer["layers"]),
        {_key(name): values for name, values in contents.items()},
        {_key(name): text for name, text in answer["found"].items()},
    )


_REFUSED = 3
_ANSWER = "answer"  # no array's name, which has a slash


def _key(name: str) -> tuple[str, str]:
    layer, _, part = name.rpartition("/")
    return layer, part


# --- in the process ---------------------------------------------------------------------------------------------------


def main() -> None:
    """Read what the request on stdin names; write an .npz to stdout, or a reason to stderr."""
    import resource

    import h5py

    request = json.load(sys.stdin)
    resource.setrlimit(resource.RLIMIT_AS, (HDF5_BYTES, HDF5_BYTES))
    seconds = int(sum(resource.getrusage(resource.RUSAGE_SELF)[:2])) + HDF5_SECONDS
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    try:
        with h5py.File(request["path"], "r") as file:
            layers, arrays, found = _read(file, request["wanted"])
    except Exception as error:  # h5py has no base class for what damaged files raise
        sys.stderr.write(f"{type(error).__name__}: {error}".replace("\n", " "))
        sys.exit(_REFUSED)
    answer = json.dumps({"layers": layers, "found": found})
    with zipfile.ZipFile(sys.stdout.buffer, "w") as archive:
        for name, values in {**arrays, _ANSWER: np.array(answer)}.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, values, allow_pickle=False)


def _read(file: Any, wanted: Shapes) -> tuple[list[str], dict[str, NDArray[Any]], dict[str, str]]:
    root = _member(file, "model_weights") if "model_weights" in file else file
    if "layer_names" not in root.attrs:
        raise ValueError(
            "no attribute layer_names; Keras 3 writes it with model.save('NAME.h5'), not with save_weights"
        )
    layers = [_text(name) for name in root.attrs["layer_names"]]
    arrays: dict[str, NDArray[Any]] = {}
    found: dict[str, str] = {}
    for layer in wanted.keys() & set(layers):
        group = _member(root, layer)
        for stored in map(_text, group.attrs["weight_names"]):
            part = stored.rpartition("/")[2].removesuffix(":0")  # conv1/kernel:0 of Keras 2, conv1/kernel of Keras 3
            if part not in wanted[layer]:
                continue
            data, name = _member(group, stored), f"{layer}/{part}"
            if data.shape != tuple(wanted[layer][part]) or data.dtype.kind != "f" or data.dtype.itemsize > 8:
                found[name] = f"{data.dtype} {data.shape}"
            elif data.external or data.is_virtual or any(map(int.__gt__, data.chunks or (), data.shape)):
                found[name] = "values that are stored in no plain form"
            else:
                arrays[name] = data[()]
    return layers, arrays, found


def _member(group: Any, path: str) -> Any:
    """Return a member of a group, without following links to elsewhere."""
    import h5py

    for name in path.split("/"):
        if not isinstance(group.get(name, getlink=True), h5py.HardLink):
            raise ValueError(f"{name!r} is missing, or a link to another place")
        group = group[name]
    return group


def _text(name: Any) -> str:
    return name.decode() if isinstance(name, bytes) else str(name)
