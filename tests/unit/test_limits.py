"""Memory that is left, on made-up machines."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from tiny_ir import write_tiny_ir

from edgeface.limits import TO_COMPILE, memory_available, memory_left

MB = 1 << 20


def machine(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


@pytest.mark.parametrize("version", [1, 2])
def test_cached_pages_of_files_count_as_free_memory_of_the_group(version: int, tmp_path: Path):
    if version == 1:
        folder, names = "memory/app", ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
    else:
        folder, names = "app", ("memory.max", "memory.current", "inactive_file")
    stat = f"cache 9\ninactive_file 0\n{names[2]} {300 * MB}\nactive_file 7\n"
    files = {names[0]: str(600 * MB), names[1]: str(500 * MB), "memory.stat": stat}
    own = "4:memory:/app\n" if version == 1 else "0::/app\n"
    root = machine(tmp_path, {"proc/self/cgroup": own} | {f"sys/fs/cgroup/{folder}/{n}": t for n, t in files.items()})
    assert memory_left(root) == 400 * MB


@pytest.mark.parametrize(
    ("meminfo", "left"),
    [("MemFree: 1 kB\nMemAvailable:  2048 kB\nSwapFree:    1024 kB\n", 3 * MB), ("MemFree: 1 kB\n", None), ("", None)],
)
def test_the_machine_s_free_memory_counts_with_its_swap(meminfo: str, left: int | None, tmp_path: Path):
    assert memory_available(machine(tmp_path, {"proc/meminfo": meminfo})) == left


UNDER_A_LIMIT = """
import re, resource, sys
from pathlib import Path
import numpy as np
from edgeface import limits
from edgeface.errors import MissingError
from edgeface.runtime import Embedder, embedder as module

ir, field, kind, left = sys.argv[1:]

def limit_and_require():
    used = int(re.search(field + r":\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) << 10
    resource.setrlimit(getattr(resource, kind), (used + int(left),) * 2)
    limits.require_room_to_compile()

module.require_room_to_compile = limit_and_require
try:
    with Embedder.load(Path(ir)) as embedder:
        print(embedder.embed(np.full((1, 32, 32, 3), 99, np.uint8)).shape)
except MissingError as error:
    print(error.exit_code, error)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("flag", "field", "kind"), [("-v", "VmSize", "RLIMIT_AS"), ("-d", "VmData", "RLIMIT_DATA")], ids=["-v", "-d"]
)
def test_a_model_is_compiled_with_the_memory_it_needs_and_refused_below(
    flag: str, field: str, kind: str, tmp_path: Path
) -> None:
    """Below it OpenVINO's compilation may wait for ever."""
    ir = write_tiny_ir(tmp_path)
    base, each = TO_COMPILE[flag]
    needed = base + each * len(os.sched_getaffinity(0))

    def load(left: int) -> str:
        command = [sys.executable, "-c", UNDER_A_LIMIT, str(ir), field, kind, str(left)]
        return subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout

    refused = load(needed - MB)
    assert refused.startswith("3 expected ")
    assert f"which ulimit {flag} of" in refused
    assert "raise this limit" in refused
    assert load(needed + MB).startswith("(1, ")
