"""What the documents show is true: every block of code is run, every command and name in them exists."""

from __future__ import annotations

import importlib
import re
import shlex
from pathlib import Path
from typing import Any

import documents
import pytest

PAGES = documents.pages()
by_page = pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(documents.ROOT)))


@by_page
def test_every_block_parses_and_every_command_exists(page: Path) -> None:
    for block in documents.blocks(page):
        if block.language == "python":
            compile(block.text, block.place, "exec", flags=documents.ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
        elif block.language in ("sh", "bash", "console", "shell"):
            for words in block.commands():
                if block.not_run is None or words[0] == "edgeface":
                    documents.check_line(words)
        else:
            assert block.language in documents.NOT_CHECKED, f"{block.place}: language {block.language!r}"


@by_page
def test_every_command_in_the_text_exists(page: Path) -> None:
    for code in documents.inline_code(page):
        if code.startswith("edgeface "):
            documents.check_mentioned(shlex.split(code)[1:])
        elif code.startswith("python benchmarks/") or code.startswith("python examples/"):
            documents.check_script(shlex.split(code)[1:])
        elif code.startswith("make "):
            documents.check_line(shlex.split(code))


@by_page
def test_every_dotted_name_in_the_text_exists(page: Path) -> None:
    for name in re.findall(r"^::: (\S+)", page.read_text(encoding="utf-8"), re.M):
        _resolve(name)
    for code in documents.inline_code(page):
        if re.fullmatch(r"edgeface(\.\w+)+", code) and not code.endswith((".py", ".xml", ".db")):
            _resolve(code)


@by_page
def test_every_relative_link_leads_somewhere(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if "://" not in target and not target.startswith(("#", "mailto:")):
            assert (page.parent / target.split("#")[0]).exists(), f"{page}: {target}"


def test_ci_runs_the_commands_of_the_readme_that_need_a_clone() -> None:
    (clone,) = [block for block in documents.blocks(documents.ROOT / "README.md") if block.not_run]
    ci = (documents.ROOT / ".ci" / "run").read_text(encoding="utf-8")
    targets = [" ".join(words[:2]) for words in clone.commands() if words[0] == "make"]
    assert targets == ["make demo", "make test"]
    for target in targets:
        assert re.search(rf"^{target}\b", ci, re.M), f"{target} is in README and not in .ci/run"


@pytest.mark.real
@pytest.mark.slow
@by_page
def test_every_block_runs(page: Path, desk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(desk)
    documents.run_page(page, {"__name__": "__main__"})


def test_nothing_is_left_out_without_a_reason() -> None:
    """Pages that this step wrote have code; a page whose blocks were all lost would pass every other test."""
    shown = {page.name: [each for each in documents.blocks(page) if each.language != ""] for page in PAGES}
    for name in ("README.md", "index.md", "galleries.md", "verification.md", "running.md"):
        run = [each for each in shown[name] if each.not_run is None and not each.output]
        assert len(run) >= 3, name


def _resolve(name: str) -> Any:
    parts = name.split(".")
    for end in range(len(parts), 0, -1):
        try:
            found: Any = importlib.import_module(".".join(parts[:end]))
        except ModuleNotFoundError as error:
            if error.name and not name.startswith(error.name):
                pytest.skip(f"{error.name} is not installed")
            continue
        for part in parts[end:]:
            fields = getattr(found, "__dataclass_fields__", {})
            found = fields[part] if part in fields else getattr(found, part)
        return found
    raise AssertionError(name)


# --- the checks can fail -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "line",
    [
        "edgeface verifi a.jpg b.jpg",
        "edgeface verify a.jpg b.jpg --no-such-flag",
        "edgeface verify a.jpg",
        "make no-such-target",
        "python benchmarks/no_such.py",
        "python benchmarks/runtime.py --no-such-flag",
        "pip install 'edgeface[no-such-extra]'",
        "rm -rf /tmp/nothing",
    ],
)
def test_a_wrong_line_is_noticed(line: str) -> None:
    with pytest.raises(Exception, match=r"(?i)no |missing|not checked|has "):
        documents.check_line(shlex.split(line))


@pytest.mark.parametrize("code", ["assert 1 == 2", "import edgeface.no_such_module", "undefined_name"])
def test_wrong_python_is_noticed(code: str) -> None:
    page = documents.ROOT / "docs" / "made_up.md"
    with pytest.raises((AssertionError, ImportError, NameError)):
        documents.run_page(page, {}, f"```python\n{code}\n```\n")


def test_wrong_output_is_noticed() -> None:
    page = documents.ROOT / "docs" / "made_up.md"
    shown = "```python\nprint('score', 0.700)\n```\n\n<!-- output -->\n```text\nscore {}\n```\n"
    documents.run_page(page, {}, shown.format("0.701"))
    for wrong in ("0.9", "seven", ""):
        with pytest.raises(AssertionError):
            documents.run_page(page, {}, shown.format(wrong))


def test_a_failing_command_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    page = documents.ROOT / "docs" / "made_up.md"
    with pytest.raises(AssertionError, match="exit code 2"):
        documents.run_page(page, {}, "```sh\nedgeface inspect no-such-file.xml\n```\n")


def test_a_block_without_a_reason_is_not_left_out() -> None:
    page = documents.ROOT / "docs" / "made_up.md"
    with pytest.raises(ValueError, match="not run"):
        list(documents.blocks(page, "<!-- not run: -->\n```sh\nedgeface devices\n```\n"))
