"""`edgeface train head`, and the group of all trainings."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.table import Table

import edgeface
from edgeface.cli.options import LabelledOptions, ModelOption, with_options
from edgeface.cli.output import JsonOption, escape, progress_bars
from edgeface.cli.train_embedder import (
    ForceOption,
    HeldOutOption,
    ImagesOption,
    MinPhotosOption,
    NameOption,
    PatienceOption,
    PeopleArgument,
    classifier,
    finish,
    metric,
)

if TYPE_CHECKING:
    from edgeface.train import HeadOutcome


_Preset = Literal["linear", "finetune", "focal-restarts"]
_Loss = Literal["cross-entropy", "focal"]
_Weights = Literal["balanced", "rare", "none"]
_Augmentation = Literal["none", "mirror", "light", "some-of-seven"]


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
            show_default=False,
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
        _Preset | None,
        typer.Option(help="Optimisation. Default: linear, or finetune with --unfreeze.", show_default=False),
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
            show_default=False,
        ),
    ] = None,
    images: ImagesOption = None,
    name: NameOption = None,
    force: ForceOption = False,
    options: LabelledOptions,
    json: JsonOption = False,
) -> None:
    """Train a classifier of people, and write the embedder without it."""
    from edgeface.train import PRESETS, HeadSettings, pairs_of_strangers, train_head

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
    given: dict[str, Any] = {
        "epochs": epochs,
        "batch": batch,
        "rate": rate,
        "tail_share": tail_share,
        "patience": patience,
    }
    chosen = PRESETS[preset or "finetune" if unfreeze else "linear"]
    told = {key: value for key, value in given.items() if value is not None}
    with options.open() as faces, progress_bars() as progress:
        outcome = train_head(
            people,
            output_dir,
            edgeface.find_model(model),
            faces,
            settings=settings,
            optimisation=dataclasses.replace(chosen, seed=seed, **told),
            strangers=pairs_of_strangers(verify, people, images, faces=faces, seed=seed) if verify else None,
            name=name,
            force=force,
            progress=progress,
        )
    finish(outcome, output_dir, _head_table, json=json)


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
