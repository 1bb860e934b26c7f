"""Read the code blocks of a Markdown page and run them.

A comment directly before a block says how it is treated:

``<!-- not run: REASON -->``
    Python is compiled, commands are parsed; nothing is executed.
``<!-- needs: MODULE -->``
    Not executed where the module is not installed.
``<!-- exit: 1 -->``
    The exit code of the block's last command.
``<!-- output -->``
    The block is what the block before it prints: words are compared exactly, numbers within two per cent.
``<!-- setup``, lines of Python, ``-->``
    Executed with the page and not shown in it.
"""

from __future__ import annotations

import ast
import asyncio
import contextlib
import importlib.util
import inspect
import io
import math
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import typer
import typer.main

from edgeface.cli import app

ROOT = Path(__file__).resolve().parents[2]
NOT_CHECKED = ("yaml", "json", "text", "toml", "ini", "")
"""Languages of blocks that are shown and hold nothing to execute."""


def pages() -> list[Path]:
    """Every Markdown document of the repository that has code in it."""
    found = [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("examples/*.md")]
    return sorted(path for path in found if path.name != "CHANGELOG.md")


@dataclass
class Block:
    """A fenced block of a page, with what the comments before it say."""

    page: Path
    line: int
    language: str
    text: str
    not_run: str | None = None
    needs: list[str] = field(default_factory=list)
    exit_code: int = 0
    output: bool = False

    @property
    def place(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"

    @property
    def missing(self) -> list[str]:
        """Modules that the block needs and that are not installed."""
        return [name for name in self.needs if importlib.util.find_spec(name) is None]

    def commands(self) -> list[list[str]]:
        """The lines of a shell block as words, without comments."""
        lines = self.text.replace("\\\n", " ").splitlines()
        return [words for line in lines if (words := shlex.split(line, comments=True))]


_FENCE = re.compile(r"^(?P<indent> *)```(?P<language>\w*)[^\n]*\n(?P<text>.*?)^(?P=indent)```", re.M | re.S)
_COMMENT = re.compile(r"<!--(.*?)-->\s*$", re.S)


def blocks(page: Path, text: str | None = None) -> Iterator[Block]:
    """Yield the blocks of a page in order; hidden set-up code is a block too."""
    text = page.read_text(encoding="utf-8") if text is None else text
    for fence in _FENCE.finditer(text):
        line = text.count("\n", 0, fence.start()) + 1
        code = re.sub(rf"^{fence['indent']}", "", fence["text"], flags=re.M)
        block = Block(page, line, fence["language"], code)
        before = text[: fence.start()]
        setups: list[str] = []
        while comment := _COMMENT.search(before):
            start = before.rindex("<!--")
            words = before[start + 4 : comment.end()].rstrip().removesuffix("-->").strip()
            before = before[:start]
            if words.startswith("setup"):
                setups.insert(0, words.removeprefix("setup"))
            else:
                _apply(block, words)
        for setup in setups:
            yield Block(page, line, "python", setup)
        yield block


def _apply(block: Block, comment: str) -> None:
    kind, _, value = comment.partition(":")
    value = value.strip()
    if kind == "not run" and value:
        block.not_run = value
    elif kind == "needs" and value:
        block.needs.append(value)
    elif kind == "exit":
        block.exit_code = int(value)
    elif comment == "output":
        block.output = True
    else:
        raise ValueError(f"{block.place}: comment {comment!r} before a block is none that the tests know")


def inline_code(page: Path) -> list[str]:
    """`code` in the running text and in tables."""
    text = _FENCE.sub("", page.read_text(encoding="utf-8"))
    return [" ".join(code.split()) for code in re.findall(r"`([^`]+)`", text.replace("\\|", "|"))]


# --- commands ------------------------------------------------------------------------------------------------------


def find_command(words: list[str]) -> tuple[Any, list[str]]:
    """The command that these words name, and the words after it. Fails with ValueError if there is none."""
    typer_app = app._build_app(words)
    command: Any = typer.main.get_command(typer_app)
    rest = list(words)
    while hasattr(command, "commands"):
        while rest and rest[0].startswith("-") and rest[0] not in ("--help", "--version"):
            rest = rest[1:]
        if not rest or rest[0] in ("--help", "--version"):
            return command, rest
        if rest[0] not in command.commands:
            raise ValueError(f"edgeface has no command {rest[0]!r} here: {' '.join(words)}")
        command, rest = command.commands[rest[0]], rest[1:]
    return command, rest


def options_of(command: Any) -> set[str]:
    """Every flag that the command takes."""
    names = {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)}
    return {*names, "--help"}


def check_command(words: list[str]) -> None:
    """Parse a command line the way the program does, without running it."""
    command, rest = find_command(words)
    if "--help" in rest or "--version" in rest:
        return
    command.make_context(command.name, list(rest))


def check_mentioned(words: list[str]) -> None:
    """Check a command that is only named in a sentence: the command and its flags exist; values may be left out."""
    alternatives = next((word for word in words if "|" in word and not word.startswith("-")), None)
    if alternatives is not None:
        for each in alternatives.split("|"):
            check_mentioned([each if word == alternatives else word for word in words])
        return
    command, rest = find_command(words)
    unknown = {word for word in rest if word.startswith("-") and len(word) > 1} - options_of(command)
    if unknown:
        raise ValueError(f"edgeface {' '.join(words)}: no option {', '.join(sorted(unknown))}")


def check_line(words: list[str]) -> str:
    """Check one line of a shell block; return ``edgeface`` if it can be run here, else why it is not.

    Raises ValueError for a line that nothing here knows how to check: it needs `not run`.
    """
    program, *rest = words
    while "=" in program and not program.startswith("-") and rest:  # NAME=value command
        program, *rest = rest
    if program == "edgeface":
        check_command(rest)
        return "edgeface"
    if program == "make":
        targets = [word for word in rest if "=" not in word and not word.startswith("-")]
        known = re.findall(r"^([\w.-]+):", (ROOT / "Makefile").read_text(), re.M)
        if not targets or not set(targets) <= set(known):
            raise ValueError(f"make {' '.join(rest)}: the Makefile has {', '.join(known)}")
        return "it takes minutes"
    if program == "python" and rest and rest[0].endswith(".py"):
        check_script(rest)
        return "it takes minutes, or is run by the tests of examples/"
    if program == "python" and rest[:1] == ["-c"]:
        compile(rest[1], "-c", "exec")
        return "python"
    if program == "pip" and rest[:1] == ["install"]:
        check_extras(" ".join(rest))
        return "it needs the network"
    if (ROOT / program).is_file():
        return "it takes minutes"
    raise ValueError(f"{' '.join(words)}: a line that is not checked; say why with <!-- not run: REASON -->")


def check_script(words: list[str]) -> None:
    """A script of this repository exists and knows the flags that it is given."""
    script = ROOT / words[0]
    if not script.is_file():
        raise ValueError(f"python {words[0]}: no such file")
    source = script.read_text(encoding="utf-8")
    shared = ROOT / "benchmarks" / "_run.py"
    known = source + (shared.read_text(encoding="utf-8") if script.parent.name == "benchmarks" else "")
    for word in words[1:]:
        flag = word.split("=")[0]
        if flag.startswith("--") and f'"{flag}"' not in known:
            raise ValueError(f"python {' '.join(words)}: no option {flag}")


def check_extras(text: str) -> None:
    """Extras in square brackets are those of pyproject.toml."""
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    section = project.split("[project.optional-dependencies]")[1].split("\n[")[0]
    known = set(re.findall(r"^([\w-]+) = \[", section, re.M))
    for extras in re.findall(r"(?:edgeface|\.)\[([\w,-]+)\]", text):
        if unknown := set(extras.split(",")) - known:
            raise ValueError(f"{text}: no extra {', '.join(sorted(unknown))} in pyproject.toml")


# --- running -------------------------------------------------------------------------------------------------------


def run_page(page: Path, namespace: dict[str, Any], text: str | None = None) -> int:
    """Run the blocks of a page in order, in the current folder; return how many were run."""
    printed, count = "", 0
    for block in blocks(page, text):
        if block.output:
            assert same_output(printed, block.text), f"{block.place}: expected\n{block.text}\nfound\n{printed}"
        elif block.not_run or block.missing:
            printed = ""
        elif block.language == "python":
            printed = _run_python(block, namespace)
            count += 1
        elif block.language in ("sh", "console", "bash", "shell"):
            lines, printed = block.commands(), ""
            for number, words in enumerate(lines, start=1):
                if check_line(words) == "edgeface":
                    expected = block.exit_code if number == len(lines) else 0
                    printed += _run_command(block, words, expected)
                    count += 1
    return count


def _run_python(block: Block, namespace: dict[str, Any]) -> str:
    where = f"{block.page}:{block.line}"
    padded = "\n" * block.line + block.text
    code = compile(padded, where, "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        if code.co_flags & inspect.CO_COROUTINE:
            asyncio.run(eval(code, namespace))
        else:
            exec(code, namespace)
    return out.getvalue()


def _run_command(block: Block, words: list[str], expected: int) -> str:
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = app.main(words[words.index("edgeface") + 1 :])
    assert code == expected, f"{block.place}: {' '.join(words)}: exit code {code}\n{out.getvalue()}{err.getvalue()}"
    return out.getvalue()


_NUMBER = re.compile(r"-?\d+(?:\.\d+)?(?:e[+-]?\d+)?")


def same_output(found: str, expected: str) -> bool:
    """Whether two texts have the same words, and numbers that differ by two per cent or a hundredth at most."""
    if _NUMBER.sub("0", " ".join(found.split())) != _NUMBER.sub("0", " ".join(expected.split())):
        return False
    pairs = zip(_NUMBER.findall(found), _NUMBER.findall(expected), strict=True)
    return all(math.isclose(float(a), float(b), rel_tol=0.02, abs_tol=0.01) for a, b in pairs)
