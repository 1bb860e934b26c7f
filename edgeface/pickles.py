"""Read pickles of plain values and numpy arrays; nothing in a file can run.

Python's `pickle` imports and calls what a file names. Here a pickle's operations are interpreted one by one
(`pickletools` decodes them), a name is only a key into a table of the few constructors that numpy writes into such
files, and those make views of the file's own bytes. So a value needs no more memory than a small multiple of its file,
and every value is checked to be plain before it is returned.
"""

from __future__ import annotations

import io
import math
import pickletools
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgeface.errors import InputError
from edgeface.untrusted import DEEPEST, MODEL_BYTES, PICKLE_OPERATIONS, PICKLE_SHARED, read_regular, reading


def read_pickle(path: Path) -> Any:
    """Read a pickle of containers, numbers, text and numpy arrays; nothing in it can run.

    Parameters
    ----------
    path
        A pickle of protocol 0 to 5, at most 2 GiB.

    Returns
    -------
    Any
        Lists, tuples and dictionaries (with keys of text or integers) of None, booleans, numbers, text, bytes, and
        read-only numpy arrays of booleans, numbers or text. A numpy scalar becomes a Python number; a
        one-dimensional array of objects becomes a list; an OrderedDict and a defaultdict become dictionaries.

    Raises
    ------
    InputError
        If the file cannot be read, is damaged, holds anything else, or would expand to far more than its own size.

    Examples
    --------
    >>> import pickle, tempfile
    >>> path = Path(tempfile.mkdtemp(), "encodings.pkl")
    >>> _ = path.write_bytes(pickle.dumps({"names": ["Ann"], "encodings": [np.zeros(128)]}))
    >>> read_pickle(path)["encodings"][0].shape
    (128,)
    >>> _ = path.write_bytes(pickle.dumps(print))
    >>> read_pickle(path)  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    edgeface.errors.InputError: ...of only containers, numbers, text and numpy arrays, found builtins.print...
    """
    expected = "a file of only containers, numbers, text and numpy arrays"
    with reading(path, expected, remedy="save it again with nothing else in it"):
        content = read_regular(path, limit=MODEL_BYTES)
        return PickleInterpreter(io.BytesIO(content), CONSTRUCTORS).load()


# The interpreter

_LITERALS = {
    *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
    *("STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"),
    *("BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"),
}
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
_PLAIN: frozenset[type] = frozenset({dict, list, tuple, type(None), bool, int, float, str, bytes, np.ndarray})


@dataclass(frozen=True, slots=True)
class PickleName:
    """A class or function that a pickle refers to, by name."""

    name: str


class _Pending:
    """A numpy array or dtype between its creation and the BUILD that gives it its state."""

    def __init__(self, build: Callable[[Any], Any], value: Any = None) -> None:
        self.build, self.value = build, value


class PickleInterpreter:
    """Runs one pickle's operations on plain values; `constructors` are all that it can call."""

    def __init__(
        self,
        file: io.BytesIO,
        constructors: Mapping[str, Callable[..., Any]],
        *,
        persistent: Callable[[Any], Any] | None = None,
        kept: frozenset[type] = frozenset(),
    ) -> None:
        self._file, self._constructors, self._persistent = file, constructors, persistent
        self._kept = _PLAIN | kept
        start, self._size = file.tell(), file.seek(0, io.SEEK_END)
        file.seek(start)
        self._operations = {each.name: getattr(self, f"_run_{each.name.lower()}", None) for each in pickletools.opcodes}
        self._copied = 0
        self._stack: list[Any] = []
        self._marks: list[int] = []
        self._memo: dict[int, Any] = {}

    def load(self) -> Any:
        """Return the value of the pickle that starts at the file's position; raise InputError, or what damage does."""
        stack = self._stack
        for count, (operation, argument, _) in enumerate(pickletools.genops(self._file)):
            if count > PICKLE_OPERATIONS:
                raise InputError(
                    found=f"a pickle of more than {PICKLE_OPERATIONS:,} values",
                    remedy="save numbers as numpy arrays instead of lists",
                )
            name = operation.name
            if name in _LITERALS:
                stack.append(bytes(argument) if type(argument) is bytearray else argument)
            elif name in _CONSTANTS:
                stack.append(_CONSTANTS[name])
            elif (run := self._operations[name]) is not None:
                run(argument)
            else:
                raise unexpected(f"the pickle operation {name}")
        value = self._popped()
        _require_plain(value, self._kept, PICKLE_SHARED + 8 * self._size)
        return value

    def _popped(self) -> Any:
        return _settled(self._stack.pop())

    def _popped_to_mark(self) -> list[Any]:
        at = self._marks.pop()
        items = [_settled(item) for item in self._stack[at:]]
        del self._stack[at:]
        return items

    def _run_proto(self, _: Any) -> None:
        """The version of the format; every operation says itself what it is."""

    _run_frame = _run_stop = _run_proto

    def _run_mark(self, _: Any) -> None:
        self._marks.append(len(self._stack))

    def _run_pop(self, _: Any) -> None:
        if self._marks and self._marks[-1] == len(self._stack):
            self._marks.pop()
        else:
            self._stack.pop()

    def _run_pop_mark(self, _: Any) -> None:
        self._popped_to_mark()

    def _run_dup(self, _: Any) -> None:
        self._stack.append(self._stack[-1])

    # Containers

    def _run_empty_list(self, _: Any) -> None:
        self._stack.append([])

    def _run_empty_dict(self, _: Any) -> None:
        self._stack.append({})

    def _run_list(self, _: Any) -> None:
        self._stack.append(self._popped_to_mark())

    def _run_tuple(self, _: Any) -> None:
        self._stack.append(tuple(self._popped_to_mark()))

    def _run_tuple1(self, _: Any) -> None:
        self._stack.append((self._popped(),))

    def _run_tuple2(self, _: Any) -> None:
        second, first = self._popped(), self._popped()
        self._stack.append((first, second))

    def _run_tuple3(self, _: Any) -> None:
        third, second, first = self._popped(), self._popped(), self._popped()
        self._stack.append((first, second, third))

    def _run_dict(self, _: Any) -> None:
        items = self._popped_to_mark()
        self._stack.append({})
        self._set_items(items)

    def _run_append(self, _: Any) -> None:
        self._extend([self._popped()])

    def _run_appends(self, _: Any) -> None:
        self._extend(self._popped_to_mark())

    def _extend(self, items: list[Any]) -> None:
        if type(self._stack[-1]) is not list:
            raise ValueError("items are appended to something that is no list")
        self._stack[-1].extend(items)

    def _run_setitem(self, _: Any) -> None:
        self._set_items([self._popped(), self._popped()][::-1])

    def _run_setitems(self, _: Any) -> None:
        self._set_items(self._popped_to_mark())

    def _set_items(self, items: list[Any]) -> None:
        target = self._stack[-1]
        if type(target) is not dict:
            raise ValueError("items are set in something that is no dictionary")
        for key, value in zip(items[::2], items[1::2], strict=True):
            # Long integers can be chosen so that all of them have one hash.
            if not (type(key) is str or (type(key) is int and -(2**63) <= key < 2**63)):
                raise unexpected(f"a dictionary with a key of type {type(key).__name__}")
            target[key] = value

    # The memo

    def _run_put(self, index: int) -> None:
        self._memo[index] = self._stack[-1]

    _run_binput = _run_long_binput = _run_put

    def _run_memoize(self, _: Any) -> None:
        self._memo[len(self._memo)] = self._stack[-1]

    def _run_get(self, index: int) -> None:
        self._stack.append(_settled(self._memo[index]))

    _run_binget = _run_long_binget = _run_get

    # Names and what is made by them

    def _run_global(self, names: str) -> None:
        self._stack.append(self._name(*names.split(" ", 1)))

    def _run_stack_global(self, _: Any) -> None:
        name, module = self._popped(), self._popped()
        self._stack.append(self._name(module, name))

    def _name(self, module: Any, name: Any) -> PickleName:
        full = f"{_MODULES.get(module, module)}.{name}" if type(module) is type(name) is str else ""
        if full not in self._constructors:
            raise unexpected(full[:200] or "a name that is no text")
        return PickleName(full)

    def _run_reduce(self, _: Any) -> None:
        arguments, function = self._popped(), self._popped()
        if type(arguments) is not tuple or type(function) is not PickleName:
            raise unexpected("a call of a value")
        if (copied := _COPIED.get(function.name)) is not None:
            self._charge(arguments[copied])
        self._stack.append(self._constructors[function.name](*arguments))

    def _run_build(self, _: Any) -> None:
        state, target = self._popped(), self._stack[-1]
        if type(target) is _Pending and type(state) is tuple:
            if type(state[-1]) is str:
                self._charge(state[-1])
            self._stack[-1] = target.value = target.build(state)
        elif type(target) is not dict:  # attributes of an OrderedDict, such as torch's _metadata, are not kept
            raise unexpected(f"a state for a value of type {type(target).__name__}")

    def _charge(self, copied: Any) -> None:
        """Count a text or bytes that a call copies, as every call could copy the same ones."""
        self._copied += len(copied)
        if self._copied > 2 * self._size:
            raise _expands()

    def _run_binpersid(self, _: Any) -> None:
        if self._persistent is None:
            raise unexpected("a reference to something outside the pickle")
        self._stack.append(self._persistent(self._popped()))


def _settled(value: Any) -> Any:
    """Return what a pending value became, or the value."""
    return value.value if type(value) is _Pending and value.value is not None else value


def _require_plain(value: Any, kept: frozenset[type], budget: int) -> None:
    """Refuse anything but plain values, deep nesting, and shared values that expand to more than `budget` bytes.

    Values are counted as often as they are reached, so a circle ends here too.
    """
    levels = [iter([value])]
    while levels:
        for item in levels[-1]:
            kind = type(item)
            budget -= 8 + (len(item) if kind in (str, bytes) else item.nbytes if kind is np.ndarray else 0)
            if budget < 0:
                raise _expands()
            if kind not in kept:
                raise unexpected(item.name if kind is PickleName else "an unfinished value")
            if kind is int and item.bit_length() > 128:
                raise unexpected(f"an integer of {item.bit_length():,} bits")
            if kind is np.ndarray and item.dtype.kind == "U":
                item.tolist()  # raises ValueError for numbers that are no characters
            if kind in (dict, list, tuple) and item:
                levels.append(iter(item.values() if kind is dict else item))
                if len(levels) > DEEPEST:
                    raise unexpected(f"containers that are nested more than {DEEPEST} levels deep")
                break
        else:
            levels.pop()


def unexpected(found: str) -> InputError:
    """Make the error for something in a file that is not read from it."""
    return InputError(found=f"{found}; nothing in the file was run")


def _expands() -> InputError:
    return InputError(found="values that expand to many times the size of the file")


# What numpy and Python write

_MODULES = {
    "__builtin__": "builtins",
    "numpy._core.multiarray": "numpy.core.multiarray",
    "numpy._core.numeric": "numpy.core.numeric",
}
"""Names of modules in other versions of Python and numpy."""
_DTYPE = re.compile(r"b1|[iu][1248]|f[248]|U\d{1,6}|O8?")


def _dtype(code: Any, *_: Any) -> _Pending:
    if type(code) is not str or not _DTYPE.fullmatch(code):
        raise unexpected(f"a numpy array of type {code!r}" if type(code) is str else "a numpy type without a code")
    dtype = np.dtype(code)

    def build(state: tuple[Any, ...]) -> np.dtype[Any]:
        return dtype.newbyteorder(state[1]) if state[1] in ("<", ">") else dtype

    return _Pending(build, dtype)


def _array(dtype: Any, data: Any, shape: Any, *, fortran: bool) -> Any:
    """Return a read-only view of `data`, which must have as many bytes as it needs; for objects, their list."""
    if not isinstance(dtype, np.dtype) or type(shape) is not tuple:
        raise ValueError("an array without a type or a shape")
    if dtype.hasobject and type(data) is list and shape == (len(data),):
        return data
    if dtype.hasobject or type(data) is not bytes:
        raise unexpected("a numpy array of other objects than numbers and texts")
    if dtype.itemsize == 0 or count_of(shape) * dtype.itemsize != len(data):
        raise ValueError(f"an array of shape {shape} and type {dtype} with {len(data):,} bytes of values")
    return np.frombuffer(data, dtype).reshape(shape, order="F" if fortran else "C")


def count_of(shape: tuple[Any, ...]) -> int:
    """Return the number of values of a shape; ValueError if it is none."""
    if len(shape) > 32 or any(type(size) is not int or not 0 <= size < 2**63 for size in shape):
        raise ValueError("a shape that is none")
    return math.prod(shape)


def _bytes_of(data: Any) -> Any:
    """Return the bytes that Python 2 wrote as text, or the argument."""
    return data.encode("latin-1") if type(data) is str else data


def _reconstruct(*_: Any) -> _Pending:
    return _Pending(lambda state: _array(state[2], _bytes_of(state[4]), state[1], fortran=bool(state[3])))


def _scalar(dtype: Any, data: Any) -> Any:
    (value,) = np.asarray(_array(dtype, _bytes_of(data), (1,), fortran=False)).tolist()
    return value


def _from_buffer(data: Any, dtype: Any, shape: Any, order: Any, *_: Any) -> Any:
    return _array(dtype, data, shape, fortran=order == "F")


def _encode(text: str, encoding: str) -> bytes:
    if type(text) is not str or encoding not in ("latin1", "latin-1"):
        raise unexpected("an encoded text")
    return text.encode("latin-1")


def _empty_bytes() -> bytes:
    return b""


def _dictionary(*arguments: Any) -> dict[Any, Any]:
    """An OrderedDict, written empty and filled later, or a defaultdict; its factory is not kept."""
    if len(arguments) > 1 or any(type(argument) is not PickleName for argument in arguments):
        raise unexpected("a dictionary with a content of its own")
    return {}


def uncalled(*_: Any) -> Any:
    """Stand for a class that a pickle may refer to, and not call."""
    raise unexpected("a call of a class that is only referred to")


_COPIED = {"_codecs.encode": 0, "numpy.core.multiarray.scalar": 1}
"""Which argument of a constructor is copied by it."""

CONSTRUCTORS: Mapping[str, Callable[..., Any]] = {
    "numpy.core.multiarray._reconstruct": _reconstruct,
    "numpy.core.multiarray.scalar": _scalar,
    "numpy.core.numeric._frombuffer": _from_buffer,
    "numpy.dtype": _dtype,
    "numpy.ndarray": uncalled,
    "_codecs.encode": _encode,
    "builtins.bytes": _empty_bytes,
    "builtins.list": uncalled,
    "builtins.int": uncalled,
    "collections.OrderedDict": _dictionary,
    "collections.defaultdict": _dictionary,
}
