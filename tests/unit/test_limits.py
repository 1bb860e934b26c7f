"""Memory that is left, on made-up machines."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgeface.limits import memory_available, memory_left

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
