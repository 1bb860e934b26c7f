"""The command `edgeface cluster`."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from edgeface.cli import output as out
from edgeface.cli.options import AnalyzerOptions, ThresholdOption, min_size_option, parse_threshold, with_options
from edgeface.cli.words import reduced_words
from edgeface.files import require_writable

_Method = Literal["chinese-whispers", "dbscan"]


@dataclass(frozen=True, kw_only=True)
class _ClusterOptions(AnalyzerOptions):
    """Options of this command, where a face that is not recognised makes a person of its own."""

    min_size: Annotated[int | None, min_size_option("40")] = None

    def arguments(self, made_with: Iterable[str] = ()) -> dict[str, Any]:
        return super().arguments(made_with) | {"min_size": self.min_size or 40}


def register(app: typer.Typer) -> None:
    """Add this module's command."""
    app.command(epilog="Example: edgeface cluster photos -o people --link")(with_options(cluster))


def cluster(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder of photos; its subfolders are searched.")],
    output_dir: Annotated[
        Path, typer.Option("--output-dir", "-o", help="Output folder for people/0001, people/0002, ...")
    ],
    *,
    method: Annotated[_Method, typer.Option(help="Clustering algorithm.")] = "chinese-whispers",
    threshold: ThresholdOption = None,
    far: Annotated[
        float | None,
        typer.Option(
            help="False accept rate to choose a threshold by. Default: the highest for which a face has at most 0.1 "
            "false neighbours on average."
        ),
    ] = None,
    min_samples: Annotated[
        int, typer.Option("--min-samples", min=1, help="Minimum faces per person; smaller groups go to people/unknown.")
    ] = 2,
    seed: Annotated[int, typer.Option(help="Seed for chinese-whispers.")] = 0,
    link: Annotated[bool, typer.Option("--link", help="Link to the photos instead of copying them.")] = False,
    options: _ClusterOptions,
    gate: Annotated[
        bool, typer.Option("--gate/--no-gate", help="Skip faces that are too blurred, dark or turned to compare.")
    ] = True,
    strict: out.StrictOption = False,
    json: out.JsonOption = False,
) -> None:
    """Cluster the faces of a folder of photos into one folder per person. A photo of two people is in both."""
    from edgeface.recognize.cluster import cluster_folder
    from edgeface.vision.listing import list_photos
    from edgeface.vision.quality import QualityGate

    limit = parse_threshold(threshold)
    list_photos([folder], output=output_dir / "people")
    require_writable(output_dir)
    passed = QualityGate() if gate else None
    with options.load() as app, out.progress_bars() as progress:
        result = cluster_folder(
            folder,
            output_dir,
            app.pipeline(gate=passed),
            method=method,
            threshold=limit,
            far=far,
            min_samples=min_samples,
            seed=seed,
            link=link,
            progress=progress,
        )
        found_by = app.found_by(passed)
    if found_by.detector and options.min_size is None:
        found_by = replace(found_by, min_size_from="default")
    answer, failures = result.to_dict(), result.embedded.failures
    if result.warning:
        out.print_note(result.warning)
    if result.embedded.reduced > 1:
        out.print_note(reduced_words(result.embedded.reduced))
    listed = {"failures": out.list_failures(failures), "left_out": out.list_failures(result.embedded.left_out)}
    if json:
        out.emit_json({"output_dir": str(output_dir), **asdict(found_by), **answer, **listed})
    else:
        out.print_line(
            f"{out.counted(result.clusters.count, 'person', 'people')} in "
            f"{out.counted(len(result.clusters.labels), 'face')} of {out.counted(result.embedded.files, 'photo')}, "
            f"in {output_dir / 'people'}; {out.counted(len(answer['unknown']), 'face')} in groups of fewer than "
            f"{min_samples}, in people/unknown"
        )
        out.print_detector(found_by)
    out.finish(failures, strict=strict, left_out=result.embedded.left_out)
