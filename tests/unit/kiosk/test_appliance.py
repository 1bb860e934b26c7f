"""The archive that installs a kiosk, what a hostile one is refused for, and its installer in a folder of its own."""

from __future__ import annotations

import contextlib
import copy
import functools
import itertools
import os
import shutil
import signal
import sqlite3
import stat
import subprocess
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from appliances import install, members_of, pack, real_wheels, sign, stand_in_wheels, unpack
from tiny_ir import write_tiny_ir

pytest.importorskip("fastapi", reason="the extra 'serve' is not installed")
pytest.importorskip("httptools", reason="the extra 'serve' is not installed")

from edgeface.errors import ArchiveError, ContractError, EdgeFaceError, GalleryError, InputError
from edgeface.gallery.opening import create_gallery
from edgeface.gallery.records import NewTemplate
from edgeface.kiosk.appliance import TOP, build_appliance, check_appliance, read_appliance
from edgeface.model.embedding import Embedding
from edgeface.model.ir_file import read_contract
from edgeface.serve import server
from edgeface.serve.service import Service
from edgeface.serve.settings import Settings

pytestmark = pytest.mark.slow
CONFIG = (
    "listen: {port: 0}\nmodels: {default: {detector: null, allow_seeded: true}}\ngalleries: {default: {gate: false}}\n"
)
Build = Callable[..., Path]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder for what all tests here share, which the tests of the installer unpack to some 10 MB each."""
    folder = tmp_path_factory.mktemp("appliance")
    (folder / "serve.yml").write_text(CONFIG)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def build(made: Path) -> Build:
    """Build an archive whose edgeface is a stand-in with this result of its test; each kind is made once."""

    @functools.cache
    def make(code: int = 0, source: str = "a") -> Path:
        archive = made / f"{code}{source}.tar"
        ir = write_tiny_ir(made / f"ir-{archive.stem}", source=source)
        wheels = stand_in_wheels(made / f"wheels-{archive.stem}", code=code)
        build_appliance(archive, config=made / "serve.yml", model=ir, wheels=wheels, liveness=False)
        return archive

    return make


# The archive


def test_the_same_input_gives_the_same_bytes_of_root_and_without_times(
    build: Build, made: Path, tmp_path: Path
) -> None:
    first = build()
    os.utime(next((made / "wheels-0a").glob("edgeface-*")), (1, 1))
    ir = made / "ir-0a" / "tiny.xml"
    again = tmp_path / "again.tar"
    found = build_appliance(again, config=made / "serve.yml", model=ir, wheels=made / "wheels-0a", liveness=False)
    assert again.read_bytes() == first.read_bytes()
    members = [each for each, _ in members_of(first)]
    assert {(each.uid, each.gid, each.mtime, each.type) for each in members} == {(0, 0, 0, tarfile.REGTYPE)}
    assert [each.name for each in members if each.mode != 0o644] == [f"{TOP}/edgeface", f"{TOP}/install"]
    assert members[0].name == f"{TOP}/SHA256SUMS"
    assert found.files.keys() == {each.name.removeprefix(f"{TOP}/") for each in members[1:]}


def test_no_gallery_no_key_and_no_password_enters_it(build: Build, made: Path, tmp_path: Path) -> None:
    names = [each.name for each, _ in members_of(build())]
    assert {Path(name).suffix for name in names} <= {"", ".service", ".yml", ".txt", ".json", ".xml", ".bin", ".whl"}
    config = tmp_path / "serve.yml"
    config.write_text("kiosk: {cameras: {door: {source: 'rtsp://user:secret@camera/1'}}}\n")
    with pytest.raises(InputError, match="without passwords"):
        build_appliance(tmp_path / "k.tar", config=config, wheels=made / "wheels-0a", liveness=False)
    assert not (tmp_path / "k.tar").exists()


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("models: {default: {model: /home/me/a.xml}}", "--model"),
        ("models: {default: {modell: a}}", "modell"),
        ("models: {default: {detector: null}}", "random"),
    ],
)
def test_a_configuration_that_could_not_be_served_there_is_refused(
    text: str, match: str, made: Path, tmp_path: Path, build: Build
) -> None:
    build()
    config = tmp_path / "serve.yml"
    config.write_text(text)
    ir = write_tiny_ir(tmp_path, provenance="seeded")
    with pytest.raises(EdgeFaceError, match=match):
        build_appliance(tmp_path / "k.tar", config=config, model=ir, wheels=made / "wheels-0a", liveness=False)


Members = list[tuple[tarfile.TarInfo, bytes]]


def add(members: Members, name: str, **changes: Any) -> Members:
    member = tarfile.TarInfo(name)
    for key, value in changes.items():
        setattr(member, key, value)
    return [*members, (member, b"")]


def replace(members: Members, ending: str, content: bytes) -> Members:
    (place,) = [i for i, (each, _) in enumerate(members) if each.name.endswith(ending)]
    member = copy.copy(members[place][0])
    member.size = len(content)
    return [*members[:place], (member, content), *members[place + 1 :]]


def swap(members: Members) -> Members:
    (a, b) = [i for i, (each, _) in enumerate(members) if each.name.endswith(".whl")]
    members[a][0].name, members[b][0].name = members[b][0].name, members[a][0].name
    return members


def name_twice(members: Members) -> Members:
    sums = members[0][1]
    return replace(members, "SHA256SUMS", sums + sums[:100].split(b"\n")[0] + b"\n")


def set_mode(members: Members) -> Members:
    members[1][0].mode = 0o4755
    return members


HOSTILE: dict[str, Callable[[Members], Members]] = {
    "a link": lambda m: add(m, f"{TOP}/a", type=tarfile.SYMTYPE, linkname="/etc/passwd"),
    "a hard link": lambda m: add(m, f"{TOP}/a", type=tarfile.LNKTYPE, linkname=f"{TOP}/install"),
    "a device": lambda m: add(m, f"{TOP}/a", type=tarfile.CHRTYPE),
    "a folder": lambda m: add(m, f"{TOP}/a", type=tarfile.DIRTYPE),
    "an absolute path": lambda m: add(m, "/etc/passwd"),
    "a path outside": lambda m: add(m, f"{TOP}/../a"),
    "a file beside": lambda m: add(m, f"{TOP}/a"),
    "a file twice": lambda m: [*m, m[-1]],
    "SHA256SUMS twice": lambda m: [*m, m[0]],
    "a file that is missing": lambda m: m[:-1],
    "SHA256SUMS not first": lambda m: [*m[1:], m[0]],
    "a name twice in SHA256SUMS": name_twice,
    "a path outside in SHA256SUMS": lambda m: replace(m, "SHA256SUMS", m[0][1] + b"0" * 64 + b"  a/../../b\n"),
    "no digest": lambda m: replace(m, "SHA256SUMS", b"\xff\n" + m[0][1]),
    "wheels that changed places": swap,
    "another program": lambda m: replace(m, f"{TOP}/install", b"#!/bin/sh\n"),
    "a program that sets its user": set_mode,
    "nothing": lambda m: [],
}


@pytest.mark.parametrize("what", HOSTILE)
def test_a_hostile_archive_is_refused(what: str, build: Build, tmp_path: Path) -> None:
    pack(tmp_path / "k.tar", HOSTILE[what](members_of(build())))
    with pytest.raises(EdgeFaceError):
        read_appliance(tmp_path / "k.tar")


def test_an_archive_that_is_cut_is_refused(build: Build, tmp_path: Path) -> None:
    content = build().read_bytes()
    for length in (0, 100, 512, 5_000, len(content) // 2, len(content) - 20_000):
        (tmp_path / "k.tar").write_bytes(content[:length])
        with pytest.raises(ArchiveError):
            read_appliance(tmp_path / "k.tar")


# The installer


def layout(prefix: Path) -> dict[str, str]:
    """Return what the installer keeps: which version runs, which were before, and that none is half there."""
    opt = prefix / "opt/edgeface"
    versions = [each for each in opt.iterdir() if each.is_dir() and not each.is_symlink()]
    assert all((each / ".complete").exists() for each in versions)
    links = {name: opt.joinpath(name) for name in ("current", "previous")}
    return {name: str(link.readlink()) for name, link in links.items() if link.is_symlink()}


def runs(prefix: Path) -> bool:
    """Whether the version that is current answers."""
    done = subprocess.run([prefix / "opt/edgeface/current/edgeface"], capture_output=True, text=True, check=False)
    return done.returncode == 0 and str(prefix / "var/lib/edgeface") in done.stdout


def test_an_upgrade_keeps_configuration_and_state_and_the_version_before(build: Build, tmp_path: Path) -> None:
    prefix = tmp_path / "kiosk"
    said = install(unpack(build(), tmp_path / "1"), prefix)
    (first,) = layout(prefix).values()
    assert f"{prefix}/opt/edgeface/current/edgeface serve --config {prefix}/etc/edgeface/serve.yml" in said
    config, gallery = prefix / "etc/edgeface/serve.yml", prefix / "var/lib/edgeface/galleries/default.gallery"
    assert config.read_text() == CONFIG
    assert stat.S_IMODE((prefix / "var/lib/edgeface").stat().st_mode) == 0o700
    unit = prefix / "etc/systemd/system/multi-user.target.wants/edgeface.service"
    assert f"ExecStart={prefix}/opt/edgeface/current/edgeface " in unit.read_text()
    gallery.parent.mkdir()
    gallery.write_bytes(b"people")
    config.write_text(CONFIG + "# mine\n")
    second_folder = unpack(build(0, "b"), tmp_path / "2")
    shim = tmp_path / "bin/mv"
    shim.parent.mkdir()
    shim.write_text("#!/bin/sh\nkill -9 $PPID\n")
    shim.chmod(0o755)
    install(second_folder, prefix, code=-signal.SIGKILL, path=shim.parent)  # the power is cut before it switches
    assert layout(prefix) == {"current": first}
    assert runs(prefix)
    install(second_folder, prefix)
    now = layout(prefix)
    assert now["previous"] == first != now["current"]
    assert runs(prefix)
    assert install(second_folder, prefix).count("copying") == 0  # again: it is tested, and nothing else changes
    assert layout(prefix) == now
    assert (config.read_text(), gallery.read_bytes()) == (CONFIG + "# mine\n", b"people")
    install(second_folder, prefix, "--rollback")
    assert layout(prefix) == {"current": now["previous"], "previous": now["current"]}
    install(second_folder, prefix, "--uninstall")
    assert not (prefix / "opt/edgeface").exists()
    assert not unit.is_symlink()
    assert gallery.read_bytes() == b"people"
    install(second_folder, prefix, "--uninstall", "--purge")
    assert not (prefix / "var/lib/edgeface").exists()
    assert not config.exists()


def cut_wheel(folder: Path) -> None:
    (wheel,) = folder.glob("wheels/edgeface-*.whl")
    wheel.write_bytes(wheel.read_bytes()[:-300])
    sign(folder)


def other_python(folder: Path) -> None:
    facts = folder / "APPLIANCE"
    facts.write_text(facts.read_text().replace("python=3.", "python=2."))
    sign(folder)


def small_disk(folder: Path) -> None:
    facts = folder / "APPLIANCE"
    facts.write_text(facts.read_text().replace("bytes=", "bytes=99999999"))
    sign(folder)


def swap_wheels(folder: Path) -> None:
    a, b = folder.glob("wheels/*.whl")
    (content, other) = a.read_bytes(), b.read_bytes()
    a.write_bytes(other)
    b.write_bytes(content)


def link(folder: Path) -> None:
    shutil.copy("/etc/hostname", folder.parent / "outside")
    (folder / "serve.yml").unlink()
    (folder / "serve.yml").symlink_to(folder.parent / "outside")


def lead_outside(folder: Path) -> None:
    sums = folder / "SHA256SUMS"
    sums.write_text(sums.read_text() + "0" * 64 + "  store/../../../etc/passwd\n")


BROKEN: dict[str, tuple[Callable[[Path], object], str]] = {
    "a wheel that is cut": (cut_wheel, ""),
    "another Python": (other_python, "expected Python"),
    "too small a disk": (small_disk, "KiB free"),
    "a model that is damaged": (lambda folder: next(folder.rglob("*.bin")).write_bytes(b"0"), "damaged"),
    "wheels that changed places": (swap_wheels, "damaged"),
    "a link": (link, "a link or a device"),
    "a pipe": (lambda folder: os.mkfifo(folder / "pipe"), "a link or a device"),
    "a file beside": (lambda folder: (folder / "a").touch(), "no other"),
    "a file that is missing": (lambda folder: (folder / "serve.yml").unlink(), "no other"),
    "a path outside": (lead_outside, "something else"),
    "a name with a space": (lambda folder: (folder / "SHA256SUMS").write_text("0" * 64 + "  a b\n"), "something else"),
}


@pytest.fixture(scope="module")
def installed(build: Build, made: Path) -> Path:
    """A kiosk that runs its first version."""
    install(unpack(build(), made / "installed"), made / "prefix")
    return made / "prefix"


@pytest.mark.parametrize("what", BROKEN)
def test_what_is_broken_leaves_the_version_that_runs(what: str, build: Build, installed: Path, tmp_path: Path) -> None:
    before = layout(installed)
    folder = unpack(build(0, "b"), tmp_path / "new")
    spoil, says = BROKEN[what]
    spoil(folder)
    assert says in install(folder, installed, code=1)
    assert layout(installed) == before
    assert runs(installed)


def test_a_version_that_fails_its_test_is_removed_and_the_one_before_goes_on(
    build: Build, installed: Path, tmp_path: Path
) -> None:
    before = layout(installed)
    said = install(unpack(build(3), tmp_path / "new"), installed, code=1)
    assert "failed its test" in said
    assert layout(installed) == before
    assert runs(installed)


def lines_to_end_at(script: str) -> list[int]:
    """Numbers of the lines of the installer before which it may be ended: each command of each function."""
    lines = script.splitlines()
    begin = next(i for i, line in enumerate(lines) if line.startswith("copy() {"))
    end = next(i for i, line in enumerate(lines) if line.startswith("rollback() {"))
    words = (
        "mkdir",
        "cp ",
        "verify ",
        "chmod",
        "python3",
        "rm ",
        "chown",
        "say ",
        "settle",
        ":",
        "point ",
        "ln ",
        "if !",
        "make_",
    )
    return [i for i in range(begin, end) if lines[i].strip().startswith(words)]


def end_at(folder: Path, line: int) -> None:
    """Let the installer be killed before this line, as by a power cut."""
    script = folder / "install"
    lines = script.read_text().splitlines()
    script.write_text("\n".join([*lines[:line], "kill -9 $$", *lines[line:]]) + "\n")
    sign(folder)


def check_ends(lines: list[int], build: Build, tmp_path: Path) -> None:
    prefix, first = tmp_path / "kiosk", unpack(build(), tmp_path / "1")
    install(first, prefix)
    reached = 0
    for line in lines:
        folder = unpack(build(0, "b"), tmp_path / f"at-{line}")
        end_at(folder, line)
        install(folder, prefix, code=None)
        assert runs(prefix), line
        fresh = unpack(build(0, "b"), tmp_path / f"after-{line}")
        install(fresh, prefix)  # the next one cleans up
        assert runs(prefix), line
        reached += layout(prefix)["current"] != ""
        shutil.rmtree(prefix / "opt/edgeface")
        shutil.rmtree(folder.parent)
        install(first, prefix)
    assert reached == len(lines)


@pytest.mark.nightly
def test_a_power_cut_before_any_command_leaves_a_version_that_runs(build: Build, tmp_path: Path) -> None:
    lines = lines_to_end_at(unpack(build(), tmp_path / "0").joinpath("install").read_text())
    assert len(lines) > 25
    check_ends(lines, build, tmp_path)


@pytest.mark.nightly
def test_an_installer_that_is_killed_at_any_time_leaves_a_version_that_runs(build: Build, tmp_path: Path) -> None:
    prefix, first = tmp_path / "kiosk", unpack(build(), tmp_path / "1")
    install(first, prefix)
    second = unpack(build(0, "b"), tmp_path / "2")
    for folder, tenths in zip(itertools.cycle([second, first]), range(1, 21)):
        process = subprocess.Popen(
            [folder / "install", "--prefix", prefix], start_new_session=True, stdout=subprocess.DEVNULL
        )
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(tenths / 10)
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        assert runs(prefix), tenths


def test_two_installers_do_not_run_at_once(build: Build, installed: Path, tmp_path: Path) -> None:
    with (installed / "opt/edgeface/.lock").open() as lock:
        import fcntl

        fcntl.flock(lock, fcntl.LOCK_EX)
        assert "under way" in install(unpack(build(), tmp_path / "new"), installed, code=1)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root mounts a small disk")
@pytest.mark.nightly
def test_a_disk_that_fills_up_in_the_middle_leaves_the_version_that_runs(build: Build, tmp_path: Path) -> None:
    prefix = tmp_path / "kiosk"
    prefix.mkdir()
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=120m", "kiosk", prefix], capture_output=True, check=False
    ).returncode:
        pytest.skip("no disk can be mounted here")
    try:
        install(unpack(build(), tmp_path / "1"), prefix)
        before = layout(prefix)
        for left in (50, 1000, 2100):  # KiB: in the copy, its beginning and end, and in the environment
            full = prefix / "full"
            free = shutil.disk_usage(prefix).free
            full.write_bytes(b"0" * (free - (left << 10)))
            folder = unpack(build(0, "b"), tmp_path / f"new-{left}")
            facts = folder / "APPLIANCE"
            facts.write_text(
                "".join(f"{line}\n" if "bytes" not in line else "bytes=1\n" for line in facts.read_text().split())
            )
            sign(folder)
            assert "No space left" in install(folder, prefix, code=None)
            full.unlink()
            assert layout(prefix) == before
            assert runs(prefix)
    finally:
        subprocess.run(["umount", prefix], check=True)


def test_the_programs_are_clean_and_the_unit_is_right(build: Build, tmp_path: Path) -> None:
    folder = unpack(build(), tmp_path / "1")
    for tool, words in {"shellcheck": ["install", "edgeface"], "dash": ["-n", "install"]}.items():
        if shutil.which(tool):
            done = subprocess.run([tool, *words], cwd=folder, capture_output=True, text=True, check=False)
            assert done.returncode == 0, done.stdout + done.stderr
    unit = (folder / "edgeface.service").read_text().splitlines()
    for line in (
        "NoNewPrivileges=yes",
        "ProtectSystem=strict",
        "DevicePolicy=closed",
        "Type=notify",
        "StateDirectory=edgeface",
    ):
        assert line in unit
    assert {line for line in unit if line.startswith("DeviceAllow=")} == {
        f"DeviceAllow=char-{kind} rw" for kind in ("video4linux", "drm", "accel")
    }
    if shutil.which("systemd-analyze"):
        words = ["security", "--offline=yes", "--threshold=20", str(folder / "edgeface.service")]
        done = subprocess.run(["systemd-analyze", *words], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout[-300:] + done.stderr


# The test that it makes of itself


@pytest.fixture
def kiosk(build: Build, made: Path, tmp_path: Path) -> dict[str, str]:
    """What the installed command has in its environment: the archive's store, and a state folder."""
    store = unpack(build(), tmp_path / "k") / "store"
    return {
        "EDGEFACE_CACHE": str(store),
        "EDGEFACE_SERVE_STATE": str(tmp_path / "state"),
        "EDGEFACE_SERVE_CACHE": str(tmp_path),
    }


def enrol(kiosk: dict[str, str], ir: Path) -> Path:
    """Make the gallery of a service, with one person; return its file."""
    path = Path(kiosk["EDGEFACE_SERVE_STATE"]) / "galleries/default.gallery"
    key = path.parents[1] / "keys/default.key"
    for folder in (path.parent, key.parent):
        folder.mkdir(parents=True)
    key.write_text("1" * 64 + "\n")
    key.chmod(0o600)
    _, contract = read_contract(ir)
    with create_gallery(path, contract=contract, key=f"file:{key}") as store:
        vector = np.float32([1, 0, 0])
        store.add_person("Ada", templates=[NewTemplate(embedding=Embedding(vector, contract.contract_id))])
    return path


def test_the_test_opens_the_gallery_in_its_place_and_changes_nothing(
    kiosk: dict[str, str], made: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGEFACE_CACHE", kiosk["EDGEFACE_CACHE"])
    gallery = enrol(kiosk, made / "ir-0a/tiny.xml")
    state = Path(kiosk["EDGEFACE_SERVE_STATE"])
    before = {str(each.relative_to(state)) for each in state.rglob("*") if each.is_file()}
    report = check_appliance(made / "serve.yml", environ=kiosk)
    assert report["galleries"] == {"default": 1}
    assert report["models"]["default"] == pytest.approx(1, abs=1e-3)
    assert {str(each.relative_to(state)) for each in state.rglob("*") if each.is_file()} - before <= {
        f"galleries/default.gallery{end}" for end in ("-wal", "-shm", ".index")
    }
    with sqlite3.connect(gallery) as connection:
        connection.execute("ALTER TABLE gallery DROP COLUMN detectors")
        connection.execute("PRAGMA user_version = 3")
    with pytest.raises(GalleryError, match="--migrate"):
        check_appliance(made / "serve.yml", environ=kiosk)


def test_a_model_of_another_contract_than_the_gallery_fails_the_test(
    kiosk: dict[str, str], made: Path, build: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    build(0, "b")
    monkeypatch.setenv("EDGEFACE_CACHE", kiosk["EDGEFACE_CACHE"])
    enrol(kiosk, made / "ir-0b/tiny.xml")
    with pytest.raises(ContractError):
        check_appliance(made / "serve.yml", environ=kiosk)


def test_a_model_that_embeds_something_else_than_where_it_was_built_fails_the_test(
    kiosk: dict[str, str], made: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGEFACE_CACHE", kiosk["EDGEFACE_CACHE"])
    vectors = Path(kiosk["EDGEFACE_CACHE"]) / "selftest.json"
    vectors.write_text(vectors.read_text().replace("[[", "[").replace(": [", ": [-"))
    with pytest.raises(ContractError, match="cosine"):
        check_appliance(made / "serve.yml", environ=kiosk)


def test_the_real_thing_is_installed_tested_and_tells_where_the_first_key_is(made: Path, tmp_path: Path) -> None:
    ir = write_tiny_ir(tmp_path / "ir")
    archive = tmp_path / "k.tar"
    build_appliance(archive, config=made / "serve.yml", model=ir, wheels=real_wheels(tmp_path / "w"), liveness=False)
    prefix = tmp_path / "kiosk"
    said = install(unpack(archive, tmp_path / "1"), prefix)
    assert "model default: cosine 1.0000" in said
    assert "gallery default: 0 templates" in said
    assert not list((prefix / "var/lib/edgeface").iterdir())


# The first key


def test_a_check_makes_no_key_and_the_first_key_goes_to_its_owner_alone(tmp_path: Path) -> None:
    ir = write_tiny_ir(tmp_path)
    model = {"model": str(ir), "detector": None}
    settings = Settings.model_validate(
        {"state": tmp_path / "state", "listen": {"port": 0}, "models": {"default": model}}
    )
    server.check(settings)
    with Service(settings) as service:
        key = service.first_key
        assert key is not None
        assert service.keys.find(key).name == "first"
    said = server.tell_first_key(key, settings.state)
    path = settings.state / "first.key"
    assert str(path) in said
    assert key not in said
    assert path.read_text() == f"{key}\n"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
