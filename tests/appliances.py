"""Archives of `edgeface appliance build` with small wheels, and the installer in a folder of its own."""

from __future__ import annotations

import base64
import hashlib
import os
import site
import subprocess
import tarfile
import zipfile
from collections.abc import Mapping
from pathlib import Path

import pytest

from edgeface.files import sha256_of
from edgeface.kiosk.appliance import TOP
from edgeface.version import __version__

ROOT = Path(__file__).resolve().parents[1]
STAND_IN = "import os\n\ndef main():\n    print('state', os.environ['EDGEFACE_SERVE_STATE'])\n    return {code}\n"
"""What stands for edgeface where only the installer is tested: its test passes or fails at once."""


def pip_wheel() -> Path:
    """Return the wheel of pip that Python itself brings."""
    import ensurepip

    folders = Path(ensurepip.__file__).parent / "_bundled", Path("/usr/share/python-wheels")
    wheels = [wheel for folder in folders for wheel in folder.glob("pip-*.whl")]
    return wheels[0] if wheels else pytest.skip("this Python brings no wheel of pip")


def write_wheel(folder: Path, files: Mapping[str, str | bytes], command: str) -> Path:
    """Write a wheel of edgeface with these files and this command, which asks for no other package."""
    wheel = folder / f"edgeface-{__version__}-py3-none-any.whl"
    about = f"edgeface-{__version__}.dist-info"
    extras = "".join(f"Provides-Extra: {each}\n" for each in ("serve", "mqtt"))
    content = {
        **files,
        f"{about}/METADATA": f"Metadata-Version: 2.1\nName: edgeface\nVersion: {__version__}\n{extras}",
        f"{about}/WHEEL": "Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{about}/entry_points.txt": f"[console_scripts]\nedgeface = {command}\n",
    }
    record = ""
    with zipfile.ZipFile(wheel, "w") as archive:
        for name, text in content.items():
            data = text.encode() if isinstance(text, str) else text
            digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
            record += f"{name},sha256={digest},{len(data)}\n"
            archive.writestr(zipfile.ZipInfo(name), data)
        archive.writestr(zipfile.ZipInfo(f"{about}/RECORD"), record + f"{about}/RECORD,,\n")
    return wheel


def stand_in_wheels(folder: Path, *, code: int = 0) -> Path:
    """Write the wheels of pip and of what stands for edgeface, whose test ends with this code."""
    folder.mkdir()
    (folder / pip_wheel().name).write_bytes(pip_wheel().read_bytes())
    write_wheel(folder, {"stand_in.py": STAND_IN.format(code=code)}, "stand_in:main")
    return folder


def real_wheels(folder: Path) -> Path:
    """Write the wheels of pip and of this edgeface, which finds the other packages where they are installed here."""
    folder.mkdir()
    (folder / pip_wheel().name).write_bytes(pip_wheel().read_bytes())
    files: dict[str, str | bytes] = {
        str(path.relative_to(ROOT)): path.read_bytes()
        for path in sorted((ROOT / "edgeface").rglob("*"))
        if path.is_file() and path.suffix != ".pyc"
    }
    files |= {"edgeface/model_zoo.yml": (ROOT / "model_zoo.yml").read_bytes()}
    write_wheel(folder, files | {"borrowed.pth": "\n".join(site.getsitepackages()) + "\n"}, "edgeface.cli:main")
    return folder


def unpack(archive: Path, folder: Path) -> Path:
    """Unpack an archive with tar, as the documents say; return its folder."""
    folder.mkdir(parents=True)
    subprocess.run(["tar", "-C", str(folder), "-xf", str(archive)], check=True)
    return folder / TOP


def sign(folder: Path) -> None:
    """Write SHA256SUMS anew, as somebody does who changes an archive."""
    files = sorted(
        str(each.relative_to(folder)) for each in folder.rglob("*") if each.is_file() and each.name != "SHA256SUMS"
    )
    (folder / "SHA256SUMS").write_text("".join(f"{sha256_of(folder / name)}  {name}\n" for name in files))


def install(
    folder: Path, prefix: Path, *words: str, code: int | None = 0, path: Path | None = None, timeout: float = 120
) -> str:
    """Run the installer below a prefix, with programs of `path` first; return what it wrote."""
    done = subprocess.run(
        [str(folder / "install"), "--prefix", str(prefix), *words],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=timeout, check=False,
        env={"PATH": f"{path}:{os.environ['PATH']}" if path else os.environ["PATH"]},
    )  # fmt: skip
    assert code is None or done.returncode == code, done.stdout
    return done.stdout


def pack(archive: Path, members: list[tuple[tarfile.TarInfo, bytes]]) -> None:
    """Write a tar of these members."""
    import io

    with tarfile.open(archive, "w") as tar:
        for member, content in members:
            tar.addfile(member, io.BytesIO(content) if member.isreg() else None)


def members_of(archive: Path) -> list[tuple[tarfile.TarInfo, bytes]]:
    """Read all members of a tar."""
    with tarfile.open(archive) as tar:
        return [(each, tar.extractfile(each).read() if each.isreg() else b"") for each in tar]  # type: ignore[union-attr]
