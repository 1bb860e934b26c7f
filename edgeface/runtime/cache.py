"""Keep compiled models on disk, so that a model is compiled only once.

OpenVINO's own cache (CACHE_DIR, measured on 2026.4.1) computes with files whose middle is damaged, is never pruned,
and may fail to load when the disk is full. This cache exports and imports compiled models itself: written completely
or not at all, verified before use, the least recently used removed above a size limit, encrypted with a key. A
failure of the cache is logged and the model compiled. AUTO and BATCH cannot export and are compiled each time.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import openvino as ov

from edgeface.cipher import seal, unseal
from edgeface.errors import EdgeFaceError
from edgeface.files import default_root, write_atomically
from edgeface.version import __version__

if TYPE_CHECKING:
    from typing_extensions import Buffer

_log = logging.getLogger(__name__)

_CHECKSUM = 4
"""Bytes of CRC-32 after the content. It detects accidents; only a key detects forgery."""


def usual_folder() -> Path | None:
    """Return the folder of compiled models that commands and the service share; None if this user cannot write it."""
    folder = default_root() / "compiled"
    there = next(path for path in (folder, *folder.parents) if path.exists())
    return folder if there.is_dir() and os.access(there, os.W_OK) else None


class ModelCache:
    """Compiled models in a folder; several processes may share it.

    Parameters
    ----------
    folder
        Made when first needed.
    limit
        Most bytes in the folder.
    key
        16, 24 or 32 bytes, to encrypt the entries with AES-GCM; None: plain.
    """

    def __init__(self, folder: Path, *, limit: int = 2 << 30, key: bytes | None = None) -> None:
        self.folder = folder
        self.limit = limit
        self._key = key

    def compile(
        self,
        core: ov.Core,
        build: Callable[[], ov.Model],
        device: str,
        config: dict[str, Any],
        *,
        identity: str,
        weights: Path | None = None,
    ) -> tuple[ov.CompiledModel, bool]:
        """Compile a model, or import it if it was compiled before.

        Parameters
        ----------
        core : openvino.Core
            Compiles and imports.
        build
            Makes the model; called only if there is no entry.
        device, config
            As for `openvino.Core.compile_model`.
        identity
            Text that identifies the model; device, config, machine and the versions of OpenVINO and edgeface are added.
        weights
            The .bin of the model. If the device can, the entry refers to it instead of repeating it: for FaceNet
            0.5 MB instead of 94 MB. The caller verifies the file.

        Returns
        -------
        openvino.CompiledModel, and whether it came from the cache
        """
        machine = (
            __version__,
            ov.__version__,
            _full_name(core, device),
            device,
            sorted(config.items()),
            self._key is None,
        )
        path = self.folder / f"{hashlib.sha256(repr((identity, machine)).encode()).hexdigest()[:32]}.blob"
        config, references = dict(config), {}
        if weights is not None and _can_refer(core, device):
            config |= {"CACHE_MODE": "OPTIMIZE_SIZE"}
            references = {"WEIGHTS_PATH": str(weights)}
        if (compiled := self._load(core, path, device, config | references)) is not None:
            return compiled, True
        compiled = core.compile_model(build(), device, config)
        self._store(compiled, path)
        return compiled, False

    def prune(self, *, keep: Path | None = None) -> None:
        """Remove the least recently used entries until the folder is within the limit."""
        entries = []
        for path in self.folder.glob("*.blob"):
            with contextlib.suppress(FileNotFoundError):  # another process was faster
                entries.append((path == keep, path.stat().st_mtime_ns, path.stat().st_size, path))
        total = sum(size for _, _, size, _ in entries)
        for _, _, size, path in sorted(entries):
            if total <= self.limit:
                return
            path.unlink(missing_ok=True)
            total -= size
            _log.info("model cache: removed %s, the least recently used", path.name)

    def _load(self, core: ov.Core, path: Path, device: str, config: dict[str, Any]) -> ov.CompiledModel | None:
        try:
            content = self._read(path)
            os.utime(path)  # the time of use, for pruning
            return _import(core, content, device, config)
        except FileNotFoundError:
            return None
        except (OSError, ValueError, RuntimeError, EdgeFaceError) as error:
            _log.warning("model cache: %s is not usable (%s); the model is compiled again", path, error)
            return None

    def _read(self, path: Path) -> ov.Tensor:
        """Read and verify an entry, into memory that OpenVINO owns: the compiled model continues to use it."""
        if self._key is not None:
            opened = unseal(path.read_bytes(), key=self._key, kind="compiled model", source=str(path))
            return ov.Tensor(np.frombuffer(opened, np.uint8))
        with path.open("rb") as file:
            content = ov.Tensor(ov.Type.u8, [max(0, os.fstat(file.fileno()).st_size - _CHECKSUM)])
            file.readinto(content.data)
            if _checksum(content.data) != file.read():
                raise ValueError("its checksum is wrong")
        return content

    def _store(self, compiled: ov.CompiledModel, path: Path) -> None:
        try:
            exported = compiled.export_model()
            content = exported if isinstance(exported, bytes) else exported.getbuffer()
            if len(content) > self.limit:
                _log.warning("model cache: %d bytes are more than its limit of %d", len(content), self.limit)
                return
            with write_atomically(path) as staging, staging.open("wb") as file:
                if self._key is not None:
                    file.write(seal(bytes(content), key=self._key, header={"kind": "compiled model"}))
                else:
                    file.write(content)
                    file.write(_checksum(content))
            self.prune(keep=path)
        except (OSError, RuntimeError, EdgeFaceError) as error:
            _log.warning("model cache: this model is not kept in %s: %s", self.folder, error)


def _checksum(content: Buffer) -> bytes:
    return zlib.crc32(content).to_bytes(_CHECKSUM, "little")


def _import(core: ov.Core, content: ov.Tensor, device: str, config: dict[str, Any]) -> ov.CompiledModel:
    try:
        return core.import_model(content, device, config)
    except TypeError:  # older OpenVINO takes bytes only
        return core.import_model(content.data.tobytes(), device, config)


def _can_refer(core: ov.Core, device: str) -> bool:
    """Check whether the device exports a compiled model without weights: the CPU plugin of 2026 does, 2024's not."""
    try:
        return "WEIGHTS_PATH" in core.get_property(device, "SUPPORTED_PROPERTIES")
    except RuntimeError:
        return False


def _full_name(core: ov.Core, device: str) -> str:
    """Join the makers' names of the devices: code compiled for one processor must not run on another."""
    used = [name for name in core.available_devices if name in device or ":" in device]
    names = [str(core.get_property(name, "FULL_DEVICE_NAME")) for name in used]
    return ", ".join(names) or device
