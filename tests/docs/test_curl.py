"""Every curl line of the documents is answered by a service that was started as they say."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import documents
import pytest

PAGES = [page for page in documents.pages() if "\ncurl " in page.read_text(encoding="utf-8")]


@pytest.mark.real
@pytest.mark.slow
@pytest.mark.skipif(not PAGES, reason="no page has one")
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_curl_line_is_answered(page: Path, desk: Path) -> None:
    environment = os.environ | {"EDGEFACE_SERVE_STATE": str(desk / "state"), "EDGEFACE_SERVE_LISTEN__PORT": "0"}
    command = [sys.executable, "-m", "edgeface", "serve", "--json"]
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as server:
        assert server.stdout is not None
        try:
            said = ""
            while not said.rstrip().endswith("}"):
                said += server.stdout.readline() or pytest.fail("the service ended")
            ready = json.loads(said)
            for block in documents.blocks(page):
                if block.text.startswith("curl "):
                    for line in block.text.replace("\\\n", " ").splitlines():
                        _ask(line.replace("http://127.0.0.1:8000", ready["address"]), desk, ready["first_key"])
        finally:
            server.terminate()


def _ask(line: str, desk: Path, key: str) -> None:
    done = subprocess.run(
        ["bash", "-c", line.replace("curl ", "curl -sS --fail-with-body ", 1)],
        cwd=desk,
        env=os.environ | {"KEY": key},
        capture_output=True,
        text=True,
        errors="replace",  # tensors are binary
        timeout=60,
    )
    assert done.returncode == 0, f"{line}\n{done.stdout}{done.stderr}"
    assert '"problem"' not in done.stdout, done.stdout
