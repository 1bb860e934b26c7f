"""`edgeface bench run`, and the place of the commands about its results."""

from __future__ import annotations

import contextlib
import enum
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from edgeface.cli import bench_results
from edgeface.cli.faces import (
    ChosenDetectorOption,
    DetectorModelOption,
    DetectorName,
    LandmarksModelOption,
    load_detector,
)
from edgeface.cli.output import JsonOption, emit_json, stderr, stdout
from edgeface.errors import InputError

if TYPE_CHECKING:
    from edgeface.bench.run.runner import Extras, Stage


class _Scenario(str, enum.Enum):
    single_stream = "single-stream"
    multi_stream = "multi-stream"
    server = "server"
    offline = "offline"
    kiosk = "kiosk"


class _Hint(str, enum.Enum):
    latency = "latency"
    throughput = "throughput"
    cumulative_throughput = "cumulative_throughput"
    none = "none"


class _Precision(str, enum.Enum):
    f32 = "f32"
    bf16 = "bf16"
    f16 = "f16"


def register(app: typer.Typer) -> None:
    """Add the commands to the program."""
    group = typer.Typer(
        help="Measure how fast a model is, and compare and report what was measured.", no_args_is_help=True
    )
    group.command(
        "run", epilog="Example: edgeface bench run facenet.xml --scenario offline -o results/offline"
    )(run)
    bench_results.add_to(group)
    app.add_typer(group, name="bench")


def run(
    model: Annotated[
        Path, typer.Argument(metavar="MODEL", help="Any IR (.xml) or ONNX file.", show_default=False)
    ],
    output_dir: Annotated[
        Path | None,
        typer.Option(
            "--output-dir", "-o", help="Folder for result.json, with every sample.", show_default=False
        ),
    ] = None,
    scenario: Annotated[
        _Scenario,
        typer.Option("--scenario", "-s", help="Kind of load, after MLPerf Inference; kiosk: a video."),
    ] = _Scenario.single_stream,
    device: Annotated[
        str | None,
        typer.Option("--device", "-d", help="OpenVINO device.  [default: CPU]", show_default=False),
    ] = None,
    hint: Annotated[
        _Hint | None,
        typer.Option(help="What the device tunes for. Default: latency for single-stream, else throughput."),
    ] = None,
    precision: Annotated[
        _Precision | None, typer.Option(help="Of the arithmetic.", show_default=False)
    ] = None,
    streams: Annotated[
        int | None, typer.Option(min=1, help="That execute at one time.", show_default=False)
    ] = None,
    requests: Annotated[int | None, typer.Option(min=1, help="Infer requests.", show_default=False)] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="Of the CPU.", show_default=False)] = None,
    batch: Annotated[
        int | None, typer.Option("--batch", "-b", min=1, help="Items of one inference.", show_default=False)
    ] = None,
    plan: Annotated[
        Path | None,
        typer.Option(
            help="Device plan in JSON, in place of --device, --hint, --precision, --streams, --requests, --threads.",
            show_default=False,
        ),
    ] = None,
    shape: Annotated[
        str | None,
        typer.Option(metavar="NAME[1,3,H,W]", help="Of inputs that are dynamic, or that should be others."),
    ] = None,
    duration: Annotated[
        float, typer.Option("--duration", "-t", min=0.001, help="Seconds to measure at least.")
    ] = 20.0,
    max_duration: Annotated[
        float | None,
        typer.Option(
            min=0.001,
            help="Seconds after which the count no longer matters.  [default: 120, or --duration if longer]",
            show_default=False,
        ),
    ] = None,
    min_count: Annotated[
        int | None,
        typer.Option(
            min=1, help="Queries at least. Default: what MLPerf's early stopping needs, 64 for single-stream."
        ),
    ] = None,
    warm_up: Annotated[float, typer.Option(min=0.0, help="Seconds to wait for stable times at most.")] = 10.0,
    seed: Annotated[int, typer.Option(min=0, help="Of inputs and arrivals.")] = 0,
    end_to_end: Annotated[
        bool, typer.Option("--end-to-end", help="Through edgeface's Embedder, with the copies in and out.")
    ] = False,
    input_format: Annotated[
        str | None,
        typer.Option(
            metavar="WORDS", help="Images that the model takes: 'u8 NHWC BGR 640x480'.", show_default=False
        ),
    ] = None,
    bound: Annotated[
        float | None,
        typer.Option("--bound-ms", min=0.001, help="server: latency that must be met.", show_default=False),
    ] = None,
    percentile: Annotated[
        float | None,
        typer.Option(
            min=1.0,
            max=99.99,
            help="server: share of the queries that must meet it.  [default: 99]",
            show_default=False,
        ),
    ] = None,
    samples_per_query: Annotated[
        int | None,
        typer.Option(min=1, help="multi-stream: as many side by side.  [default: 8]", show_default=False),
    ] = None,
    video: Annotated[
        Path | None, typer.Option(help="kiosk: the film, played at its own frame rate.", show_default=False)
    ] = None,
    detector: ChosenDetectorOption = None,
    detector_model: DetectorModelOption = None,
    landmarks_model: LandmarksModelOption = None,
    peak: Annotated[
        bool, typer.Option("--peak/--no-peak", help="Measure what the device attains, for the efficiency.")
    ] = True,
    layers: Annotated[
        bool, typer.Option("--layers/--no-layers", help="Time the layers, in a pass of their own.")
    ] = True,
    identify: Annotated[
        bool, typer.Option("--identify", help="Store host, user, folder and command line in the result.")
    ] = False,
    json: JsonOption = False,
) -> None:
    """Measure a model: latency, throughput, GFLOP/s, efficiency, and whether something disturbed it.

    Ctrl-C keeps what was measured, marked as partial, and exits with 130.
    """
    from edgeface.bench.run.benchmark_model import parse_image_format, parse_shapes
    from edgeface.bench.run.runner import Extras, benchmark
    from edgeface.bench.schema import RunSettings
    from edgeface.cli.bench_table import show
    from edgeface.files import staging_folder
    from edgeface.runtime import DevicePlan

    chosen = {
        "device": device,
        "hint": hint,
        "precision": precision,
        "streams": streams,
        "requests": requests,
    }
    doubled = [name for name, value in {**chosen, "threads": threads}.items() if value is not None]
    if plan is not None and doubled:
        raise InputError(
            f"--plan: expected no --{doubled[0]} beside it, for the plan says that; leave one out"
        )
    if output_dir is not None:
        with staging_folder(output_dir):  # an error now costs less than one after the measurement
            pass
    settings = RunSettings(
        scenario=scenario.value,
        device=device or "CPU",
        hint=_hint(hint, scenario),
        precision=precision and precision.value,
        streams=streams,
        requests=requests,
        threads=threads,
        batch=batch,
        end_to_end=end_to_end,
        seed=seed,
        duration_s=duration,
        min_count=min_count,
        max_duration_s=max_duration,
        warm_up_s=warm_up,
    )
    extras = Extras(
        plan=DevicePlan.read(plan) if plan else None,
        shapes=parse_shapes(shape) if shape else None,
        image_format=parse_image_format(input_format) if input_format else None,
        bound_ms=bound,
        percentile=percentile,
        samples_per_query=samples_per_query,
        peak=peak,
        layers=layers,
        identify=identify,
    )
    with (
        _kiosk(extras, scenario, video, detector, detector_model, landmarks_model, device or "CPU") as extras,
        _stages() as stage,
    ):
        result = benchmark(model, settings, extras=extras, stage=stage)
    try:  # first of all: whoever reads along may have gone, and a full disk keeps nobody from reading
        written = None if output_dir is None else result.write(output_dir)
    finally:
        if not json:
            show(result, stdout)
    if json:
        emit_json(result.to_dict(samples=False))
    elif written is not None:
        stdout.print(f"{escape(str(written))} written", soft_wrap=True)
    if result.partial:
        stderr.print("edgeface: interrupted; what was measured is marked as partial")
        raise typer.Exit(130)


def _hint(hint: _Hint | None, scenario: _Scenario) -> str | None:
    if hint is None:
        hint = _Hint.latency if scenario is _Scenario.single_stream else _Hint.throughput
    return None if hint is _Hint.none else hint.value.upper()


@contextlib.contextmanager
def _kiosk(
    extras: Extras,
    scenario: _Scenario,
    video: Path | None,
    detector: DetectorName | None,
    detector_model: Path | None,
    landmarks_model: Path | None,
    device: str,
) -> Iterator[Extras]:
    """Add the film and the detector that a kiosk needs, and nothing else may have."""
    import dataclasses

    if scenario is not _Scenario.kiosk:
        if given := video or detector or detector_model or landmarks_model:
            raise InputError(
                f"{given}: video and detector belong to --scenario kiosk; add it, or leave them out"
            )
        yield extras
        return
    if video is None:
        raise InputError("--scenario kiosk: expected a film in --video, found none")
    from edgeface.bench.run.kiosk import VideoFile

    film = VideoFile.open(video)
    name = detector or DetectorName.mtcnn
    with load_detector(name, detector_model, landmarks_model, device=device) as loaded:
        yield dataclasses.replace(extras, film=film, detector=loaded)


@contextlib.contextmanager
def _stages() -> Iterator[Stage]:
    """Yield what draws a bar a stage on a terminal; seldom, for drawing takes time from what is measured."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.fields[count]}"),
        TimeRemainingColumn(),
    )
    with Progress(
        *columns, console=stderr, transient=True, refresh_per_second=2, disable=not stderr.is_terminal
    ) as bars:

        def stage(name: str) -> Any:
            for task in bars.task_ids:
                bars.remove_task(task)
            task = bars.add_task(name, total=None, count="")

            def tell(share: float, count: int) -> None:
                bars.update(task, total=1.0, completed=share, count=f"{count:,} queries")

            return tell

        yield stage
