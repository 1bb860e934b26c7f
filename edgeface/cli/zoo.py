"""Run `edgeface zoo ...`: list, describe, download, verify and carry over published models."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Annotated, Any, Literal

import typer
from rich.table import Column, Table

from edgeface import zoo
from edgeface.cli.output import (
    JsonOption,
    counted,
    emit_json,
    escape,
    print_line,
    print_note,
    progress_bars,
    stderr,
    stdout,
)
from edgeface.errors import InputError, NegativeResult

group = typer.Typer(no_args_is_help=True, help="List, describe, download, verify and transfer published models.")

Names = Annotated[
    list[str], typer.Argument(metavar="NAME...", help="Model names or shell patterns, separated by commas.")
]
OptionalNames = Annotated[
    list[str] | None,
    typer.Argument(metavar="[NAME...]", help="Model names or shell patterns; by default all in the store."),
]
CatalogOption = Annotated[
    Path | None,
    typer.Option("--catalog", metavar="FILE", help="Model catalog to use instead of the built-in model_zoo.yml."),
]
CacheOption = Annotated[
    Path | None,
    typer.Option(
        "--cache",
        metavar="DIR",
        envvar="EDGEFACE_CACHE",
        help="Folder of the model store; by default ~/.cache/edgeface.",
    ),
]
AcceptOption = Annotated[
    bool, typer.Option("--accept-licence", "--accept-license", "-y", help="Accept the licences without asking.")
]


ProgressFormat = Literal["auto", "text", "json", "none"]
"""How the progress of a download is shown; ``auto`` draws bars on a terminal and nothing elsewhere."""
_DEFAULT = zoo.DownloadPolicy()


def register(app: typer.Typer) -> None:
    """Add the group to the command line."""
    app.add_typer(group, name="zoo")


@group.command("list")
def list_models(catalog: CatalogOption = None, cache: CacheOption = None, as_json: JsonOption = False) -> None:
    """List the models of the catalog.

    Example: edgeface zoo list
    """
    entries, store = list(zoo.load_catalog(catalog).values()), zoo.ModelStore(cache)
    default = zoo.default_name(store=store)
    if as_json:
        return emit_json({"models": [_brief(entry, store, default) for entry in entries]})
    columns = [Column(title, overflow="fold") for title in ("name", "task", "licence", "size", "here")]
    columns[0].no_wrap, columns[0].min_width = True, max(len(entry.name) for entry in entries)  # copied from here
    table = Table(*columns, box=None, pad_edge=False, collapse_padding=True, header_style="bold")
    for entry in entries:
        task, size = (
            entry.task_type.replace("_", " "),
            "unknown" if entry.size is None else f"{entry.size / 1e6:.1f} MB",
        )
        here = "yes" if zoo.presence(entry, store=store) else "no"
        table.add_row(escape(entry.name), task, escape(_license_name(entry)), size, here)
    stdout.print(table)
    if default is not None:
        print_line(f"default: {default}")


@group.command()
def info(
    name: Annotated[str | None, typer.Argument(metavar="[NAME]", help="Model name.")] = None,
    model_yml: Annotated[
        Path | None, typer.Option("--from", metavar="FILE", help="Read an Open Model Zoo model.yml instead.")
    ] = None,
    catalog: CatalogOption = None,
    cache: CacheOption = None,
    as_json: JsonOption = False,
) -> None:
    """Describe one model: files, preprocessing, alignment, licence, published accuracy.

    Example: edgeface zoo info facenet-20180408-102900
    """
    if (name is None) == (model_yml is None):
        raise InputError("expected either a model name or --from FILE; list the names with: edgeface zoo list")
    entry = zoo.load_catalog(catalog)[name] if name else zoo.load_model_yml(model_yml or Path())
    store = zoo.ModelStore(cache)
    answer = {
        **_brief(entry, store, zoo.default_name(store=store)),
        **entry.model_dump(mode="json", by_alias=True, exclude_none=True),
    }
    recorded = {file.name: blob for file in entry.files if (blob := store.recorded(entry, file))}
    answer["recorded"] = {
        file: {"sha256": blob.sha256, "source": blob.source, "first_use": blob.first_use, "at": blob.recorded}
        for file, blob in recorded.items()
    }
    if as_json:
        return emit_json(answer)
    for key, value in _facts(entry, answer, recorded):  # unfolded, so that addresses and digests can be copied
        stdout.print(f"[bold]{escape(key)}[/]  {escape(value)}", soft_wrap=True)


@group.command()
def download(
    names: Names,
    mirror: Annotated[
        str | None,
        typer.Option(
            metavar="ADDRESS|DIR",
            envvar="EDGEFACE_MIRROR",
            help="http(s):// address or folder with <model>/<file name>, tried first.",
        ),
    ] = None,
    cache: CacheOption = None,
    catalog: CatalogOption = None,
    jobs: Annotated[int, typer.Option("--jobs", "-j", min=1, help="Number of parallel downloads.")] = _DEFAULT.jobs,
    attempts: Annotated[int, typer.Option(min=1, help="Maximum attempts per source.")] = _DEFAULT.attempts,
    timeout: Annotated[
        float, typer.Option(min=0.1, help="Seconds without a byte before a connection counts as dead.")
    ] = _DEFAULT.timeout,
    accept: AcceptOption = False,
    progress: Annotated[
        ProgressFormat, typer.Option(help="Progress format; json writes one line per event to stderr.")
    ] = "auto",
    as_json: JsonOption = False,
) -> None:
    """Download models. Interrupted downloads resume; intact files are not downloaded again.

    Each licence is shown once. A terminal asks to accept it; without a terminal, the store records that it was shown.

    Example: edgeface zoo download facenet-20180408-102900
    """
    entries, store = zoo.load_catalog(catalog).match(",".join(names)), zoo.ModelStore(cache)
    policy = zoo.DownloadPolicy(attempts=attempts, timeout=timeout, jobs=jobs)
    for entry in entries:
        agree_to_license(entry, store, accept=accept)
    with reporting(progress) as reports:
        done = [(e, zoo.download(e, store, mirror=mirror, policy=policy, **reports)) for e in entries]
    if as_json:
        return emit_json({"models": [_downloaded(entry, result) for entry, result in done]})
    for entry, result in done:
        state = "already here and intact" if result.already_there else "downloaded"
        print_line(f"{entry.name}: {state}: {result.folder}")
        for blob in result.blobs:
            if blob.first_use:
                stdout.print(
                    f"  no digest is published; trusted on first use: SHA-256 {blob.sha256} "
                    f"({blob.size:,} bytes from {escape(blob.source)}, {blob.recorded})",
                    soft_wrap=True,
                )


@group.command()
def verify(
    names: OptionalNames = None, catalog: CatalogOption = None, cache: CacheOption = None, as_json: JsonOption = False
) -> None:
    """Compare every byte of downloaded models with the published or recorded digests.

    Example: edgeface zoo verify 'facenet*'
    """
    known, store = zoo.load_catalog(catalog), zoo.ModelStore(cache)
    entries = known.match(",".join(names)) if names else [each for each in known.values() if store.has(each)]
    checks = {entry.name: store.verify(entry) for entry in entries}
    damaged = {name: [each for each in found if not each.intact] for name, found in checks.items()}
    first = next((check for found in damaged.values() for check in found), None)
    if as_json:
        bad = {
            name: [{"path": str(each.path), "expected": each.expected, "found": each.found} for each in found]
            for name, found in damaged.items()
        }
        models = [
            {"name": name, "intact": not bad[name], "checks": len(found), "damaged": bad[name]}
            for name, found in checks.items()
        ]
        emit_json({"models": models, "intact": first is None})
        if first is not None:
            raise typer.Exit(NegativeResult.exit_code)
        return
    for name, found in checks.items():
        count = len(damaged[name])
        state = f"{count} of {len(found)} checks failed" if count else f"intact, {counted(len(found), 'check')}"
        print_line(f"{name}: {state}")
    if not entries:
        stdout.print("no model is downloaded")
    if first is not None:
        raise NegativeResult(
            f"{first.path}: expected {first.expected}, found {first.found or 'no file'}; "
            "repair it with: edgeface zoo download <model>"
        )


@group.command()
def default(
    model: Annotated[
        str | None, typer.Argument(metavar="[NAME_OR_IR]", help="Model name, or .xml of an IR with a contract.")
    ] = None,
    catalog: CatalogOption = None,
    cache: CacheOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show or set the default model, which is used where no model is given.

    The variable EDGEFACE_MODEL overrides it.

    Example: edgeface zoo default facenet-20180408-102900
    """
    from edgeface.convert import convert
    from edgeface.model.ir_file import read_contract

    store = zoo.ModelStore(cache)
    if model is not None:
        zoo.set_default_model(model, store=store, catalog=zoo.load_catalog(catalog))
    ir = zoo.default_model(store=store, convert=convert)
    _, contract = read_contract(ir)
    if as_json:
        return emit_json({"model": contract.name, "ir": str(ir), "contract_id": contract.contract_id})
    print_line(f"{contract.name} ({contract.contract_id}): {ir}")


@group.command()
def bundle(
    names: Names,
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FILE", help="Archive to write.")],
    catalog: CatalogOption = None,
    cache: CacheOption = None,
    as_json: JsonOption = False,
) -> None:
    """Write downloaded models into one archive, for machines without a network.

    Example: edgeface zoo bundle facenet-20180408-102900,yunet -o models.tar
    """
    entries, store = zoo.load_catalog(catalog).match(",".join(names)), zoo.ModelStore(cache)
    _print_bundle("wrote", output, zoo.export_bundle(entries, store, output), as_json=as_json)


@group.command("import")
def import_models(
    archive: Annotated[Path, typer.Argument(metavar="FILE", help="Archive written by `edgeface zoo bundle`.")],
    accept: AcceptOption = False,
    catalog: CatalogOption = None,
    cache: CacheOption = None,
    as_json: JsonOption = False,
) -> None:
    """Check a bundle and add its models to the store.

    Example: edgeface zoo import models.tar
    """
    known, store = zoo.load_catalog(catalog), zoo.ModelStore(cache)
    for model in zoo.read_manifest(archive).models:
        agree_to_license(known[model.name], store, accept=accept)
    _print_bundle("imported", archive, zoo.import_bundle(archive, known, store), as_json=as_json)


@contextlib.contextmanager
def reporting(form: ProgressFormat, *, stream: IO[str] | None = None) -> Iterator[dict[str, Any]]:
    """Yield the arguments of `zoo.download` that show progress.

    `stream` is for the lines of ``json``, which are those of Open Model Zoo's ``--progress_format=json``; by default
    stderr, so that a command's one JSON object on stdout stays alone.
    """

    def write_event(event: zoo.DownloadEvent) -> None:
        fields = {key: value for key, value in dataclasses.asdict(event).items() if value is not None}
        output = stream or sys.stderr
        output.write(json.dumps({"$type": fields.pop("kind"), **fields}) + "\n")
        output.flush()

    def write_line(event: zoo.DownloadEvent) -> None:
        if event.kind == "model_file_download_end" and event.successful:
            print_note(f"{event.model}/{event.model_file}: done")

    if form == "json":
        yield {"on_event": write_event}
    elif form == "none":
        yield {}
    elif form == "text" and not stderr.is_terminal:
        yield {"on_event": write_line}
    else:
        with progress_bars() as progress:
            yield {"progress": progress}


def show_license(entry: zoo.ModelEntry, store: zoo.ModelStore) -> None:
    """Show a licence the first time, and record that it was shown."""
    if store.license_state(entry) is None:
        print_note(f"{entry.name}: licence {_license_name(entry)}, {entry.license}")
        store.record_license(entry, "shown")


def agree_to_license(entry: zoo.ModelEntry, store: zoo.ModelStore, *, accept: bool) -> None:
    """Show a licence the first time; on a terminal, ask once whether it is accepted.

    Raises InputError if it is not accepted on a terminal.
    """
    show_license(entry, store)
    if store.license_state(entry) == "accepted":
        return
    if not accept and _is_interactive():
        stderr.print(f"Do you accept the licence of {escape(entry.name)}? \\[y/N] ", end="")
        if input().strip().lower() not in ("y", "yes"):
            raise InputError(f"{entry.name}: its licence, {entry.license}, was not accepted; nothing was done")
        accept = True
    if accept:
        store.record_license(entry, "accepted")


def _is_interactive() -> bool:
    return sys.stdin.isatty() and sys.stderr.isatty()


def _brief(entry: zoo.ModelEntry, store: zoo.ModelStore, default: str | None) -> dict[str, Any]:
    return {
        **{key: getattr(entry, key) for key in ("name", "task_type", "framework", "license", "license_name", "size")},
        "folder": str(store.model_dir(entry)) if store.has(entry) else None,
        "here": zoo.presence(entry, store=store),
        "default": entry.name == default,
        "license_state": store.license_state(entry),
    }


def _downloaded(entry: zoo.ModelEntry, result: zoo.Download) -> dict[str, Any]:
    files = [
        {"sha256": blob.sha256, "size": blob.size, "source": blob.source, "trusted_on_first_use": blob.first_use}
        for blob in result.blobs
    ]
    return {"name": entry.name, "folder": str(result.folder), "already_there": result.already_there, "files": files}


def _print_bundle(verb: str, path: Path, manifest: zoo.Manifest, *, as_json: bool) -> None:
    total = path.stat().st_size
    if as_json:
        return emit_json(
            {"bundle": str(path), "bytes": total, "models": [each.model_dump() for each in manifest.models]}
        )
    names = ", ".join(model.name for model in manifest.models)
    print_line(f"{verb} {path} ({total:,} bytes): {names}")


def _facts(entry: zoo.ModelEntry, answer: dict[str, Any], recorded: dict[str, zoo.Blob]) -> Iterator[tuple[str, str]]:
    yield "name", entry.name
    yield "description", entry.description
    yield "task, framework", f"{entry.task_type}, {entry.framework}"
    yield "licence", f"{_license_name(entry)}, {entry.license}"
    yield "here", (answer["here"] or "no") + (", default" if answer["default"] else "")
    yield "downloaded", answer["folder"] or "no"
    for file in entry.files:
        key, blob = f"file {file.name}", recorded.get(file.name)
        yield key, f"{_bytes(file.size)} bytes"
        if file.trust_on_first_use and blob:
            yield key, f"trusted on first use: SHA-256 {blob.sha256}, {blob.recorded}"
        elif file.trust_on_first_use:
            yield key, "no digest is published: trust on first use"
        for algorithm, digest in file.digests.items():
            yield key, f"{algorithm.upper()} {digest}"
        for source in file.sources:
            yield key, f"from {source}"
    for key in ("preprocessing", "alignment", "embedding", "liveness", "conversion"):
        if key in answer:
            yield key, ", ".join(f"{name} {value}" for name, value in answer[key].items())
    for number in entry.published:
        yield number.metric, f"{number.value:g} on {number.dataset}, {number.source}"


def _license_name(entry: zoo.ModelEntry) -> str:
    return entry.license_name or ("non-commercial" if entry.non_commercial else "see address")


def _bytes(size: int | None) -> str:
    return "unknown" if size is None else f"{size:,}"
