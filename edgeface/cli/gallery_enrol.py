"""The command `edgeface gallery enrol`."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Annotated

import typer

from edgeface.cli.gallery_options import (
    ForceOption,
    GalleryArgument,
    KeyOption,
    RulesOption,
    fail_on,
    open_gallery,
)
from edgeface.cli.options import AnalyzerOptions, NoGateOption, with_options
from edgeface.cli.output import JsonOption, emit_json, progress_bars, stderr, stdout
from edgeface.errors import InputError

if TYPE_CHECKING:
    from edgeface.gallery.enrolment_images import PersonEnrolment

__all__ = ["register"]


def register(group: typer.Typer) -> None:
    """Add this module's command."""
    group.command(
        epilog="Example: edgeface gallery enrol people.gallery ada1.jpg ada2.jpg --name 'Ada Lovelace' --model "
        "facenet.xml"
    )(with_options(enrol))


def enrol(
    gallery: GalleryArgument,
    paths: Annotated[
        list[str],
        typer.Argument(
            metavar="PATH...",
            help="Photos; folders with one folder of photos for each person; or files that 'edgeface embed' wrote.",
        ),
    ],
    *,
    name: Annotated[
        str | None,
        typer.Option(
            help="Name of the person in all photos. Default: the name of each photo's folder.",
            show_default=False,
        ),
    ] = None,
    label: Annotated[list[str] | None, typer.Option(help="A label. Repeatable.", show_default=False)] = None,
    meta: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY=VALUE", help="Metadata. Repeatable.", show_default=False),
    ] = None,
    force: ForceOption = False,
    largest: Annotated[
        bool, typer.Option("--largest", help="Take the largest of several faces in a photo.")
    ] = False,
    threshold: RulesOption = None,
    no_gate: NoGateOption = False,
    options: AnalyzerOptions,
    key: KeyOption = None,
    json: JsonOption = False,
) -> None:
    """Enrol people. Exit code 1: a person was refused, because no photo is usable or the face is another person's."""
    from edgeface.gallery.enrolment import EnrolRules
    from edgeface.gallery.enrolment_images import are_tables, enrol_folder
    from edgeface.vision.quality import QualityGate

    with contextlib.ExitStack() as stack:
        store = stack.enter_context(open_gallery(gallery, key))
        rules = EnrolRules.choose(threshold, store.info.contract_id)
        pipeline = None
        if not are_tables(paths):
            gate = None if no_gate else QualityGate()
            pipeline = stack.enter_context(options.load()).pipeline(gate=gate)
        done = enrol_folder(
            store,
            paths,
            rules=rules,
            pipeline=pipeline,
            name=name,
            labels=label,
            metadata=dict(_pair(each) for each in meta) if meta else None,
            largest=largest,
            force=force,
            progress=stack.enter_context(progress_bars()),
        )
    if json:
        emit_json({"gallery": str(gallery), **done.to_dict()})
    for path, why in done.refused.items():
        stderr.print(f"{path}: {why}", markup=False, soft_wrap=True)
    for each in done.enrolled:
        _show(each, quiet=json)
    for why in done.not_enrolled.values():
        stderr.print(why, markup=False, soft_wrap=True)
    fail_on(done.not_enrolled)


def _pair(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise InputError(f"--meta: expected KEY=VALUE, found {text!r}")
    return key, value


def _show(each: PersonEnrolment, *, quiet: bool) -> None:
    done, name = each.enrolment, each.enrolment.person.name
    for other in done.lookalikes:
        words = f"{name}: enrolled by force, and looks like {other.person.name!r} (similarity {other.similarity:.3f})"
        stderr.print(words, markup=False, soft_wrap=True)
    for odd in done.disagreements:
        second = each.sources[odd.other] if isinstance(odd.other, int) else f"template {odd.other.id}"
        stderr.print(
            f"{name}: {each.sources[odd.new]} and {second} do not look like one person (similarity "
            f"{odd.similarity:.3f}); check them",
            markup=False,
            soft_wrap=True,
        )
    if not quiet:
        known = f", {done.already} known already" if done.already else ""
        stdout.print(
            f"{name} (#{done.person.id}): {len(done.template_ids)} new, {done.person.template_count} templates in "
            f"all{known}",
            markup=False,
            soft_wrap=True,
        )
