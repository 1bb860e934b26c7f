"""`edgeface` as a user types it, run in this process: a tenth of the time of a program of its own."""

from __future__ import annotations

import contextlib
import io
import subprocess
from unittest import mock

from edgeface.cli import main


def edgeface(*words: object, columns: int = 120) -> subprocess.CompletedProcess[str]:
    """Run one command on a terminal of `columns` without colours; what it wrote, and its exit code."""
    stdout, stderr = io.StringIO(), io.StringIO()
    arguments = [str(word) for word in words]
    with (
        mock.patch.dict("os.environ", {"NO_COLOR": "1", "COLUMNS": str(columns)}),
        contextlib.redirect_stdout(stdout),
        contextlib.redirect_stderr(stderr),
    ):
        code = main(arguments)
    return subprocess.CompletedProcess(arguments, code, stdout.getvalue(), stderr.getvalue())
