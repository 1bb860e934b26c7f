"""`edgeface bench run`, and the group of commands about its results."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

import edgeface
from edgeface.cli.bench_results import ShapeOption, WarmUpOption, compare, report, sweep
from edgeface.cli.options import ChosenDetectorOption, DetectorModelOption, DetectorName, LandmarksModelOption
from edgeface.cli.output import JsonOption, emit_json, print_line, progress_bars, stderr, stdout, warn_if_seeded
from edgeface.errors import InputError

if TYPE_CHECKING:
    from edgeface.bench.run.kiosk import VideoFile
    from edgeface.vision.detector import Detector


_Scenario = Literal["single-stream", "multi-stream", "server", "offline", "kiosk", "search"]
_Storage = Literal["float32", "int8", "graph"]
_Hint = Literal["latency", "throughput", "cumulative_throughput", "none"]
_Precision = Literal["f32", "bf16", "f16"]


def register(app: typer.Typer) -> None:
    """Add the commands to the program."""
    group = typer.Typer(help="Measure how fast a model is; compare and report the results.", no_args_is_help=True)
    for command, example in (
        (run, "run facenet.xml --scenario offline -o results/offline"),
        (compare, "compare results/before results/after --fail-on-regression 5%"),
        (report, "report results/* -o report.html"),
        (sweep, "sweep facenet.xml --hints latency,throughput --batches 1,4 -o sweep"),
    ):
        group.command(epilog=f"Example: edgeface bench {example}")(command)
    app.add_typer(group, name="bench")


def run(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="Any IR (.xml) or ONNX file.")],
    output_dir: Annotated[
        Path | None, typer.Option("--output-dir", "-o", help="Folder for result.json, with every sample.")
    ] = None,
    scenario: Annotated[
        _Scenario,
        typer.Option(
            "--scenario",
            "-s",
            help="MLPerf Inference load scenario, kiosk for the faces of a video, or search for a gallery's search.",
        ),
    ] = "single-stream",
    device: Annotated[str | None, typer.Option("--device", "-d", help="OpenVINO device.  [default: CPU]")] = None,
    hint: Annotated[
        _Hint | None, typer.Option(help="Performance hint. Default: latency for single-stream, else throughput.")
    ] = None,
    precision: Annotated[_Precision | None, typer.Option(help="Inference precision.")] = None,
    streams: Annotated[int | None, typer.Option(min=1, help="Number of parallel streams.")] = None,
    requests: Annotated[int | None, typer.Option(min=1, help="Number of infer requests.")] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads.")] = None,
    batch: Annotated[int | None, typer.Option("--batch", "-b", min=1, help="Batch size.")] = None,
    plan: Annotated[
        Path | None,
        typer.Option(
            help="Device plan in JSON; replaces --device, --hint, --precision, --streams, --requests, --threads."
        ),
    ] = None,
    shape: ShapeOption = None,
    duration: Annotated[float, typer.Option("--duration", "-t", min=0.001, help="Minimum duration, seconds.")] = 20.0,
    max_duration: Annotated[
        float | None,
        typer.Option(min=0.001, help="Maximum duration, seconds.  [default: 120, or --duration if longer]"),
    ] = None,
    min_count: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Minimum number of queries. Default: the minimum for MLPerf's early stopping, 64 for single-stream.",
        ),
    ] = None,
    warm_up: WarmUpOption = 10.0,
    seed: Annotated[int, typer.Option(min=0, help="Random seed of inputs and arrivals.")] = 0,
    end_to_end: Annotated[
        bool, typer.Option("--end-to-end", help="Measure edgeface's Embedder, including input and output copies.")
    ] = False,
    input_format: Annotated[
        str | None, typer.Option(metavar="WORDS", help="Image format of the input, e.g. 'u8 NHWC BGR 640x480'.")
    ] = None,
    bound: Annotated[
        float | None, typer.Option("--bound-ms", min=0.001, help="server: latency bound, milliseconds.")
    ] = None,
    percentile: Annotated[
        float | None,
        typer.Option(
            min=1.0, max=99.99, help="server: percentage of queries that must meet the latency bound.  [default: 99]"
        ),
    ] = None,
    samples_per_query: Annotated[
        int | None, typer.Option(min=1, help="multi-stream: samples per query.  [default: 8]")
    ] = None,
    video: Annotated[Path | None, typer.Option(help="kiosk: video, played as by a camera.")] = None,
    frame_rate: Annotated[
        float | None, typer.Option(min=1, max=240, help="kiosk: frames a second.  [default: the video's own]")
    ] = None,
    liveness: Annotated[
        bool, typer.Option("--liveness", help="kiosk: judge whether faces are live, as edgeface watch does.")
    ] = False,
    liveness_models: Annotated[
        Path | None,
        typer.Option(help="kiosk: an IR or a folder of IRs; implies --liveness.  [default: both downloaded]"),
    ] = None,
    detector: ChosenDetectorOption = None,
    detector_model: DetectorModelOption = None,
    landmarks_model: LandmarksModelOption = None,
    templates: Annotated[int | None, typer.Option(min=1, help="search: templates in a gallery that is made.")] = None,
    storage: Annotated[
        _Storage | None,
        typer.Option(
            help="search: how the index keeps them; graph is approximate.  [default: as a gallery's index does]"
        ),
    ] = None,
    peak: Annotated[
        bool, typer.Option("--peak/--no-peak", help="Measure the device's peak GFLOP/s, to compute the efficiency.")
    ] = True,
    layers: Annotated[bool, typer.Option("--layers/--no-layers", help="Time each layer in a separate pass.")] = True,
    identify: Annotated[
        bool, typer.Option("--identify", help="Include host name, user, folder and command line in the result.")
    ] = False,
    json: JsonOption = False,
) -> None:
    """Measure latency, throughput, GFLOP/s and efficiency of a model, and whether something disturbed the run.

    Ctrl-C keeps what was measured, marked as partial, and exits with 130.
    """
    from edgeface.bench.result import FILE_NAME
    from edgeface.bench.run.benchmark_model import parse_image_format, parse_shapes
    from edgeface.bench.run.runner import ScenarioOptions, benchmark
    from edgeface.bench.schema import RunSettings
    from edgeface.cli.bench_table import show
    from edgeface.files import require_writable
    from edgeface.runtime import DevicePlan

    planned: dict[str, Any] = {
        "device": device,
        "hint": hint,
        "precision": precision,
        "streams": streams,
        "requests": requests,
        "threads": threads,
    }
    if plan is not None and (doubled := [name for name, value in planned.items() if value is not None]):
        raise InputError(f"--plan replaces --{doubled[0]}: give one of them")
    if output_dir is not None:
        if (result_file := output_dir / FILE_NAME).exists():
            raise InputError(
                path=result_file, expected="a folder without a result", found="one", remedy="choose another folder"
            )
        require_writable(output_dir)
    if hint is None:
        hint = "latency" if scenario == "single-stream" else "throughput"
    settings = RunSettings(
        **planned | {"device": device or "CPU", "hint": None if hint == "none" else hint.upper()},
        scenario=scenario,
        batch=batch,
        end_to_end=end_to_end,
        seed=seed,
        duration_s=duration,
        min_count=min_count,
        max_duration_s=max_duration,
        warm_up_s=warm_up,
    )
    liveness = liveness or liveness_models is not None
    if scenario != "kiosk" and (frame_rate or liveness):
        raise InputError("--frame-rate and --liveness require --scenario kiosk")
    needed = _kiosk(scenario, video, detector, detector_model, landmarks_model, device or "CPU", frame_rate)
    checking = edgeface.load_liveness(liveness_models, device=device or "CPU") if liveness else contextlib.nullcontext()
    with needed as (shown, finder), checking as checker, progress_bars(refresh_per_second=2) as progress:
        result = benchmark(
            model,
            settings,
            options=ScenarioOptions(
                bound_ms=bound,
                percentile=percentile,
                samples_per_query=samples_per_query,
                video=shown,
                detector=finder,
                liveness=checker,
                templates=templates,
                storage=storage,
            ),
            plan=DevicePlan.read(plan) if plan else None,
            shapes=parse_shapes(shape) if shape else None,
            image_format=parse_image_format(input_format) if input_format else None,
            peak=peak,
            layers=layers,
            identify=identify,
            progress=progress,
        )
    try:  # written before it is printed: a reader that has gone must not lose the result
        written = None if output_dir is None else result.write(output_dir)
    finally:  # and printed even if the disk is full
        if not json:
            show(result, stdout)
    if json:
        warn_if_seeded(result.model.provenance)
        emit_json(result.to_dict(samples=False))
    elif written is not None:
        print_line(f"{written} written")
    if result.partial:
        stderr.print("edgeface: interrupted; what was measured is marked as partial")
        raise typer.Exit(130)


_KIOSK_FACE = 64
"""Smallest face that is looked for, in pixels, as `edgeface watch` does (`CameraSettings.min_face`)."""


@contextlib.contextmanager
def _kiosk(
    scenario: _Scenario,
    video: Path | None,
    detector: DetectorName | None,
    detector_model: Path | None,
    landmarks_model: Path | None,
    device: str,
    frame_rate: float | None,
) -> Iterator[tuple[VideoFile | None, Detector | None]]:
    """Yield the video and the detector of the kiosk scenario; refuse them in any other."""
    if scenario != "kiosk":
        if given := video or detector or detector_model or landmarks_model:
            raise InputError(f"{given}: video and detector options require --scenario kiosk")
        yield None, None
        return
    if video is None:
        raise InputError("--scenario kiosk requires --video FILE")
    from edgeface.bench.run.kiosk import VideoFile

    shown = VideoFile.open(video, rate=frame_rate)
    name = detector or "auto"
    with edgeface.load_detector(
        name, device=device, model=detector_model, landmarks_model=landmarks_model, min_size=_KIOSK_FACE
    ) as loaded:
        yield shown, loaded
