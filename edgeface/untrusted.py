"""Read files that anyone may have written: regular files of a bounded size, every failure an error with its path.

A reader does three things: it opens its file with `open_regular` or `read_regular`, which never wait for a pipe; it
allocates no more than the table of bounds below allows; and it runs the parser, and nothing else, inside `reading`,
which turns whatever the parser raises into one error. What goes wrong after the parser is a fault of edgeface, and
shows as one.
"""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
import stat
import zipfile
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from edgeface.errors import EdgeFaceError, InputError

if TYPE_CHECKING:
    from numpy.typing import NDArray

# --- the bounds -------------------------------------------------------------------------------------------------------

MODEL_BYTES = (1 << 31) - 1
"""Of a model, a pickle or a sealed file: the most that a protobuf message or one of AES-GCM holds."""
DOCUMENT_BYTES = 16 << 20
"""Of JSON and text; parsed, JSON takes up to twenty times as much."""
ENCODINGS_BYTES = 64 << 20
"""Of encodings as JSON: about 25,000 faces."""
RESULT_BYTES = 256 << 20
"""Of a benchmark's result, nearly all of it samples that are compressed in long texts."""
RESULT_SAMPLES = 1 << 24
"""Of one measurement in a result: four hours at a thousand per second."""
YAML_BYTES, YAML_NODES, YAML_WORD = 4 << 20, 1 << 18, 1000
"""Of a YAML file; its values with every alias expanded; characters of a number. Open Model Zoo's catalog has 400 kB."""
DEEPEST = 64
"""Lists and objects inside one another, in any format."""
UNPACKED_FLOOR, UNPACKED_RATIO = 64 << 20, 20
"""What compressed arrays may unpack to: this many bytes, or this many times their file's size if that is more.
Embeddings and weights hardly compress, names by ten at most; a bomb reaches 1000."""
ARCHIVE_BYTES, ARCHIVE_FILES, ARCHIVE_FLOOR, ARCHIVE_RATIO = 8 << 30, 20_000, 16 << 20, 200
"""What a downloaded archive may unpack to, onto the disk; the largest of the zoo has 300 MB."""
DIRECTORY_BYTES = 16 << 20
"""Of a zip archive's directory: 160,000 names."""
HEADER_BYTES = 1 << 20
"""Of what stands before a member of a tar archive: long names, pax headers, maps of sparse files."""
FILLED_BYTES = 4 << 20
"""Of the constants in a TensorFlow graph that repeat a value instead of storing it."""
IMPORT_BYTES, IMPORT_RATIO = 1 << 30, 8
"""Of the process that runs a frontend of OpenVINO: this much, and this many times the model's size."""
LAYER_BYTES = 1 << 30
"""Of what one layer of a model computes for one image."""
HDF5_BYTES, HDF5_SECONDS = 1 << 30, 3
"""Of the process that reads an .h5, of which a file of 15 MB takes 0.1 s."""
PICKLE_OPERATIONS, PICKLE_SHARED = 2_000_000, 16 << 20
"""Values of a pickle, of about 64 bytes each; bytes to which shared ones may expand beyond those of the file."""
KEY_FILE_BYTES = 1 << 12
"""Read of a key's file."""


def most_unpacked(packed: int) -> int:
    """Return to how many bytes a compressed file of this many may unpack in memory."""
    return max(UNPACKED_FLOOR, UNPACKED_RATIO * packed)


# --- files ------------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def reading(
    path: str | os.PathLike[str],
    expected: str,
    *,
    error: type[InputError] = InputError,
    remedy: str = "copy or write the file again",
) -> Iterator[None]:
    """Turn whatever a parser raises inside the block into one error of this class, with the path.

    `expected` and `remedy` complete an `InputError` that has no path; one with a path passes unchanged.

    Examples
    --------
    >>> with reading("a.json", "a plan in JSON"):
    ...     json.loads("[" * 100_000)
    Traceback (most recent call last):
    edgeface.errors.InputError: a.json: expected a plan in JSON, found damage: RecursionError: ...
    """
    try:
        yield
    except EdgeFaceError as raised:
        if not isinstance(raised, InputError) or raised.path is not None or raised.found is None:
            raise
        raise error(
            path=path, expected=raised.expected or expected, found=raised.found, remedy=raised.remedy or remedy
        ) from raised.__cause__
    except OSError as raised:
        found = raised.strerror or f"damage: {raised}"
        remedy = "check the path" if raised.errno else remedy
        raise error(path=path, expected=expected, found=found, remedy=remedy) from raised
    except Exception as raised:
        found = f"damage: {type(raised).__name__}: {str(raised)[:200]}".rstrip(": ")
        raise error(path=path, expected=expected, found=found, remedy=remedy) from raised


def open_regular(path: Path) -> IO[bytes]:
    """Open a regular file to be read.

    A device or a pipe may have no end, or never a first byte. Raises InputError without a path if it is one, OSError
    if it cannot be read.
    """
    file = os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb")
    mode = os.fstat(file.fileno()).st_mode
    if stat.S_ISREG(mode):
        return file
    file.close()
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    raise InputError(expected="a regular file", found="a device, pipe or socket", remedy="copy it to a file")


def read_regular(path: Path, *, limit: int) -> bytes:
    """Return the bytes of a regular file of at most `limit` bytes.

    Raises InputError without a path if it is another kind of file or larger, OSError if it cannot be read.
    """
    with open_regular(path) as file:
        said = os.fstat(file.fileno()).st_size
        content = file.read(said + 1) if said <= limit else b""  # a larger argument is allocated
    if (size := max(said, len(content))) > limit:
        raise InputError(expected=f"at most {limit:,} bytes", found=f"{size:,}")
    return content


def read_text(path: Path, expected: str, *, error: type[InputError] = InputError, limit: int = DOCUMENT_BYTES) -> str:
    """Return the UTF-8 text of a file; raise `error` if it cannot be read, is larger than `limit`, or is no text."""
    with reading(path, expected, error=error):
        return read_regular(path, limit=limit).decode("utf-8")


def read_json(path: Path, expected: str, *, error: type[InputError] = InputError, limit: int = DOCUMENT_BYTES) -> Any:
    """Return the value of a JSON file; raise `error` as `read_text`, or if it is not what `parse_json` takes."""
    with reading(path, expected, error=error):
        return parse_json(read_regular(path, limit=limit).decode("utf-8"))


def parse_json(text: str | bytes) -> Any:
    """Return the value of JSON of at most `DEEPEST` levels, with whole numbers of 64 bits and each key once.

    Raises InputError without a path, or ValueError, for any other.
    """
    try:
        value = json.loads(text, parse_int=_whole, object_pairs_hook=_once)
    except RecursionError:
        raise _too_deep() from None
    level = [value]
    for _ in range(DEEPEST):
        level = [
            item
            for each in level
            if isinstance(each, dict | list)
            for item in (each.values() if isinstance(each, dict) else each)
            if isinstance(item, dict | list)
        ]
        if not level:
            return value
    raise _too_deep()


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):  # json keeps the last, and loses what the others say
        twice = next(key for number, (key, _) in enumerate(pairs) if any(key == other for other, _ in pairs[:number]))
        raise ValueError(f"expected each key once, found {twice!r:.80} again")
    return found


def _whole(digits: str) -> int:
    if len(digits) > 20 or not -(1 << 63) <= (value := int(digits)) < 1 << 64:
        raise InputError(expected="whole numbers of 64 bits", found=f"one of {len(digits):,} digits")
    return value


def _too_deep() -> InputError:
    return InputError(expected=f"at most {DEEPEST} levels of lists and objects", found="more")


# --- archives ---------------------------------------------------------------------------------------------------------


class Metered:
    """A file of which at most `left` more bytes are read: a parser reads what a header says, however much it is."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.left: float = math.inf

    def read(self, size: int = -1) -> bytes:
        """Read; raise InputError without a path if that is more than is left."""
        if self.left == math.inf:
            return self._file.read(size)
        content = self._file.read(min(size, int(self.left) + 1) if size >= 0 else int(self.left) + 1)
        if len(content) > self.left:
            raise InputError(expected="headers of a plain size", found=f"more than {int(self.left):,} bytes of them")
        self.left -= len(content)
        return content

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


def open_zip(file: IO[bytes]) -> zipfile.ZipFile:
    """Open a zip archive whose members are stored or deflated, and not encrypted, with a directory of a bounded size.

    zipfile decompresses other methods without a bound. Raises what zipfile does, or InputError without a path.
    """
    metered: Any = Metered(file)
    metered.left = DIRECTORY_BYTES
    archive = zipfile.ZipFile(metered)
    metered.left = math.inf
    for member in archive.infolist():
        if member.flag_bits & 0x1:
            raise InputError(expected="no encryption", found=f"{member.filename!r:.200} encrypted")
        if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise InputError(
                expected="members that are stored or deflated",
                found=f"{member.filename!r:.200} of compression method {member.compress_type}",
            )
    return archive


def read_members(archive: zipfile.ZipFile, members: Iterable[zipfile.ZipInfo], *, limit: int) -> dict[str, bytes]:
    """Return members of an archive of `open_zip` by name, which have at most `limit` bytes together.

    Raises what zipfile does, or InputError without a path.
    """
    members = list(members)
    if (size := sum(member.file_size for member in members)) > limit:
        raise InputError(expected=f"at most {limit:,} bytes unpacked", found=f"{size:,}, a decompression bomb")
    contents = {}
    for member in members:
        with archive.open(member) as packed:
            contents[member.filename] = packed.read(member.file_size)  # without a size, all that it unpacks to
            if packed.read(1) or len(contents[member.filename]) != member.file_size:
                raise InputError(
                    expected=f"{member.file_size:,} bytes of {member.filename!r:.200}", found="more or fewer"
                )
    return contents


# --- arrays -----------------------------------------------------------------------------------------------------------


def parse_npy(content: bytes) -> NDArray[Any]:
    """Return the read-only array of an .npy, over these bytes: a header that promises more allocates nothing.

    Raises ValueError, or what numpy's parser of headers does: it reads a Python literal.
    """
    import io

    import numpy as np

    file = io.BytesIO(content)
    version = np.lib.format.read_magic(file)
    read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran, dtype = read_header(file)
    if dtype.hasobject or any(size < 0 for size in shape):
        raise ValueError(f"an array of type {dtype} and shape {shape}")
    count, left = math.prod(shape), len(content) - file.tell()
    if count * dtype.itemsize > left:
        raise ValueError(f"{left:,} bytes of values for the shape {shape} of {dtype}")
    if not dtype.itemsize:  # empty texts
        if count > left + DOCUMENT_BYTES:
            raise ValueError(f"{count:,} empty values")
        return np.zeros(shape, dtype)
    return np.frombuffer(content, dtype, count, file.tell()).reshape(shape, order="F" if fortran else "C")


def read_npz(
    path: Path, expected: str, *, names: Collection[str] | None = None, error: type[InputError] = InputError
) -> dict[str, NDArray[Any]]:
    """Return the arrays of an .npz, all of them or those of `names` that it has; nothing in it is unpickled.

    Raises `error` if the file cannot be read, is no .npz, or unpacks to more than `most_unpacked` of its size.
    """
    with reading(path, expected, error=error), open_regular(path) as file, open_zip(file) as archive:
        members = {member.filename.removesuffix(".npy"): member for member in archive.infolist()}
        wanted = [member for name, member in members.items() if names is None or name in names]
        contents = read_members(archive, wanted, limit=most_unpacked(os.fstat(file.fileno()).st_size))
        return {name.removesuffix(".npy"): parse_npy(content) for name, content in contents.items()}
