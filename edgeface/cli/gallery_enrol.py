"""The command `edgeface gallery enrol`."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

import typer

from edgeface.cli.gallery_options import ForceOption, GalleryArgument, KeyOption, RulesOption, group, open_gallery, warn
from edgeface.cli.options import AnalyzerOptions, NoGateOption, with_options
from edgeface.cli.output import JsonOption, emit_json, progress_bars, stdout
from edgeface.errors import InputError

if TYPE_CHECKING:
    from edgeface.gallery import Enrolment


@group.command(epilog="Example: edgeface gallery enrol people.gallery ada1.jpg ada2.jpg --name 'Ada Lovelace'")
@with_options
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
            help="Name of the person in all photos. Default: the name of each photo's folder.", show_default=False
        ),
    ] = None,
    label: Annotated[
        list[str] | None, typer.Option(help="Label for each enrolled person. Repeatable.", show_default=False)
    ] = None,
    meta: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY=VALUE", help="Metadata for each enrolled person. Repeatable.", show_default=False),
    ] = None,
    force: ForceOption = False,
    largest: Annotated[
        bool,
        typer.Option(
            "--largest",
            help="Enrol the largest face of a photo with several faces; by default such a photo is refused.",
        ),
    ] = False,
    threshold: RulesOption = None,
    no_gate: NoGateOption = False,
    options: AnalyzerOptions,
    key: KeyOption = None,
    json: JsonOption = False,
) -> None:
    """Enrol people. Exit code 1: a person was refused.

    A person is refused if no photo is usable, or if the face matches another enrolled person.
    """
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
    warn(f"{path}: {why}" for path, why in done.refused.items())
    for each in done.enrolled:
        warn(_doubts(each))
        if not json:
            known = f", {each.already} known already" if each.already else ""
            stdout.print(
                f"{each.person.name} (#{each.person.id}): {len(each.template_ids)} new, "
                f"{each.person.template_count} templates in all{known}",
                markup=False,
                soft_wrap=True,
            )
    warn(done.not_enrolled.values(), fail=True)


def _pair(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise InputError(f"--meta: expected KEY=VALUE, found {text!r}")
    return key, value


def _doubts(done: Enrolment) -> Iterator[str]:
    name = done.person.name
    for each in done.lookalikes:
        yield f"{name}: enrolled by force, and looks like {each.person.name!r} (similarity {each.similarity:.3f})"
    for odd in done.disagreements:
        other = done.sources[odd.other] if isinstance(odd.other, int) else f"template {odd.other.id}"
        yield (
            f"{name}: {done.sources[odd.new]} and {other} do not look like one person (similarity "
            f"{odd.similarity:.3f}); check them"
        )
