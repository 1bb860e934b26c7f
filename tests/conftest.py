"""Where the real data is, and the tests that need it or an optional package."""

from __future__ import annotations

import gc
import importlib.util
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

# Tests run beside each other: a second thread of torch's or of NumPy's would wait for a core, and computes as it waits.
os.environ.update({"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"})

sys.path.insert(0, str(Path(__file__).parent))  # so that tests share tiny_graphs in any import mode
import profiles  # noqa: F401  (registers the Hypothesis profiles)
from postgres_server import cluster, pgvector  # noqa: F401  (fixtures)

ROOT = Path(__file__).resolve().parent.parent
MadeOnce = Callable[[str, Callable[[Path], Path]], Path]
LIVENESS_FILES = {"minifasnet-v2": "2.7_80x80_MiniFASNetV2.pth", "minifasnet-v1se": "4_0_0_80x80_MiniFASNetV1SE.pth"}
FACENET = "facenet-20180408-102900"
DATA = Path(os.environ.get("EDGEFACE_DATA", ROOT.parent / "shared" / "data"))

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as for whatever a shell runs in the background
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    no_data = pytest.mark.skip(reason=f"no real data at {DATA}; set EDGEFACE_DATA to its folder")
    no_tensorflow = pytest.mark.skip(reason="TensorFlow is not installed: pip install '.[parity]'")
    for item in items:
        if item.get_closest_marker("real") and not DATA.is_dir():
            item.add_marker(no_data)
        if item.get_closest_marker("parity") and importlib.util.find_spec("tensorflow") is None:
            item.add_marker(no_tensorflow)


def pytest_collection_finish() -> None:
    """Leave what collecting has made, which stays to the end, out of every search for garbage: each took 0.2 s."""
    _freeze()


def pytest_runtest_setup() -> None:
    """Leave out what tests have imported since, of which torch and NNCF are the most."""
    if len(sys.modules) > _frozen + 300:
        _freeze()


def _freeze() -> None:
    global _frozen
    gc.collect()
    gc.freeze()
    _frozen = len(sys.modules)


_frozen = 0
"""Modules that were imported when what there was was frozen."""


@pytest.fixture(scope="session", autouse=True)
def _no_store_of_the_user(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep the models that this user has downloaded, and the default among them, out of every test."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EDGEFACE_CACHE", str(tmp_path_factory.mktemp("store")))
        patch.delenv("EDGEFACE_MODEL", raising=False)
        yield


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MiB in memory."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "edgeface-test", folder], capture_output=True, timeout=30, check=False
    )
    if mounted.returncode:
        pytest.skip(f"cannot mount here: {mounted.stderr.decode().strip()}")
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True, timeout=30)


@pytest.fixture
def nothing_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine without the extra `demo`, whose model would be the default."""
    monkeypatch.setattr("edgeface.zoo.default.is_installed", lambda entry: False)


@pytest.fixture(scope="session")
def data() -> Path:
    """The folder of real data; only tests marked `real` may ask for it."""
    return DATA


@pytest.fixture(scope="session")
def made_once(tmp_path_factory: pytest.TempPathFactory) -> MadeOnce:
    """`made_once(name, make)`: what `make(folder)` made, once for all processes that run tests side by side."""
    root = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        root = root.parent

    def get(name: str, make: Callable[[Path], Path]) -> Path:
        folder, done = root / name, root / f"{name}.done"
        with FileLock(root / f"{name}.lock"):
            if not done.exists():
                folder.mkdir(exist_ok=True)
                done.write_text(str(make(folder)))
            return Path(done.read_text())

    return get


@pytest.fixture(scope="session")
def liveness_irs(data: Path, made_once: MadeOnce) -> Path:
    """The folder of the IRs of both published liveness models."""
    from edgeface.convert import convert

    def make(folder: Path) -> Path:
        for name, file in LIVENESS_FILES.items():
            convert(data / "liveness" / file, folder, name=name)
        return folder

    return made_once("liveness", make)


@pytest.fixture(scope="session")
def seeded(made_once: MadeOnce) -> dict[str, Any]:
    """Seeded weights of a FaceNet of 128 outputs: what there is without the real data. They take seconds to make."""
    import numpy as np

    from edgeface.convert.seeded import seeded_weights

    def make(folder: Path) -> Path:
        np.savez(folder / "weights.npz", **seeded_weights(1, 128))
        return folder / "weights.npz"

    with np.load(made_once("seeded-weights", make)) as stored:
        return dict(stored)


@pytest.fixture(scope="session")
def seeded_pb(request: pytest.FixtureRequest, made_once: MadeOnce) -> Path:
    """A FaceNet graph of seeded weights."""
    from edgeface.convert.facenet_graph import write_graph

    return made_once(
        "seeded", lambda folder: write_graph(request.getfixturevalue("seeded"), folder / "seeded.pb", seeded=True)
    )


@pytest.fixture(scope="session")
def weights(data: Path) -> dict[str, Any]:
    from edgeface.convert.facenet_graph import read_weights

    return read_weights(data / FACENET / "weights.npz")


@pytest.fixture(scope="session")
def real_pb(request: pytest.FixtureRequest, made_once: MadeOnce) -> Path:
    """The original training-and-inference graph with the published weights; only tests marked `real` may ask."""
    from edgeface.convert.facenet_graph import write_graph

    return made_once("real", lambda folder: write_graph(request.getfixturevalue("weights"), folder / f"{FACENET}.pb"))


@pytest.fixture(scope="session")
def real_ir(real_pb: Path, made_once: MadeOnce) -> Path:
    """That graph converted with the defaults: FP32, NCHW, BGR, dynamic batch. Tests only read it."""
    from edgeface.convert import convert

    return made_once("ir", lambda folder: convert(real_pb, folder).ir)
