#!/usr/bin/env python3
"""Convert models with Open Model Zoo's flags, to <output_dir>/public/<model>/<precision>/<model>.xml.

Sources are searched where `downloader.py` put them under `--download_dir`, then in edgeface's cache.
"""

from __future__ import annotations

import argparse
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Literal

import _omz

from edgeface import zoo
from edgeface.errors import NotSupportedError

_CONVERTIBLE: dict[str, Literal["fp32", "fp16"]] = {"FP32": "fp32", "FP16": "fp16"}


def _parser() -> argparse.ArgumentParser:
    made = _omz.parser("Convert downloaded models to OpenVINO IR.", "convert")
    _omz.add_precisions(made)
    made.add_argument(
        "-d", "--download_dir", type=Path, default=Path.cwd(), metavar="DIR", help="where downloader.py put models"
    )
    made.add_argument(
        "-o", "--output_dir", type=Path, metavar="DIR", help="where to put IRs; --download_dir by default"
    )
    made.add_argument("--cache_dir", type=Path, metavar="DIR", help="edgeface's cache, searched after --download_dir")
    made.add_argument("-j", "--jobs", type=_jobs, default=1, metavar="N", help="models at once, or 'auto'")
    _omz.add_dry_run(made)
    return made


def _jobs(text: str) -> int:
    return os.cpu_count() or 1 if text == "auto" else _omz.positive(text)


def _work(options: argparse.Namespace) -> int:
    work = partial(_convert, options=options, store=zoo.ModelStore(options.cache_dir))
    entries = _omz.select(options)
    if options.jobs == 1:
        return _omz.each(entries, work, label="converter.py")
    with ThreadPoolExecutor(max_workers=options.jobs) as pool:
        codes = list(pool.map(lambda entry: _omz.each([entry], work, label="converter.py"), entries))
    return next((code for code in codes if code), 0)


def _convert(entry: zoo.ModelEntry, *, options: argparse.Namespace, store: zoo.ModelStore) -> None:
    if entry.framework == "dldt":
        sys.stderr.write(f"converter.py: skipping {entry.name}: it is an IR already\n")
        return
    if entry.embedding is None:
        raise NotSupportedError(f"{entry.name}: detectors cannot be converted yet; expected a face embedding model")
    for precision in options.precisions or sorted(_CONVERTIBLE):
        if precision not in _CONVERTIBLE:
            raise NotSupportedError(f"{entry.name}: {precision} cannot be made yet; expected FP32 or FP16")
        folder = (options.output_dir or options.download_dir) / entry.subdirectory / precision
        if options.dry_run:
            sys.stdout.write(f"would convert {entry.name} to {folder / entry.name}.xml\n")
            continue
        ir = _convert_once(entry, folder, _CONVERTIBLE[precision], options.download_dir, store)
        sys.stdout.write(f"{ir}\n")


def _convert_once(
    entry: zoo.ModelEntry, folder: Path, precision: Literal["fp32", "fp16"], downloads: Path, store: zoo.ModelStore
) -> Path:
    # it loads OpenVINO, which --print_all and --dry_run need not wait for
    from edgeface.convert import convert

    source = downloads / entry.subdirectory / entry.conversion.source if entry.conversion else None
    model = source if source is not None and source.exists() else entry.name
    return convert(model, folder, precision=precision, name=entry.name, store=store).ir


if __name__ == "__main__":
    sys.exit(_omz.run(_parser(), _work))
