"""The commands `edgeface serve keys|audit|certificates`, which work on the service's files, also while it runs."""

from __future__ import annotations

import contextlib
import datetime
import json as json_
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.table import Column, Table

from edgeface.cli.gallery_options import YesOption, answer, confirm
from edgeface.cli.output import GuardedStream, JsonOption, counted, emit_json, escape, print_line, print_note, stdout
from edgeface.errors import NegativeResult

if TYPE_CHECKING:
    from edgeface.serve.audit import AuditLog
    from edgeface.serve.keys import Key, KeyStore

keys = typer.Typer(no_args_is_help=True, help="Keys of the service: add, list, revoke, rotate.")
audit = typer.Typer(no_args_is_help=True, help="The log of who asked what: verify, show, prune.")


RoleName = Literal["recognise", "enrol", "admin", "metrics"]
"""`edgeface.serve.keys.Role`, without importing what keeps keys."""
KeyArgument = Annotated[str, typer.Argument(metavar="ID", help="The key's id, as 'keys list' shows it.")]


def add_to(group: typer.Typer) -> None:
    """Add these commands to `edgeface serve`, whose callback leaves the service's settings in the context."""
    group.add_typer(keys, name="keys")
    group.add_typer(audit, name="audit")
    group.command(epilog="Example: edgeface serve certificates kiosk.local 192.168.1.20")(certificates)


# Keys


@keys.command(epilog="Example: edgeface serve keys add 'front door' --role recognise --days 365")
def add(
    context: typer.Context,
    name: Annotated[str, typer.Argument(metavar="NAME", help="Who or what uses it.")],
    role: Annotated[RoleName, typer.Option(help="What it is for; enrol includes recognise, admin includes all.")],
    gallery: Annotated[str | None, typer.Option(help="The only gallery that it is for. Default: all.")] = None,
    days: Annotated[int | None, typer.Option(min=1, max=36500, help="Days until it expires. Default: never.")] = None,
    json: JsonOption = False,
) -> None:
    """Make a key, and print it on stdout, this once."""
    from edgeface.serve.keys import Role

    if gallery is not None:
        _check_gallery(context, gallery)
    with _open_keys(context, create=True) as store:
        expires = None if days is None else store.now() + datetime.timedelta(days=days)
        _print_new(*store.add(name, Role(role), gallery=gallery, expires=expires), store, json=json)


@keys.command("list", epilog="Example: edgeface serve keys list")
def list_keys(context: typer.Context, json: JsonOption = False) -> None:
    """List all keys; nothing that is shown of them is secret."""
    with _open_keys(context) as store:
        told = [_describe(key, store) for key in store.list()]
    if json:
        emit_json({"keys": told})
        return
    folded = (Column(name, overflow="fold") for name in ("name", "role", "gallery", "state"))
    days = (Column(name, no_wrap=True) for name in ("expires", "last used"))
    table = Table(Column("id", no_wrap=True), *folded, *days, box=None, pad_edge=False, header_style="bold")
    for each in told:
        state = f"{each['state']}, replaced by {each['replaced_by']}" if each["replaced_by"] else each["state"]
        cells = each["id"], each["name"], each["role"], each["gallery"] or "all", state
        table.add_row(*map(escape, cells), *((each[name] or "")[:10] for name in ("expires", "last_used")))
    stdout.print(table)


@keys.command(epilog="Example: edgeface serve keys revoke 4f1c22d8")
def revoke(context: typer.Context, key: KeyArgument, json: JsonOption = False) -> None:
    """Refuse a key from now on, for good; a running service does so within a second."""
    with _open_keys(context) as store:
        revoked = store.revoke(key)
        answer(_describe(revoked, store), f"key {key} ({revoked.name}) is revoked", json=json)


@keys.command(epilog="Example: edgeface serve keys rotate 4f1c22d8 --grace 7")
def rotate(
    context: typer.Context,
    key: KeyArgument,
    grace: Annotated[float, typer.Option(min=0, max=366, help="Days that the old key still works.")] = 1,
    json: JsonOption = False,
) -> None:
    """Make a key in place of another, and print it on stdout, this once."""
    with _open_keys(context) as store:
        _print_new(*store.rotate(key, datetime.timedelta(days=grace)), store, json=json)


def _check_gallery(context: typer.Context, gallery: str) -> None:
    """Refuse a gallery that a configuration which is given lacks; without one, only say so."""
    groups = context.parent and context.parent.parent
    if (groups and groups.params["config"]) or "galleries" in context.obj.model_fields_set:
        context.obj.require_gallery(gallery)
    elif gallery not in context.obj.galleries:
        print_note(f"there may be no gallery {gallery}: to have it checked, give the service's --config before 'keys'")


def _open_keys(context: typer.Context, *, create: bool = False) -> contextlib.closing[KeyStore]:
    from edgeface.serve.keys import KeyStore

    return contextlib.closing(KeyStore(context.obj.state / "keys.sqlite", create=create))


def _describe(key: Key, store: KeyStore) -> dict[str, Any]:
    times = {name: getattr(key, name) for name in ("created", "expires", "revoked", "last_used")}
    told = {name: getattr(key, name) for name in ("id", "name", "gallery", "replaced_by")}
    told |= {"role": key.role.value, "state": key.state(store.now())}
    return told | {name: time and time.isoformat() for name, time in times.items()}


def _print_new(key: Key, text: str, store: KeyStore, *, json: bool) -> None:
    if json:
        emit_json({"text": text, **_describe(key, store)})
    else:
        print_line(text)
    if isinstance(sys.stdout, GuardedStream) and sys.stdout.lost():
        store.revoke(key.id)
        print_note(f"key {key.id} ({key.name}) is revoked, because nobody has seen it; add another one")
        return
    if json:
        return
    ends = f"expires on {key.expires:%Y-%m-%d}" if key.expires else "does not expire"
    print_note(
        f"key {key.id} ({key.name}): {key.role.value}, {key.gallery or 'all galleries'}, {ends}; shown this once"
    )


# The audit log


@audit.command(epilog="Example: edgeface serve audit verify --head 1204:9f0c...")
def verify(
    context: typer.Context,
    head: Annotated[
        str | None,
        typer.Option(
            metavar="NUMBER:HASH",
            help="A head that was printed earlier and kept elsewhere: shows rows that were cut off or written anew.",
        ),
    ] = None,
    json: JsonOption = False,
) -> None:
    """Recompute the hashes of all rows; exit with 1 if any is missing or was changed."""
    with _open_audit(context) as log:
        report = log.verify(head)
    told = {"whole": bool(report), "rows": report.rows, "head": report.head}
    rows = counted(report.rows, "row")
    text = f"{rows}, none is missing or changed; head, to be kept elsewhere: {report.head}"
    if not report:
        text = f"{rows} in order; row {report.broken}: {report.reason}"
    answer(told | {"broken": report.broken, "reason": report.reason}, text, json=json)
    if not report:
        raise typer.Exit(NegativeResult.exit_code)


@audit.command(epilog="Example: edgeface serve audit show --since 2026-11-01 --action enrol")
def show(
    context: typer.Context,
    since: Annotated[
        datetime.datetime | None, typer.Option(formats=["%Y-%m-%d", "%Y-%m-%dT%H:%M:%S"], help="First time, UTC.")
    ] = None,
    action: Annotated[str | None, typer.Option(help="Rows of this action only.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Only so many, the last ones.")] = None,
    json: JsonOption = False,
) -> None:
    """Print rows, one JSON object a line; with --json all of them in one object."""
    with _open_audit(context) as log:
        first = since and since.replace(tzinfo=datetime.timezone.utc)
        rows = (row.to_dict() for row in log.rows(since=first, action=action, limit=limit))
        if json:
            emit_json({"rows": list(rows)})
        else:
            for row in rows:
                print_line(json_.dumps(row))


@audit.command(epilog="Example: edgeface serve audit prune --days 365 --dry-run")
def prune(
    context: typer.Context,
    days: Annotated[
        float | None, typer.Option(min=0, help="Age of rows to remove. Default: the configuration's.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only count them.")] = False,
    yes: YesOption = False,
    json: JsonOption = False,
) -> None:
    """Remove and overwrite old rows; a row that names the last of them keeps the chain verifiable."""
    age = context.obj.audit.retention_days if days is None else days
    with _open_audit(context) as log:
        if not dry_run:
            confirm(f"Remove the rows of {log.path} that are older than {age:g} days?", command="prune", yes=yes)
        count = log.prune(age, dry_run=dry_run)
    done = "would be removed" if dry_run else "removed"
    answer({"rows": count, "days": age, "dry_run": dry_run}, f"{counted(count, 'row')} {done}", json=json)


def _open_audit(context: typer.Context) -> contextlib.closing[AuditLog]:
    from edgeface.serve.audit import AuditLog

    return contextlib.closing(AuditLog(context.obj.state / "audit.sqlite", create=False))


# Certificates

_INSTALL = """\
install {ca} on each client (never ca.key), after comparing its SHA-256:
  {fingerprint}
  Debian, Ubuntu: cp ca.crt /usr/local/share/ca-certificates/edgeface.crt && update-ca-certificates
  Fedora, RHEL: trust anchor ca.crt; Windows: certutil -addstore -f ROOT ca.crt
  macOS: security add-trusted-cert -d -r trustRoot -k /Library/Keychains/System.keychain ca.crt
  Firefox: Settings, Certificates, Authorities, Import; curl: --cacert ca.crt; Python: SSL_CERT_FILE=ca.crt"""


def certificates(
    context: typer.Context,
    names: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[NAME]...",
            help="DNS names and IP addresses of the server, beside its host name and localhost. Default: as before.",
        ),
    ] = None,
    client: Annotated[str | None, typer.Option(metavar="NAME", help="Make the certificate of this client.")] = None,
    folder: Annotated[Path | None, typer.Option(help="Default: tls in the service's state folder.")] = None,
    addresses: Annotated[
        bool, typer.Option(help="For IP addresses too, which gRPC's clients in Python and C++ cannot check.")
    ] = True,
    json: JsonOption = False,
) -> None:
    """Make or renew the certificate of the server, or of a client, and the authority that clients install once."""
    from edgeface.serve.authority import issue_client, issue_server

    place = folder or context.obj.state / "tls"
    made = issue_server(place, names or (), addresses=addresses) if client is None else issue_client(place, client)
    files = {name: str(getattr(made, name)) for name in ("certificate", "key", "authority")}
    if json:
        rest = {"names": made.names, "fingerprint": made.fingerprint, "new_authority": made.new_authority}
        emit_json({**files, **rest, "expires": made.expires.isoformat()})
        return
    print_line(f"{made.certificate}: {', '.join(made.names)}; expires on {made.expires:%Y-%m-%d}")
    if client is None:
        print_note(f"in the configuration: tls: {{certificate: {made.certificate}, key: {made.key}}}")
    if made.new_authority:
        for line in _INSTALL.format(
            ca=made.authority, fingerprint=bytes.fromhex(made.fingerprint).hex(":").upper()
        ).splitlines():
            print_note(line)
