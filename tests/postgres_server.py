"""A PostgreSQL server of the tests' own: an unprivileged user, a free port, a folder that is deleted afterwards."""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

USER = "edgeface"
WITH_PASSWORD = "needs_password"
"""A user whom the server asks for a password, once a test has made them."""
_SETTINGS = {
    "listen_addresses": "127.0.0.1",
    "unix_socket_directories": "",
    "fsync": "off",  # the tests stop the server, not the machine
    "shared_buffers": "16MB",
    "max_connections": "40",
    "autovacuum": "off",
}


def binaries() -> Path | None:
    """The folder of the newest server that is installed; EDGEFACE_POSTGRES names another."""
    if named := os.environ.get("EDGEFACE_POSTGRES"):
        return Path(named)
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda each: int(each.parts[-3]))
    return found[-1].parent if found else None


class Cluster:
    """One server; `stop` and `start` as often as a test likes."""

    def __init__(self, folder: Path, programs: Path, **settings: str) -> None:
        self._folder, self._programs, self._settings = folder, programs, _SETTINGS | settings
        self._process: subprocess.Popen[bytes] | None = None
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self._account: dict[str, object] = {}
        if os.geteuid() == 0:  # PostgreSQL refuses to run as root
            account = next(pwd.getpwnam(name) for name in ("postgres", "nobody") if _exists(name))
            self._account = {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": []}
            os.chown(folder, account.pw_uid, account.pw_gid)
        self.run("initdb", "-D", str(folder / "data"), "-U", USER, "-A", "trust", "--no-sync", "-E", "UTF8")
        access = folder / "data" / "pg_hba.conf"
        access.write_text(f"host all {WITH_PASSWORD} 127.0.0.1/32 scram-sha-256\n{access.read_text()}")

    def run(self, program: str, *arguments: str) -> str:
        """Run one of the server's programs as its user, in its folder."""
        done = subprocess.run(
            [self._programs / program, *arguments],
            cwd=self._folder,
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
            **self._account,
        )
        assert done.returncode == 0, f"{program}: {done.stderr}"
        return done.stdout

    @property
    def url(self) -> str:
        return f"postgresql://{USER}@127.0.0.1:{self.port}/postgres"

    def start(self) -> None:
        options = [part for name, value in self._settings.items() for part in ("-c", f"{name}={value}")]
        self._process = subprocess.Popen(
            [self._programs / "postgres", "-D", str(self._folder / "data"), "-p", str(self.port), *options],
            cwd=self._folder,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            **self._account,
        )
        import psycopg

        deadline = time.monotonic() + 60
        while True:
            try:
                psycopg.connect(self.url, connect_timeout=5).close()
                return
            except psycopg.OperationalError:
                assert self._process.poll() is None, "postgres ended at once"
                assert time.monotonic() < deadline, "postgres does not answer"
                time.sleep(0.05)

    def stop(self) -> None:
        """At once, as when the machine's plug is pulled."""
        if self._process is not None:
            self._process.send_signal(signal.SIGQUIT)
            self._process.wait(60)
            self._process = None

    def holds(self, needle: bytes) -> bool:
        """Whether the files of the tables, not the log of changes, hold these bytes."""
        files = (path for path in (self._folder / "data" / "base").rglob("*") if path.is_file())
        return any(needle in path.read_bytes() for path in files)

    def sql(self, statement: str) -> object:
        import psycopg

        with psycopg.connect(self.url, autocommit=True) as connection:
            cursor = connection.execute(statement)
            return cursor.fetchall() if cursor.description else None


def _exists(name: str) -> bool:
    with contextlib.suppress(KeyError):
        return bool(pwd.getpwnam(name))
    return False


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    pytest.importorskip("psycopg", reason="the extra 'postgres' is not installed")
    programs = binaries()
    if programs is None:
        pytest.skip("no PostgreSQL server in /usr/lib/postgresql: apt-get install postgresql-15")
    if os.geteuid() == 0 and not (_exists("postgres") or _exists("nobody")):
        pytest.skip("PostgreSQL does not run as root, and there is no user to run it as")
    folder = Path(tempfile.mkdtemp(prefix="edgeface-postgres-"))
    try:
        running = Cluster(folder, programs)
        running.start()
        yield running
        running.stop()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def pgvector(cluster: Cluster) -> Cluster:
    if not cluster.sql("SELECT 1 FROM pg_available_extensions WHERE name = 'vector'"):
        pytest.skip("this PostgreSQL server has no pgvector: apt-get install postgresql-NN-pgvector")
    return cluster
