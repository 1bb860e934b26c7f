"""`edgeface train head|metric|classifier`."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

import typer
from rich.table import Table

import edgeface
from edgeface.cli.options import LabelledOptions, ModelOption, with_options
from edgeface.cli.output import (
    JsonOption,
    counted,
    emit_json,
    escape,
    list_failures,
    print_line,
    print_note,
    progress_bars,
    stdout,
)
from edgeface.errors import NegativeResult

if TYPE_CHECKING:
    from edgeface.train import HeadOutcome, MetricOutcome, Optimisation
    from edgeface.train.outcome import TrainingOutcome

Outcome = TypeVar("Outcome", bound="TrainingOutcome")

_Preset = Literal["linear", "finetune", "focal-restarts"]
_Loss = Literal["cross-entropy", "focal"]
_Weights = Literal["balanced", "rare", "none"]
_Augmentation = Literal["none", "mirror", "light", "some-of-seven"]
_MetricLoss = Literal["octuplet", "triplet"]
_Mining = Literal["batch-hard", "semi-hard"]
_Kind = Literal["svm", "logistic"]

PeopleArgument = Annotated[
    Path, typer.Argument(metavar="PEOPLE", help="Folder with one folder of photos for each person.")
]
SeedOption = Annotated[int, typer.Option(min=0, help="Seed of all that is drawn.")]
PatienceOption = Annotated[int | None, typer.Option(min=0, help="Epochs without improvement to stop after; 0: never.")]
MinPhotosOption = Annotated[int, typer.Option(min=2, help="Fewest usable photos of a person; others are dropped.")]
HeldOutOption = Annotated[float, typer.Option(min=0.0, max=0.5, help="Share of each person's photos to judge by.")]
ImagesOption = Annotated[Path | None, typer.Option(help="Folder that the names in PAIRS are relative to.")]
NameOption = Annotated[str | None, typer.Option(help="Name of the embedder. Default: the model's.")]
ForceOption = Annotated[
    bool, typer.Option("--force", help="Write the embedder even if it became worse at telling strangers apart.")
]


def register(app: typer.Typer) -> None:
    """Add this module's commands."""
    group = typer.Typer(help="Train on your own photos (extra 'train').", no_args_is_help=True)
    group.command(epilog="Example: edgeface train head people --model facenet.xml -o trained")(with_options(head))
    group.command(epilog="Example: edgeface train metric people --verify others --model facenet.xml -o trained")(
        with_options(metric)
    )
    group.command(epilog="Example: edgeface train classifier people --model facenet.xml -o trained")(
        with_options(classifier)
    )
    app.add_typer(group, name="train")


def head(
    people: PeopleArgument,
    output_dir: Annotated[
        Path,
        typer.Option(
            "--output-dir",
            "-o",
            help="Folder for the embedder, head.npz, the log and report.html. An unfinished training there is resumed.",
        ),
    ],
    *,
    model: ModelOption = None,
    unfreeze: Annotated[
        int,
        typer.Option(
            min=0,
            metavar="LAST_BLOCKS",
            help="Train so many last blocks of the embedder too: 1 is its fully connected layer, 2 the residual "
            "block before it too, and so on.",
        ),
    ] = 0,
    preset: Annotated[
        _Preset | None, typer.Option(help="Optimisation. Default: linear, or finetune with --unfreeze.")
    ] = None,
    epochs: Annotated[int | None, typer.Option(min=1, help="Most epochs; replaces the preset's.")] = None,
    batch: Annotated[int | None, typer.Option(min=1, help="Photos a step; replaces the preset's.")] = None,
    rate: Annotated[float | None, typer.Option(help="Highest learning rate; replaces the preset's.")] = None,
    tail_share: Annotated[
        float | None, typer.Option(min=0.0, help="Learning rate of unfrozen blocks, as a share of --rate.")
    ] = None,
    patience: PatienceOption = None,
    loss: Annotated[_Loss, typer.Option(help="Loss.")] = "cross-entropy",
    gamma: Annotated[float, typer.Option(min=0.0, help="Gamma of the focal loss.")] = 2.0,
    class_weights: Annotated[
        _Weights, typer.Option(help="Weight of people: balanced by their photos; rare: 1 minus the share; or none.")
    ] = "balanced",
    augment: Annotated[_Augmentation, typer.Option(help="Altered copies of the photos to train on too.")] = "none",
    copies: Annotated[int, typer.Option(min=1, help="Altered copies of each photo.")] = 1,
    min_photos: MinPhotosOption = 4,
    held_out: HeldOutOption = 0.2,
    validation: Annotated[
        float, typer.Option(min=0.0, max=0.5, help="Share of each person's photos to stop training by.")
    ] = 0.1,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the split, the first weights and the order.")] = 0,
    verify: Annotated[
        str | None,
        typer.Option(
            metavar="PAIRS",
            help="Photos of other people to verify before and after: a folder with one folder for each person, "
            "'lfw' (in EDGEFACE_DATA), or a list of pairs (with --images). Needed with --unfreeze.",
        ),
    ] = None,
    images: ImagesOption = None,
    name: NameOption = None,
    force: ForceOption = False,
    options: LabelledOptions,
    json: JsonOption = False,
) -> None:
    """Train a classifier of people, and write the embedder without it."""
    from edgeface.train import PRESETS, HeadSettings, train_head

    settings = HeadSettings(
        loss=loss,
        gamma=gamma,
        class_weights=class_weights,
        augmentation=augment,
        copies=copies,
        unfreeze=unfreeze,
        min_photos=min_photos,
        held_out=held_out,
        validation=validation,
    )
    given = {"epochs": epochs, "batch": batch, "rate": rate, "tail_share": tail_share, "patience": patience}
    optimisation = _choose(PRESETS[preset or ("finetune" if unfreeze else "linear")], seed, given)
    train = functools.partial(train_head, people, output_dir, settings=settings, optimisation=optimisation)
    _run(train, model, options, _head_table, verify=verify, images=images, name=name, force=force, json=json)


def _head_table(outcome: HeadOutcome) -> Table:
    judged, history = outcome.judgement, outcome.history
    low, high = judged.interval
    table = Table("head", f"{len(outcome.head.labels)} people", title=escape(outcome.contract.name))
    table.title_justify = "left"
    table.add_row("photos", ", ".join(f"{part.replace('_', ' ')} {len(rows)}" for part, rows in outcome.parts.items()))
    table.add_row("accuracy, held out", f"{judged.accuracy:.4f} ({low:.4f} to {high:.4f})")
    table.add_row("calibration error", f"{judged.calibration_error:.4f}")
    if change := outcome.verification:
        low, high = change.accuracy.interval
        told = f"{change.accuracy.before:.4f} before, {change.accuracy.after:.4f} after"
        table.add_row("verification, others", f"{told}; loss {change.accuracy.drop:+.4f} ({low:+.4f} to {high:+.4f})")
    table.add_row("epochs", f"{len(history.epochs)}, best {history.best + 1}; {history.seconds:.1f} s")
    return table


def metric(
    people: PeopleArgument,
    output_dir: Annotated[
        Path,
        typer.Option(
            "--output-dir",
            "-o",
            help="Folder for the embedder, the log and report.html. An unfinished training there is resumed.",
        ),
    ],
    *,
    model: ModelOption = None,
    loss: Annotated[_MetricLoss, typer.Option(help="Octuplet, for faces of low resolution; or triplet.")] = (
        "octuplet"
    ),
    resolutions: Annotated[
        str | None,
        typer.Option(
            metavar="PIXELS",
            help="Resolutions of the copies that the photos are trained and judged with. Default: 7,14,28,56 for "
            "octuplet, none for triplet.",
        ),
    ] = None,
    margin: Annotated[float, typer.Option(min=0.0, help="Margin, on the scale of the distance.")] = 0.5,
    mining: Annotated[_Mining, typer.Option(help="Choice of triplets.")] = "semi-hard",
    keep: Annotated[float, typer.Option(min=0.0, help="Weight of staying near the parent's embeddings.")] = 1.0,
    hidden: Annotated[int, typer.Option(min=0, help="Width of a hidden layer of the projection; 0: none.")] = 0,
    unfreeze: Annotated[
        int, typer.Option(min=0, metavar="LAST_BLOCKS", help="Train so many last blocks instead of a projection.")
    ] = 0,
    epochs: Annotated[int | None, typer.Option(min=1, help="Most epochs.")] = None,
    batch: Annotated[int | None, typer.Option(min=4, help="Photos a step.")] = None,
    rate: Annotated[float | None, typer.Option(help="Learning rate.")] = None,
    patience: PatienceOption = None,
    min_photos: MinPhotosOption = 2,
    seed: SeedOption = 0,
    verify: Annotated[
        str | None,
        typer.Option(
            metavar="PAIRS",
            help="Photos of other people to verify before and after: a folder with one folder for each person, "
            "'lfw' (in EDGEFACE_DATA), or a list of pairs (with --images). Needed unless --force.",
        ),
    ] = None,
    images: ImagesOption = None,
    name: NameOption = None,
    force: ForceOption = False,
    options: LabelledOptions,
    json: JsonOption = False,
) -> None:
    """Train an embedder by triplets or octuplets of photos, for low resolution above all."""
    from edgeface.evaluate import parse_resolutions
    from edgeface.train import METRIC_DEFAULT, MetricSettings, train_metric

    settings = MetricSettings(
        loss=loss,
        margin=margin,
        mining=mining,
        resolutions=parse_resolutions(resolutions or ("7,14,28,56" if loss == "octuplet" else None)),
        keep=keep,
        hidden=hidden,
        unfreeze=unfreeze,
        min_photos=min_photos,
    )
    given = {"epochs": epochs, "batch": batch, "rate": rate, "patience": patience}
    optimisation = _choose(METRIC_DEFAULT, seed, given)
    train = functools.partial(train_metric, people, output_dir, settings=settings, optimisation=optimisation)
    _run(train, model, options, _metric_table, verify=verify, images=images, name=name, force=force, json=json)


def _metric_table(outcome: MetricOutcome) -> Table:
    table = Table("second photo", "before", "after", "gain, 95 % paired", title_justify="left")
    table.title = escape(f"{outcome.contract.name}: accuracy on people who were not trained on")
    for pixels, change in outcome.changes.items():
        low, high = change.accuracy.interval
        figures = change.accuracy
        table.add_row(
            f"{pixels} pixels",
            f"{figures.before:.4f}",
            f"{figures.after:.4f}",
            f"{-figures.drop:+.4f} ({-high:+.4f} to {-low:+.4f})",
        )
    return table


def _choose(preset: Optimisation, seed: int, given: Mapping[str, Any]) -> Optimisation:
    """Return a preset with what is given instead of its own."""
    return dataclasses.replace(preset, seed=seed, **{key: value for key, value in given.items() if value is not None})


def _run(
    train: functools.partial[Outcome],
    model: Path | None,
    options: LabelledOptions,
    table_of: Callable[[Outcome], Table],
    *,
    verify: str | None,
    images: Path | None,
    name: str | None,
    force: bool,
    json: bool,
) -> None:
    """Train an embedder, and print what came of it; exit with 1 if it was not written."""
    from edgeface.train import pairs_of_strangers

    (people, output_dir), seed = train.args, train.keywords["optimisation"].seed
    with options.open() as faces, progress_bars() as progress:
        strangers = pairs_of_strangers(verify, people, images, faces=faces, seed=seed) if verify else None
        outcome = train(
            edgeface.find_model(model), faces, strangers=strangers, name=name, force=force, progress=progress
        )
    answer = outcome.to_dict()
    _list_left_out(answer, answer["settings"]["min_photos"])
    for reason in outcome.reasons:
        print_note(reason)
    if json:
        emit_json(answer)
    else:
        stdout.print(table_of(outcome))
        print_line(f"{outcome.ir} written" if outcome else "nothing written; --force writes it all the same")
        print_line(f"{output_dir / 'report.html'} written")
    if not outcome:
        raise typer.Exit(NegativeResult.exit_code)


def classifier(
    people: PeopleArgument,
    output_dir: Annotated[
        Path,
        typer.Option(
            "--output-dir", "-o", help="Folder for classifier.npz, its figures and report.html.", show_default=False
        ),
    ],
    *,
    model: ModelOption = None,
    kind: Annotated[_Kind, typer.Option(help="Linear support vector machine, or logistic regression.")] = "svm",
    c: Annotated[float, typer.Option("--c", help="How little it is regularised.")] = 1.0,
    min_photos: MinPhotosOption = 4,
    held_out: HeldOutOption = 0.2,
    validation: Annotated[
        float, typer.Option(min=0.0, max=0.5, help="Share of each person's photos to calibrate by.")
    ] = 0.1,
    seed: SeedOption = 0,
    options: LabelledOptions,
    json: JsonOption = False,
) -> None:
    """Train a classifier of people on embeddings, and compare it with a gallery of the same photos."""
    from edgeface.train import train_classifier

    with options.open() as faces, progress_bars() as progress:
        outcome = train_classifier(
            people,
            output_dir,
            edgeface.find_model(model),
            faces,
            kind=kind,
            c=c,
            min_photos=min_photos,
            held_out=held_out,
            validation=validation,
            seed=seed,
            progress=progress,
        )
    answer = outcome.to_dict()
    _list_left_out(answer, min_photos)
    if json:
        return emit_json(answer)
    table = Table(f"{answer['people']} people", "classifier", "gallery", title=kind, title_justify="left")
    told = {"right": "named rightly", "wrong": "named wrongly", "strangers_named": "strangers given a name"}
    for key, text in told.items():
        shares = (answer[each][key]["share"] for each in ("classifier", "gallery"))
        table.add_row(text, *("not measured" if share is None else f"{share:.1%}" for share in shares))
    stdout.print(table)
    print_line(outcome.advice)
    print_line(f"{outcome.file} written")
    print_line(f"{output_dir / 'report.html'} written")


def _list_left_out(answer: dict[str, Any], min_photos: int) -> None:
    """Print the photos and people that were not used, and names that seem to be of one person."""
    for failure in list_failures({Path(photo): why for photo, why in answer["unusable_photos"].items()}):
        print_note(f"{failure['path']}: {failure['error']}")
    for person, count in answer["dropped_people"].items():
        print_note(f"{person}: left out, with {counted(count, 'usable photo')}; {min_photos} needed")
    for each in answer["one_person"]:
        first, second = each["names"]
        print_note(
            f"{first} and {second} seem to be one person (mean cosine {each['mean_cosine']:.2f}); "
            "put them into one folder"
        )
