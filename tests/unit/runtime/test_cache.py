"""The model cache: whatever its folder is like, the model loads and computes what it should."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import openvino as ov
import pytest

from edgeface.runtime import DevicePlan, Embedder, ImageFormat
from edgeface.runtime.cache import usual_folder

pytestmark = pytest.mark.timeout(60)
ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="module")
def ir(small_ir) -> Path:
    return small_ir()


@pytest.fixture(scope="module")
def crop() -> np.ndarray:
    return np.random.default_rng(1).integers(0, 256, (12, 16, 3), np.uint8)


def load(ir: Path, cache: Path, crop: np.ndarray, **options: object) -> tuple[np.ndarray, bool | None]:
    with Embedder.load(ir, cache_dir=cache, **options) as embedder:
        return embedder.embed(crop), embedder.execution.loaded_from_cache


def test_second_load_comes_from_the_cache_with_the_same_result(ir, crop, tmp_path):
    cold, warm = load(ir, tmp_path, crop), load(ir, tmp_path, crop)
    assert (cold[1], warm[1]) == (False, True)
    np.testing.assert_array_equal(cold[0], warm[0])


@pytest.mark.parametrize("flip", [None, "average", "concatenate"])
@pytest.mark.parametrize("image_format", [ImageFormat(), ImageFormat(color="RGB"), ImageFormat(size=(24, 32))])
def test_what_comes_from_the_cache_computes_the_same(ir, crop, tmp_path, flip, image_format):
    crop = np.repeat(np.repeat(crop, 2, 0), 2, 1) if image_format.size else crop
    options = {"flip": flip, "image_format": image_format, "plan": DevicePlan(device="CPU", batch_buckets=(1, 2))}
    cold, warm = load(ir, tmp_path, crop, **options), load(ir, tmp_path, crop, **options)
    assert (cold[1], warm[1]) == (False, True)
    np.testing.assert_array_equal(cold[0], warm[0])


@pytest.mark.skipif(ov.__version__ < "2025", reason="OpenVINO 2024 writes the weights into every entry")
def test_entry_refers_to_the_weights_instead_of_repeating_them(small_ir, tmp_path, core):
    from openvino import opset13 as ops

    from edgeface.runtime import ModelCache

    x = ops.parameter([1, 1024], np.float32)
    y = ops.matmul(x, ops.constant(np.ones((1024, 1024), np.float32)), False, False)
    ov.save_model(ov.Model([y], [x], "wide"), tmp_path / "wide.xml", compress_to_fp16=False)
    model, cache = core.read_model(tmp_path / "wide.xml"), ModelCache(tmp_path / "cache")
    weights = tmp_path / "wide.bin"
    for hit in (False, True):
        compiled, found = cache.compile(core, lambda: model, "CPU", {}, identity="wide", weights=weights)
        assert found is hit
        assert compiled([np.ones((1, 1024), np.float32)])[0][0, 0] == 1024
    assert sum(path.stat().st_size for path in cache.folder.iterdir()) < weights.stat().st_size / 10


def test_everything_that_changes_the_compiled_model_is_another_entry(ir, small_ir, crop, tmp_path):
    load(ir, tmp_path, crop)
    assert not load(small_ir(seed=1), tmp_path, crop)[1]
    assert not load(ir, tmp_path, crop, flip="average")[1]
    assert not load(ir, tmp_path, crop, image_format=ImageFormat(color="RGB"))[1]
    assert not load(ir, tmp_path, crop, plan=DevicePlan(device="CPU", hint="LATENCY"))[1]
    assert load(ir, tmp_path, crop)[1]
    assert len(list(tmp_path.glob("*.blob"))) == 5


@pytest.mark.parametrize("damage", ["middle", "truncated", "empty", "tiny", "text", "folder"])
def test_damaged_entry_is_said_and_compiled_again(ir, crop, tmp_path, caplog, damage):
    expected, _ = load(ir, tmp_path, crop)
    (entry,) = tmp_path.glob("*.blob")
    content = bytearray(entry.read_bytes())
    content[len(content) // 2] ^= 255
    if damage == "folder":
        entry.unlink()
        entry.mkdir()
    else:
        kinds = {"middle": bytes(content), "truncated": content[:1000], "empty": b"", "tiny": b"x", "text": b"no" * 999}
        entry.write_bytes(kinds[damage])
    with caplog.at_level(logging.WARNING):
        found, hit = load(ir, tmp_path, crop)
    assert not hit
    assert "is not usable" in caplog.text
    np.testing.assert_array_equal(found, expected)
    if damage != "folder":
        assert load(ir, tmp_path, crop)[1], "the damaged entry is replaced"


def test_folder_that_cannot_be_made_does_not_stop_the_load(ir, crop, tmp_path, caplog):
    (tmp_path / "file").write_text("in the way")
    expected, _ = load(ir, tmp_path / "good", crop)
    found, hit = load(ir, tmp_path / "file" / "cache", crop)
    assert not hit
    assert "not kept" in caplog.text
    np.testing.assert_array_equal(found, expected)


def test_full_disk_does_not_stop_the_load(ir, tmp_path):
    """A real failure to write, in a process that may write no more than 4 kB to a file."""
    script = f"""
import logging, resource, signal, numpy as np
from pathlib import Path
from edgeface.runtime import Embedder
logging.basicConfig(level=logging.WARNING)
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
with Embedder.load({str(ir)!r}, cache_dir=Path({str(tmp_path)!r})) as embedder:
    print(embedder.embed(np.ones((12, 16, 3), np.uint8)).shape, embedder.execution.loaded_from_cache)
"""
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert done.stdout.strip() == "(1, 8) False", done.stderr
    assert "not kept" in done.stderr
    assert not list(tmp_path.iterdir()), "nothing half-written stays"


def test_size_limit_removes_the_least_recently_used(ir, crop, tmp_path):
    formats = [ImageFormat(color=color) for color in ("BGR", "RGB", "BGRX")]
    crops = [crop, crop, np.ones((12, 16, 4), np.uint8)]
    load(ir, tmp_path, crops[0], image_format=formats[0])
    size = max(path.stat().st_size for path in tmp_path.glob("*.blob"))
    limit = int(2.5 * size)

    def loaded(n: int) -> bool | None:
        return load(ir, tmp_path, crops[n], image_format=formats[n], cache_limit=limit)[1]

    assert not loaded(1)
    assert loaded(0)  # now 1 is the least recently used
    assert not loaded(2)
    assert sum(path.stat().st_size for path in tmp_path.glob("*.blob")) <= limit
    assert loaded(0)
    assert loaded(2)
    assert not loaded(1)


def test_entry_larger_than_the_limit_is_not_kept(ir, crop, tmp_path, caplog):
    assert not load(ir, tmp_path, crop, cache_limit=100)[1]
    assert "more than its limit" in caplog.text
    assert not list(tmp_path.glob("*.blob"))


@pytest.mark.parametrize("device", ["AUTO:CPU", "BATCH:CPU(2)"])
def test_device_that_cannot_export_is_compiled_each_time(ir, crop, tmp_path, caplog, device):
    for _ in range(2):
        assert not load(ir, tmp_path, crop, device=device)[1]
    assert "not kept" in caplog.text


def test_encrypted_entries_are_useless_with_another_key(ir, crop, tmp_path, core):
    from edgeface.runtime import ModelCache

    model = core.read_model(ir)
    model.reshape([1, 3, 12, 16])
    caches = [ModelCache(tmp_path, key=bytes([n]) * 16) for n in (1, 2)]
    results = [cache.compile(core, lambda: model, "CPU", {}, identity="m")[1] for cache in (*caches, *caches[::-1])]
    assert results == [False, False, True, False], "each key replaces what it cannot read"


def test_the_usual_folder_is_in_the_store_and_none_where_it_cannot_be_written(tmp_path, monkeypatch):
    monkeypatch.setenv("EDGEFACE_CACHE", str(tmp_path / "store"))
    assert usual_folder() == tmp_path / "store" / "compiled"
    (tmp_path / "file").touch()
    for unusable in (tmp_path / "file", Path("/proc/self/store")):
        monkeypatch.setenv("EDGEFACE_CACHE", str(unusable))
        assert usual_folder() is None
