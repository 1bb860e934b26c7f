"""Run a command for its wall and CPU seconds and peak memory, or work in threads; shared by the benchmarks here."""

from __future__ import annotations

import os
import statistics
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Run:
    """One finished process, with all its children."""

    wall_seconds: float
    cpu_seconds: float
    peak_mb: float


def run(command: Sequence[str], *, timeout: float = 900) -> Run:
    """Run a command to its end; raise with its last lines if it fails.

    Peak memory is that of the largest single process, as wait4 accounts it.
    """
    with tempfile.TemporaryFile() as log:
        started = time.perf_counter()
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        deadline = started + timeout
        while True:
            pid, status, usage = os.wait4(process.pid, os.WNOHANG)
            if pid:
                break
            if time.perf_counter() > deadline:
                process.kill()
            time.sleep(0.005)
        wall = time.perf_counter() - started
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode != 0:
            log.seek(0)
            tail = log.read().decode(errors="replace").splitlines()[-20:]
            raise RuntimeError(f"{command} ended with {process.returncode}:\n" + "\n".join(tail))
    return Run(wall, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024)


def medians(runs: Sequence[Run]) -> dict[str, float]:
    """Median of each figure."""
    return {
        "wall_seconds": round(statistics.median(each.wall_seconds for each in runs), 3),
        "cpu_seconds": round(statistics.median(each.cpu_seconds for each in runs), 3),
        "peak_mb": round(max(each.peak_mb for each in runs), 1),
    }


def side_by_side(work: Callable[[int], None], count: int) -> None:
    """Do a work in as many threads, each with its number; raise what one of them raised."""
    failed: list[BaseException] = []

    def watched(number: int) -> None:
        try:
            work(number)
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=watched, args=[each]) for each in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failed:
        raise failed[0]
