"""Run a command: collect the command groups, and turn errors into one line and an exit code."""

from __future__ import annotations

import errno
import importlib
import logging
import os
import sys
import traceback
import types
from collections.abc import Sequence
from typing import Annotated, Any

import typer
import typer.core

import edgeface
from edgeface.cli.output import LogFormatter, emit_json, guarded_streams
from edgeface.errors import (
    EdgeFaceError,
    InputError,
    MissingError,
    ModelFormatError,
    NegativeResult,
    OutputError,
    RequestError,
)
from edgeface.limits import shortage
from edgeface.text import hide_secrets, printable

_COMMANDS = {
    "demo": ("demo",),
    "zoo": ("zoo",),
    "convert": ("convert", "adopt", "inspect"),
    "devices": ("devices", "doctor"),
    "detect": ("detect", "align"),
    "embed": ("embed", "verify"),
    "quantize": ("quantize", "pareto"),
    "evaluate": ("evaluate",),
    "calibrate": ("calibrate",),
    "cluster": ("cluster",),
    "gallery": ("gallery",),
    "identify": ("identify",),
    "liveness": ("liveness",),
    "bench": ("bench",),
    "plan": ("plan",),
    "train": ("train",),
    "export": ("export",),
    "serve": ("serve",),
    "events": ("events",),
    "watch": ("watch",),
    "appliance": ("appliance",),
}
"""Commands of each module of `edgeface.cli`. Only the module that is needed is imported: commands start faster."""

_UsageError: Any = typer.BadParameter.__base__
"""click's class, of which some releases of typer carry a copy."""


class _Commands(typer.core.TyperGroup):
    """Lets Ctrl-C and broken pipes through to `main`; typer would exit with 130 and 1 without a message."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as error:
            raise typer.Abort from error
        except OSError as error:
            if error.errno != errno.EPIPE:
                raise
            raise RuntimeError(f"a program that edgeface talked to has gone: {error}") from error


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"edgeface {edgeface.__version__}")
        raise typer.Exit


def _options(
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Write a log to stderr.")] = False,
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_show_version, is_eager=True)
    ] = False,
) -> None:
    handler = logging.StreamHandler()
    handler.setFormatter(LogFormatter("%(levelname)s %(name)s: %(message)s"))
    logging.basicConfig(level=logging.DEBUG if verbose else logging.WARNING, handlers=[handler])


def _build_app(arguments: Sequence[str]) -> typer.Typer:
    app = typer.Typer(
        name="edgeface",
        cls=_Commands,
        help="Face recognition on OpenVINO: convert published models, verify, identify, evaluate and benchmark.",
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        rich_markup_mode="rich",
    )
    app.callback()(_options)
    command = next((argument for argument in arguments if not argument.startswith("-")), None)
    wanted = [module for module, commands in _COMMANDS.items() if command in commands]
    for module in wanted or _COMMANDS:
        importlib.import_module(f"edgeface.cli.{module}").register(app)
    if not wanted:
        _keep_summaries(app)
    return app


def _keep_summaries(app: typer.Typer) -> None:
    """Leave out the options of all commands, which the list of commands does not show: they take time to read."""
    for command in app.registered_commands:
        assert command.callback is not None
        summary = types.FunctionType((lambda: None).__code__, {}, command.callback.__name__)
        summary.__doc__ = command.callback.__doc__
        command.callback = summary
    for group in app.registered_groups:
        assert group.typer_instance is not None
        group.typer_instance = typer.Typer(help=group.typer_instance.info.help)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Returns
    -------
    int
        0 done, 1 the answer is no, 2 wrong use or bad input, or the answer could not be written, 3 something needed
        is missing, 4 an internal failure, 130 interrupted, 143 terminated.
    """
    of_program = arguments is None
    if of_program and "openvino" not in sys.modules:
        # The converter that OpenVINO brings takes 0.1 s to import; no command uses it, and OpenVINO goes without.
        sys.modules.setdefault("openvino.tools.ovc", None)  # type: ignore[arg-type]
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    with guarded_streams() as (stdout, stderr):
        if short := shortage():  # a library may crash at it, or wait for ever
            stderr.write(f"edgeface: note: {short}\n")
            if of_program:
                _end_with_3_if_a_library_exits(short, as_json="--json" in arguments)
        code = _run(arguments, as_json="--json" in arguments)
        if (reason := stdout.lost()) and code in (0, NegativeResult.exit_code):  # an answer that nobody has seen
            code = OutputError.exit_code
            stderr.write(f"edgeface: cannot write the answer to stdout: {reason}; the command itself ended\n")
        stderr.flush()
    if short and of_program:  # what is registered with the C library calls Python, which will have ended
        os._exit(code)
    return code


def _end_with_3_if_a_library_exits(short: str, *, as_json: bool) -> None:
    """End the process with 3 if a library ends it: OpenBLAS calls C's ``exit(1)`` without memory, and 1 means "no"."""
    import ctypes

    def end() -> None:
        message = f"{short}; raise this limit. A library ended the program"
        code = _fail(message, kind="MissingError", code=3, as_json=as_json)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)

    register = getattr(ctypes.CDLL(None), "__cxa_atexit", None)  # 'atexit' itself is no symbol of glibc
    if register is not None:
        _kept.append(ctypes.CFUNCTYPE(None)(end))
        register(_kept[-1], None, None)


_kept: list[object] = []
"""Functions that the C library calls."""


_SIGNALLED = 128
"""A command that a signal ended has this exit code plus the signal's number, as in a shell."""


def _run(arguments: list[str], *, as_json: bool) -> int:
    try:
        result = _build_app(arguments)(args=arguments, prog_name="edgeface", standalone_mode=False)
    except EdgeFaceError as error:
        if isinstance(error, (MissingError, ModelFormatError, RequestError)) and (short := _lacks(error)):
            return _fail(short, kind="MissingError", code=3, as_json=as_json)
        return _fail(str(error), kind=type(error).__name__, code=error.exit_code, as_json=as_json)
    except _UsageError as error:
        usage = error.ctx.get_usage() if error.ctx else "Usage: edgeface --help"
        sys.stderr.write(printable(usage) + "\n")
        message = error.format_message() or "expected a command"
        return _fail(message, kind="UsageError", code=2, as_json=as_json)
    except (KeyboardInterrupt, typer.Abort) as error:
        if short := _lacks(error.__cause__ or error):
            return _fail(short, kind="MissingError", code=3, as_json=as_json)
        return _fail("interrupted", kind="KeyboardInterrupt", code=130, as_json=as_json)
    except (Exception, SystemExit) as error:
        if isinstance(error, OSError) and error.errno == errno.ENAMETOOLONG:
            found = f"{error.filename!s:.60}..." if error.filename else "a longer one"
            message = f"expected names of files of at most 255 bytes, with what edgeface adds to them, found {found}"
            return _fail(message, kind="InputError", code=InputError.exit_code, as_json=as_json)
        if isinstance(error, SystemExit) and isinstance(error.code, int) and error.code > _SIGNALLED:
            return _fail("terminated", kind="Terminated", code=error.code, as_json=as_json)
        if short := _lacks(error):
            return _fail(short, kind="MissingError", code=3, as_json=as_json)
        sys.stderr.write(printable(hide_secrets(traceback.format_exc()), keep="\n"))
        return _fail(
            f"internal failure: {error!r}; this is a bug in edgeface, the lines above say where",
            kind=type(error).__name__,
            code=4,
            as_json=as_json,
        )
    return result if isinstance(result, int) else 0


def _lacks(error: BaseException) -> str | None:
    """Return what this machine or installation lacks, if that is what an error comes from."""
    if short := shortage():
        importing = any(frame.f_code.co_name == "<module>" for frame, _ in traceback.walk_tb(error.__traceback__))
        # OpenBLAS, which NumPy and SciPy load, sends this process a SIGINT if it cannot start its threads.
        if importing or not isinstance(error, KeyboardInterrupt):
            return f"{short}; raise this limit. It ended with: {str(error) or type(error).__name__}"
    if isinstance(error, MemoryError):
        return f"expected enough memory, found no more; free some, or use smaller photos or batches ({error})"
    module = error.name if isinstance(error, ImportError) else None
    if isinstance(error, AttributeError) and isinstance(error.obj, types.ModuleType) and error.obj.__file__ is None:
        module = error.obj.__name__  # of which only the folder is left
    if module and module.partition(".")[0] != "edgeface":
        return f"this installation is damaged: {error}; 'edgeface doctor' says what to install again"
    return None


def _fail(message: str, *, kind: str, code: int, as_json: bool) -> int:
    message = hide_secrets(message)
    sys.stderr.write(f"edgeface: {printable(message)}\n")
    if as_json:
        emit_json({"error": {"kind": kind, "message": message}})
    return code
