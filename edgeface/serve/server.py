"""Run the service: sockets, TLS, signals, and what systemd wants to know."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import logging
import os
import signal
import socket
import ssl
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeface.errors import EdgeFaceError, ExtraNotInstalledError, InputError
from edgeface.files import write_private
from edgeface.serve.settings import Settings

if TYPE_CHECKING:
    from edgeface.serve.doors import EventSource
    from edgeface.serve.service import Service

_log = logging.getLogger("edgeface.serve")
_DAY = 86_400.0
DRAIN_SECONDS = 10
"""For what was accepted when the service is asked to stop."""
_FIELDS = ("request_id", "method", "route", "status", "seconds", "bytes")


class JsonFormatter(logging.Formatter):
    """One JSON object a line: time, level, logger, message, and what a request is logged with."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        line: dict[str, Any] = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        line |= {name: getattr(record, name) for name in _FIELDS if hasattr(record, name)}
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=True, default=str)


def set_up_logging(settings: Settings) -> None:
    """Log to stderr as configured, instead of what was set up before."""
    handler = logging.StreamHandler(sys.stderr)
    if settings.log_format == "json":
        handler.setFormatter(JsonFormatter())
    else:
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logging.basicConfig(level=settings.log_level.upper(), handlers=[handler], force=True)


def notify(state: str) -> None:
    """Tell systemd, if it started this process with Type=notify; see sd_notify(3)."""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
        sender.connect("\0" + address[1:] if address.startswith("@") else address)
        sender.sendall(state.encode())


def bind(host: str, port: int, setting: str = "listen.port") -> socket.socket:
    """Open the listening socket; InputError, which names the setting, if the address is taken or another machine's."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
        except BaseException:
            listener.close()
            raise
    except OSError as error:
        raise InputError(
            expected=f"a free address {host}:{port}",
            found=error.strerror or str(error),
            remedy=f"choose another with listen.host and {setting}",
        ) from error
    return listener


@contextlib.contextmanager
def unix_socket(path: Path | None) -> Iterator[list[socket.socket]]:
    """Listen on a Unix socket in the block, which only this user may open, and remove it; no path: none.

    Raises InputError if a program listens there already, or it cannot be made.
    """
    if path is None:
        yield []
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        try:
            if path.is_socket():
                with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as other:
                    if not other.connect_ex(str(path)):
                        raise FileExistsError(errno.EADDRINUSE, "a program listens there")
                path.unlink()  # of a service that was killed
            before = os.umask(0o177)
            try:
                listener.bind(str(path))
            finally:
                os.umask(before)
        except OSError as error:
            found = error.strerror or str(error)
            raise InputError(
                path=path, expected="a place for a Unix socket", found=found, remedy="choose another with listen.socket"
            ) from error
        try:
            yield [listener]
        finally:
            path.unlink(missing_ok=True)


def check(settings: Settings) -> dict[str, Any]:
    """Open everything that `serve` would, and close it; return what there is. Raises what `serve` raises."""
    _import_app()
    from edgeface.serve.metrics import start_telemetry
    from edgeface.serve.service import Service

    listen = settings.listen
    with bind(listen.host, listen.port), unix_socket(listen.socket), Service(settings) as service:
        serve_grpc(None, settings)
        if (telemetry := start_telemetry(settings)) is not None:
            telemetry.close()
        models = {}
        for name in service.models.names():
            with service.models.use(name) as model:
                models[name] = model.contract.contract_id
        return {"models": models, "galleries": {name: len(each.index) for name, each in service.galleries.items()}}


def tell_first_key(key: str, state: Path) -> str:
    """Return the line that tells the first key on stderr: itself on a terminal, else a file of the state folder.

    What a service writes on stderr is kept in a journal or a log, which others read. The file is its owner's alone.
    """
    if sys.stderr.isatty():
        return f"the key for administrators, which is shown this once: {key}"
    path = state / "first.key"
    write_private(path, f"{key}\n".encode())
    return f"the key for administrators is in {path}; remove the file when you have read it"


def describe_api() -> dict[str, Any]:
    """Return the OpenAPI document of the service's own API."""
    return _import_app()[1]()


def _import_app() -> tuple[Callable[..., Any], Callable[[], dict[str, Any]]]:
    try:
        from edgeface.serve import connection  # noqa: F401 - a part of the extra, too
        from edgeface.serve.app import create_app, describe
    except ImportError as error:
        raise ExtraNotInstalledError("serve", needed_for="the service") from error
    return create_app, describe


def serve(
    configure: Callable[[], Settings],
    *,
    announce: Callable[[str, str | None, str | None], None],
    watch: Callable[[Service], contextlib.AbstractContextManager[EventSource]] | None = None,
) -> None:
    """Serve until SIGTERM or SIGINT; asked twice, without waiting for what is under way.

    Parameters
    ----------
    configure
        Returns the configuration; called again at SIGHUP.
    announce
        Is called once the service is ready, with its address, with host and port of gRPC if there is any, and with the
        text of the first key if one was made.
    watch
        Watches the doors of a service in a block; None: there are none.

    Raises
    ------
    EdgeFaceError
        If the configuration, a model, a gallery, a key or the address cannot be used; nothing is served then.
    """
    create_app, _ = _import_app()
    from edgeface.serve.service import Service

    settings = configure()
    set_up_logging(settings)
    with bind(settings.listen.host, settings.listen.port) as listener, contextlib.ExitStack() as opened:
        local = opened.enter_context(unix_socket(settings.listen.socket))
        service = opened.enter_context(Service(settings))
        app = create_app(service, None if watch is None else opened.enter_context(watch(service)))
        server, beside = make_server(app, settings), serve_grpc(app.state, settings)
        host, port = listener.getsockname()[:2]
        address = f"{'https' if settings.tls else 'http'}://{f'[{host}]' if ':' in host else host}:{port}"
        listeners = [listener, *local]
        asyncio.run(
            _run(server, app, listeners, beside, lambda at: announce(address, at, service.first_key), configure)
        )


def serve_grpc(state: Any, settings: Settings) -> contextlib.AbstractAsyncContextManager[str | None]:
    """Return what serves gRPC in a block, which gets host and port; None in it where the configuration has no gRPC.

    Raises ExtraNotInstalledError without the extra, and InputError if the address is taken or another machine's.
    """
    listen = settings.listen
    if listen.grpc_port is None:
        return contextlib.nullcontext(None)
    try:
        from edgeface.serve import rpc
    except ImportError as error:
        raise ExtraNotInstalledError("grpc", needed_for="listen.grpc_port") from error
    with bind(listen.host, listen.grpc_port, "listen.grpc_port") as free:  # gRPC takes no socket, and says less
        return rpc.serving(state, free.getsockname()[0], settings)


_ANYBODYS = (
    "Invalid HTTP request",
    "Invalid UTF-8 sequence",
    '"WebSocket ',
    "connection open",
    "connection rejected",
    "returned without completing handshake",
)


def _is_no_clients(record: logging.LogRecord) -> bool:
    """Leave out what anybody can cause, without a key and as often as they like."""
    said = record.getMessage()
    return not any(each in said for each in _ANYBODYS)


def make_server(app: Any, settings: Settings) -> Any:
    """Return a `uvicorn.Server` that leaves signals alone; `serve(sockets=[...])` runs it."""
    import uvicorn

    from edgeface.serve.connection import MESSAGE_BYTES, HttpConnection, SocketConnection

    tls, options = settings.tls, dict[str, Any]()
    if tls is not None:
        options = {"ssl_certfile": str(tls.certificate), "ssl_keyfile": str(tls.key)}
        if tls.client_ca is not None:
            options |= {"ssl_ca_certs": str(tls.client_ca), "ssl_cert_reqs": ssl.CERT_REQUIRED}
    server = uvicorn.Server(
        uvicorn.Config(
            app,
            http=HttpConnection,
            ws=SocketConnection,
            ws_max_size=MESSAGE_BYTES,
            ws_per_message_deflate=False,
            log_config=None,
            access_log=False,
            server_header=False,
            limit_concurrency=settings.limits.connections,
            timeout_keep_alive=30,
            timeout_graceful_shutdown=DRAIN_SECONDS,
            proxy_headers=bool(settings.listen.trusted_proxies),
            forwarded_allow_ips=list(settings.listen.trusted_proxies),
            **options,
        )
    )
    logging.getLogger("uvicorn.error").addFilter(_is_no_clients)
    server.capture_signals = contextlib.nullcontext  # type: ignore[assignment,method-assign]
    return server


async def _run(
    server: Any,
    app: Any,
    listeners: list[socket.socket],
    beside: contextlib.AbstractAsyncContextManager[str | None],
    ready: Callable[[str | None], None],
    configure: Callable[[], Settings],
) -> None:
    loop, stopping, reloads = asyncio.get_running_loop(), asyncio.Event(), set[asyncio.Future[None]]()

    def stop() -> None:
        if stopping.is_set():
            server.force_exit = True  # asked twice
        stopping.set()

    def reload() -> None:
        begun = asyncio.ensure_future(_reload(app.state.service, configure, server.config))
        reloads.add(begun)  # the loop keeps none alive
        begun.add_done_callback(reloads.discard)

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop)
    loop.add_signal_handler(signal.SIGHUP, reload)
    async with beside as grpc_address:
        serving = asyncio.ensure_future(server.serve(listeners))
        while not server.started and not serving.done():
            await asyncio.sleep(0.01)
        if server.started:
            ready(grpc_address)
            notify("READY=1")
        service = app.state.service
        watching = asyncio.gather(_feed_watchdog(app.state.probe), _keep_files(service), _keep_consents(service))
        await asyncio.wait({serving, asyncio.ensure_future(stopping.wait())}, return_when=asyncio.FIRST_COMPLETED)
        notify("STOPPING=1")
        app.state.streams.end()
        drained = await app.state.work.drain(DRAIN_SECONDS)  # what comes meanwhile is refused with 503
        if not drained:
            _log.warning("stopped with requests under way: they took longer than %d seconds", DRAIN_SECONDS)
        server.should_exit = True
        watching.cancel()
        await serving
        with contextlib.suppress(asyncio.CancelledError):
            await watching


async def _feed_watchdog(probe: Any) -> None:
    """Tell systemd that the engine answers, twice as often as it wants to know (sd_watchdog_enabled(3))."""
    every = int(os.environ.get("WATCHDOG_USEC", "0")) / 2e6
    while every:
        if probe.answers:
            notify("WATCHDOG=1")
        await asyncio.sleep(every)


async def _keep_files(service: Service) -> None:
    """Each second, write down which keys were used, and sync the audit log; each day, remove its old rows."""
    while True:
        await asyncio.sleep(1)
        try:
            await asyncio.to_thread(service.keys.maintain)
            if service.audit is not None:
                await asyncio.to_thread(service.audit.maintain, service.settings.audit.retention_days)
        except EdgeFaceError as error:
            _log.error("keys and the audit log are not kept: %s", error)
            await asyncio.sleep(60)


async def _keep_consents(service: Service) -> None:
    """At the start, and each day, report and forget people whose consent has expired."""
    from edgeface.serve.retention import sweep_consents

    while True:
        try:
            await asyncio.to_thread(sweep_consents, service)
        except Exception:
            _log.exception("expired consents are not looked after")
        await asyncio.sleep(_DAY)


def renew_certificate(config: Any) -> None:
    """Serve new connections of a `uvicorn.Config` with what its files of TLS hold now; others keep theirs.

    Raises InputError for files that are no pair, or whose key needs a password: the certificate before stays in use.
    """
    files = {"certfile": config.ssl_certfile, "keyfile": config.ssl_keyfile, "password": ""}
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(**files)  # half a pair would break the one in use
        config.ssl.load_cert_chain(**files)
    except (OSError, ValueError) as error:  # SSLError is an OSError
        raise InputError(
            path=config.ssl_certfile,
            expected=f"a certificate and its key in {config.ssl_keyfile}",
            found=str(error),
            remedy="put a pair there, and send SIGHUP again; the certificate before is served meanwhile",
        ) from error


async def _reload(service: Service, configure: Callable[[], Settings], config: Any) -> None:
    """Take certificates and the configuration anew; if they are wrong, say so and go on with the old ones."""
    notify(f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}")
    if getattr(config, "ssl", None) is not None:  # which it has once it serves
        try:
            renew_certificate(config)
            _log.info("took the certificate anew")
        except EdgeFaceError as error:
            _log.error("the certificate was not taken: %s", error)
    try:
        settings = await asyncio.to_thread(configure)
        kept = await asyncio.to_thread(service.reload, settings)
        logging.getLogger().setLevel(settings.log_level.upper())
        _log.info("took the configuration anew" + (f"; a restart is needed for {', '.join(kept)}" if kept else ""))
    except Exception:
        _log.exception("the configuration was not taken: the service goes on as it was")
    notify("READY=1")
