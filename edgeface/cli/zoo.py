"""`edgeface zoo ...`: what models there are, and getting them onto this machine."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.table import Column, Table

from edgeface import zoo
from edgeface.cli.output import JsonOption, emit_json, stderr, stdout
from edgeface.cli.progress import ProgressFormat, reporting
from edgeface.errors import InputError, ModelNotFoundError, NegativeResult

group = typer.Typer(
    no_args_is_help=True, help="Published models: list, describe, download, verify, carry over."
)

Names = Annotated[
    list[str],
    typer.Argument(metavar="NAME...", help="Names, shell patterns, or several of them with commas."),
]
OptionalNames = Annotated[
    list[str] | None,
    typer.Argument(metavar="[NAME...]", help="Names or patterns; by default all that are here."),
]
CatalogOption = Annotated[
    Path | None, typer.Option("--catalog", metavar="FILE", help="Another model_zoo.yml.", show_default=False)
]
CacheOption = Annotated[
    Path | None,
    typer.Option(
        "--cache",
        metavar="DIR",
        envvar="EDGEFACE_CACHE",
        help="Where models are kept; ~/.cache/edgeface by default.",
        show_default=False,
    ),
]

_DEFAULT = zoo.Policy()


def register(app: typer.Typer) -> None:
    """Add the group to the command line."""
    app.add_typer(group, name="zoo")


@group.command("list")
def list_models(
    catalog: CatalogOption = None, cache: CacheOption = None, as_json: JsonOption = False
) -> None:
    """List the models that edgeface knows.

    Example: edgeface zoo list
    """
    entries, store = list(zoo.load_catalog(catalog).values()), zoo.ModelStore(cache)
    if as_json:
        emit_json({"models": [_brief(entry, store) for entry in entries]})
        return
    columns = [Column(title, no_wrap=True) for title in ("name", "task", "licence", "bytes", "here")]
    table = Table(*columns, box=None, pad_edge=False, collapse_padding=True, header_style="bold")
    for entry in entries:
        here = "yes" if store.has(entry) else "no"
        table.add_row(entry.name, entry.task_type, _license_name(entry), _bytes(entry.size), here)
    stdout.print(table)


@group.command()
def info(
    name: Annotated[str | None, typer.Argument(metavar="[NAME]", help="A model's name.")] = None,
    model_yml: Annotated[
        Path | None,
        typer.Option(
            "--from", metavar="FILE", help="Read an Open Model Zoo model.yml instead.", show_default=False
        ),
    ] = None,
    catalog: CatalogOption = None,
    cache: CacheOption = None,
    as_json: JsonOption = False,
) -> None:
    """Describe one model: files, preprocessing, alignment, licence, published accuracy.

    Example: edgeface zoo info facenet-20180408-102900
    """
    if (name is None) == (model_yml is None):
        raise InputError(
            "expected either a model's name or --from FILE; see the names with: edgeface zoo list"
        )
    entry = zoo.load_catalog(catalog)[name] if name else zoo.load_model_yml(model_yml or Path())
    store = zoo.ModelStore(cache)
    answer = {**_brief(entry, store), **entry.model_dump(mode="json", by_alias=True, exclude_none=True)}
    recorded = {file.name: blob for file in entry.files if (blob := store.recorded(entry, file))}
    answer["recorded"] = {
        file: {"sha256": blob.sha256, "source": blob.source, "first_use": blob.first_use, "at": blob.recorded}
        for file, blob in recorded.items()
    }
    if as_json:
        emit_json(answer)
        return
    _print_info(entry, answer)


@group.command()
def download(
    names: Names,
    mirror: Annotated[
        str | None,
        typer.Option(
            metavar="ADDRESS|DIR",
            envvar="EDGEFACE_MIRROR",
            help="Look here first, for <model>/<file name>; an http(s):// address or a folder.",
            show_default=False,
        ),
    ] = None,
    cache: CacheOption = None,
    catalog: CatalogOption = None,
    jobs: Annotated[int, typer.Option("--jobs", "-j", min=1, help="Files at once.")] = _DEFAULT.jobs,
    attempts: Annotated[int, typer.Option(min=1, help="Attempts at each source.")] = _DEFAULT.attempts,
    timeout: Annotated[
        float, typer.Option(min=0.1, help="Seconds without a byte before a connection counts as dead.")
    ] = _DEFAULT.timeout,
    accept: Annotated[
        bool, typer.Option("--accept-license", "-y", help="Accept the licences without being asked.")
    ] = False,
    progress: Annotated[
        ProgressFormat, typer.Option(help="json: a line an event on stderr.")
    ] = ProgressFormat.auto,
    as_json: JsonOption = False,
) -> None:
    """Download models; interrupted downloads resume, and what is here and intact is left alone.

    A licence is shown the first time. On a terminal it has to be accepted; elsewhere showing it is recorded.

    Example: edgeface zoo download facenet-20180408-102900
    """
    entries, store = zoo.load_catalog(catalog).match(",".join(names)), zoo.ModelStore(cache)
    policy = zoo.Policy(attempts=attempts, timeout=timeout, jobs=jobs)
    for entry in entries:
        agree_to_license(entry, store, accept=accept)
    with reporting(progress, console=stderr) as report:
        done = [(e, zoo.download(e, store, mirror=mirror, policy=policy, progress=report)) for e in entries]
    if as_json:
        emit_json({"models": [_downloaded(entry, result) for entry, result in done]})
        return
    for entry, result in done:
        state = "already here and intact" if result.already_there else "downloaded"
        stdout.print(f"{entry.name}: {state}: {escape(str(result.folder))}", soft_wrap=True)
        for blob in result.blobs:
            if blob.first_use:
                stdout.print(
                    f"  nobody published a digest; trusted on first use: SHA-256 {blob.sha256} "
                    f"({blob.size:,} bytes from {escape(blob.source)}, {blob.recorded})",
                    soft_wrap=True,
                )


@group.command()
def verify(
    names: OptionalNames = None,
    catalog: CatalogOption = None,
    cache: CacheOption = None,
    as_json: JsonOption = False,
) -> None:
    """Compare every byte of downloaded models with the published or recorded digests.

    Example: edgeface zoo verify 'facenet*'
    """
    known, store = zoo.load_catalog(catalog), zoo.ModelStore(cache)
    entries = (
        known.match(",".join(names)) if names else [entry for entry in known.values() if store.has(entry)]
    )
    checks = {entry.name: store.verify(entry) for entry in entries}
    damaged = [check for found in checks.values() for check in found if not check.intact]
    if as_json:
        emit_json(
            {"models": [_verified(name, found) for name, found in checks.items()], "intact": not damaged}
        )
        if damaged:
            raise typer.Exit(NegativeResult.exit_code)
        return
    for name, found in checks.items():
        bad = sum(not check.intact for check in found)
        stdout.print(
            f"{name}: " + (f"{bad} of {len(found)} checks failed" if bad else f"intact, {len(found)} checks")
        )
    if not entries:
        stdout.print("no model is downloaded")
    if damaged:
        first = damaged[0]
        raise NegativeResult(
            f"{first.path}: expected {first.expected}, found {first.found or 'no file'}; "
            "repair it with: edgeface zoo download <model>"
        )


@group.command()
def default(
    model: Annotated[
        str | None,
        typer.Argument(metavar="[NAME_OR_IR]", help="Zoo name, or .xml of an IR with a contract."),
    ] = None,
    catalog: CatalogOption = None,
    cache: CacheOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show or set the model that is used where none is named.

    EDGEFACE_MODEL, where it is set, goes before it.

    Example: edgeface zoo default facenet-20180408-102900
    """
    from edgeface.convert import convert
    from edgeface.zoo.default import read_contract

    store = zoo.ModelStore(cache)
    if model is not None:
        zoo.set_default_model(model, store=store, catalog=zoo.load_catalog(catalog))
    ir = zoo.default_model(store=store, convert=convert)
    contract = read_contract(ir)
    if as_json:
        emit_json({"model": contract.name, "ir": str(ir), "contract_id": contract.contract_id})
        return
    stdout.print(f"{contract.name} ({contract.contract_id}): {escape(str(ir))}", soft_wrap=True)


@group.command()
def bundle(
    names: Names,
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FILE", help="The archive to write.")],
    catalog: CatalogOption = None,
    cache: CacheOption = None,
    as_json: JsonOption = False,
) -> None:
    """Write downloaded models into one archive, for machines with no network.

    Example: edgeface zoo bundle facenet-20180408-102900,yunet -o models.tar
    """
    entries, store = zoo.load_catalog(catalog).match(",".join(names)), zoo.ModelStore(cache)
    manifest = zoo.export_bundle(entries, store, output)
    _print_bundle("wrote", output, manifest.models, as_json=as_json)


@group.command("import")
def import_models(
    archive: Annotated[Path, typer.Argument(metavar="FILE", help="What `edgeface zoo bundle` wrote.")],
    accept: Annotated[
        bool, typer.Option("--accept-license", "-y", help="Accept the licences without being asked.")
    ] = False,
    catalog: CatalogOption = None,
    cache: CacheOption = None,
    as_json: JsonOption = False,
) -> None:
    """Check a bundle and take its models into the cache.

    Example: edgeface zoo import models.tar
    """
    known, store = zoo.load_catalog(catalog), zoo.ModelStore(cache)
    for model in zoo.read_manifest(archive).models:
        agree_to_license(known[model.name], store, accept=accept)
    manifest = zoo.import_bundle(archive, known, store)
    _print_bundle("imported", archive, manifest.models, as_json=as_json)


def show_license(entry: zoo.ModelEntry, store: zoo.ModelStore) -> None:
    """Show a licence the first time, and record that it was shown."""
    if store.license_state(entry) is None:
        stderr.print(f"{entry.name}: licence {_license_name(entry)}, {escape(entry.license)}", soft_wrap=True)
        store.record_license(entry, "shown")


def agree_to_license(entry: zoo.ModelEntry, store: zoo.ModelStore, *, accept: bool) -> None:
    """Show a licence the first time; on a terminal, ask once whether it is accepted.

    Raises
    ------
    InputError
        If a person on a terminal does not accept it.
    """
    show_license(entry, store)
    if store.license_state(entry) == "accepted":
        return
    if not accept and _is_interactive():
        stderr.print(f"Do you accept the licence of {entry.name}? \\[y/N] ", end="")
        if input().strip().lower() not in ("y", "yes"):
            raise InputError(
                f"{entry.name}: its licence, {entry.license}, was not accepted; nothing was done"
            )
        accept = True
    if accept:
        store.record_license(entry, "accepted")


def _is_interactive() -> bool:
    return sys.stdin.isatty() and sys.stderr.isatty()


def _brief(entry: zoo.ModelEntry, store: zoo.ModelStore) -> dict[str, Any]:
    try:
        folder = str(store.model_dir(entry))
    except ModelNotFoundError:
        folder = None
    return {
        "name": entry.name,
        "task_type": entry.task_type,
        "framework": entry.framework,
        "license": entry.license,
        "license_name": entry.license_name,
        "size": entry.size,
        "folder": folder,
        "license_state": store.license_state(entry),
    }


def _downloaded(entry: zoo.ModelEntry, result: zoo.Download) -> dict[str, Any]:
    files = [
        {
            "sha256": blob.sha256,
            "size": blob.size,
            "source": blob.source,
            "trusted_on_first_use": blob.first_use,
        }
        for blob in result.blobs
    ]
    return {
        "name": entry.name,
        "folder": str(result.folder),
        "already_there": result.already_there,
        "files": files,
    }


def _verified(name: str, checks: Sequence[zoo.FileCheck]) -> dict[str, Any]:
    damaged = [
        {"path": str(check.path), "expected": check.expected, "found": check.found}
        for check in checks
        if not check.intact
    ]
    return {"name": name, "intact": not damaged, "checks": len(checks), "damaged": damaged}


def _print_bundle(verb: str, path: Path, models: Sequence[Any], *, as_json: bool) -> None:
    total = path.stat().st_size
    if as_json:
        emit_json({"bundle": str(path), "bytes": total, "models": [model.model_dump() for model in models]})
    else:
        names = ", ".join(model.name for model in models)
        stdout.print(f"{verb} {escape(str(path))} ({total:,} bytes): {names}", soft_wrap=True)


def _print_info(entry: zoo.ModelEntry, answer: dict[str, Any]) -> None:
    """One line a fact, unfolded, so that addresses and digests can be copied."""
    rows = [
        ("name", entry.name),
        ("description", entry.description),
        ("task, framework", f"{entry.task_type}, {entry.framework}"),
        ("licence", f"{_license_name(entry)}, {entry.license}"),
        ("downloaded", answer["folder"] or "no"),
    ]
    for file in entry.files:
        rows += [(f"file {file.name}", text) for text in _file_texts(file, answer["recorded"].get(file.name))]
    for key in ("preprocessing", "alignment", "embedding", "conversion"):
        if key in answer:
            rows.append((key, ", ".join(f"{name} {value}" for name, value in answer[key].items())))
    rows += [
        (number.metric, f"{number.value:g} on {number.dataset}, {number.source}")
        for number in entry.published
    ]
    for key, value in rows:
        stdout.print(f"[bold]{escape(key)}[/]  {escape(value)}", soft_wrap=True)


def _file_texts(file: zoo.ModelFile, recorded: dict[str, Any] | None) -> list[str]:
    digests = [f"{algorithm.upper()} {digest}" for algorithm, digest in file.digests.items()]
    if file.trust_on_first_use:
        digests = ["nobody published a digest: trust on first use"]
        if recorded:
            digests = [f"trusted on first use: SHA-256 {recorded['sha256']}, {recorded['at']}"]
    return [f"{_bytes(file.size)} bytes", *digests, *(f"from {source}" for source in file.sources)]


def _license_name(entry: zoo.ModelEntry) -> str:
    return entry.license_name or "see address"


def _bytes(size: int | None) -> str:
    return "unknown" if size is None else f"{size:,}"
