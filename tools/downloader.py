#!/usr/bin/env python3
"""Download models with Open Model Zoo's flags, into its folder layout.

Files go to <output_dir>/public/<model>/ (ready IRs: <output_dir>/intel/<model>/<precision>/). They come through
edgeface's cache, which is also `--cache_dir`; a second run therefore downloads nothing.
"""

from __future__ import annotations

import argparse
import sys
from functools import partial
from pathlib import Path
from typing import Any

import _omz

from edgeface import zoo
from edgeface.cli.zoo import ProgressFormat, reporting, show_license


def _parser() -> argparse.ArgumentParser:
    made = _omz.parser("Download models.", "download")
    _omz.add_precisions(made)
    made.add_argument(
        "-o", "--output_dir", type=Path, default=Path.cwd(), metavar="DIR", help="where to put models; here by default"
    )
    made.add_argument("--cache_dir", type=Path, metavar="DIR", help="edgeface's cache, where downloads are kept")
    made.add_argument(
        "--num_attempts", type=_omz.positive, default=1, metavar="N", help="attempt each download up to N times"
    )
    made.add_argument("--progress_format", choices=("text", "json"), default="text", help="json: lines on stdout")
    made.add_argument("-j", "--jobs", type=_omz.positive, default=1, metavar="N", help="files at once")
    _omz.add_dry_run(made)
    return made


def _work(options: argparse.Namespace) -> int:
    # bars go to stderr, as every message does; Open Model Zoo's consumers read JSON lines from stdout
    form: ProgressFormat = "json" if options.progress_format == "json" else "auto"
    store = zoo.ModelStore(options.cache_dir)
    with reporting(form, stream=sys.stdout) as reports:
        return _omz.each(
            _omz.select(options),
            partial(_download, options=options, store=store, reports=reports),
            label="downloader.py",
        )


def _download(
    entry: zoo.ModelEntry, *, options: argparse.Namespace, store: zoo.ModelStore, reports: dict[str, Any]
) -> None:
    target = options.output_dir / entry.subdirectory
    if options.dry_run:
        for file in entry.files:
            sys.stdout.write(f"would download {entry.name}/{file.name} to {target} from {file.sources[0]}\n")
        return
    show_license(entry, store)  # never asks: scripts that call this tool could not answer
    policy = zoo.DownloadPolicy(attempts=options.num_attempts, jobs=options.jobs)
    zoo.download(entry, store, policy=policy, **reports)
    store.export(entry, target, precisions=options.precisions)


if __name__ == "__main__":
    sys.exit(_omz.run(_parser(), _work))
