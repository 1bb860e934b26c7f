"""Keys: who is let in, who is not any more, and what a file tells that is damaged or another one."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import random
import resource
import shutil
import signal
import sqlite3
import stat
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from unit.serve.conftest import Clock

from edgeface.errors import InputError, OutputError
from edgeface.serve.database import ServiceFileError
from edgeface.serve.keys import Key, KeyRefused, KeyStore, Role

DAY = datetime.timedelta(days=1)


@pytest.fixture
def store(tmp_path: Path, clock: Clock) -> Iterator[KeyStore]:
    with contextlib.closing(KeyStore(tmp_path / "state" / "keys.sqlite", clock=clock)) as store:
        yield store


def reason(store: KeyStore, text: str) -> str | None:
    try:
        store.find(text)
    except KeyRefused as refused:
        return refused.reason
    return None


# Roles


@pytest.mark.parametrize("role", Role)
@pytest.mark.parametrize("needed", Role)
def test_a_role_includes_what_the_table_says(role: Role, needed: Role) -> None:
    table = {
        Role.recognise: {Role.recognise},
        Role.enrol: {Role.recognise, Role.enrol},
        Role.admin: set(Role),
        Role.metrics: {Role.metrics},
    }
    assert role.includes(needed) == (needed in table[role])


def test_the_key_of_one_gallery_does_nothing_to_another_or_to_the_whole_service(store: KeyStore) -> None:
    key, _ = store.add("site", Role.admin, gallery="berlin")
    assert key.allows(Role.admin, "berlin")
    assert key.allows(Role.recognise)  # to compare two photos
    assert not key.allows(Role.recognise, "paris")
    assert not key.allows(Role.admin)
    assert not key.allows(Role.metrics)
    assert store.count_admins() == 0


# Texts


def test_a_key_is_a_uuid_4_that_is_found_again_in_any_case_and_is_nowhere_in_the_files(store: KeyStore) -> None:
    key, text = store.add("door", Role.recognise)
    assert (len(text), uuid.UUID(text).version) == (36, 4)
    assert store.find(text).id == store.find(text.upper()).id == key.id
    files = list(store.path.parent.iterdir())
    assert len(files) >= 1
    for file in files:
        content = file.read_bytes()
        assert text.encode() not in content
        assert uuid.UUID(text).bytes not in content


def test_two_stores_keep_one_text_under_different_digests(tmp_path: Path) -> None:
    text = str(uuid.uuid4())
    with contextlib.closing(KeyStore(tmp_path / "a")) as a, contextlib.closing(KeyStore(tmp_path / "b")) as b:
        assert a._digest(text) != b._digest(text)


@settings(max_examples=100)
@given(text=st.text(max_size=60) | st.uuids(version=4).map(str) | st.from_regex(r"[0-9a-f-]{36}", fullmatch=True))
def test_no_text_but_that_of_a_key_is_let_in(text: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    with contextlib.closing(KeyStore(tmp_path_factory.getbasetemp() / "property.sqlite")) as store:
        if not store.list():
            store.add("one", Role.admin)
        assert reason(store, text) in ("malformed", "unknown")


@pytest.mark.parametrize("change", ["{}\n", " {}", "{}0", "{{{}}}", "urn:uuid:{}"])
def test_what_is_nearly_a_key_is_malformed(store: KeyStore, change: str) -> None:
    assert reason(store, change.format(store.add("door", Role.recognise)[1])) == "malformed"
    with pytest.raises(KeyRefused) as refused:
        store.find(text := str(uuid.uuid4()))
    assert text not in str(refused.value)
    assert reason(store, "\u0661" * 8 + "-0000-4000-8000-000000000000") == "malformed"


@pytest.mark.parametrize("name", ["", " ", " a", "a" * 101, "a\nb", "a\u202eb", "\udc80"])
def test_a_name_that_cannot_be_shown_is_refused(store: KeyStore, name: str) -> None:
    with pytest.raises(InputError, match="printable"):
        store.add(name, Role.enrol)
    with pytest.raises(InputError, match="printable"):
        store.add("door", Role.enrol, gallery=name)
    assert store.list() == []


def test_names_may_be_of_any_script_and_hold_sql(store: KeyStore) -> None:
    for name in ("Tür im Hof", "門", "'; DROP TABLE keys; --"):
        assert store.add(name, Role.recognise)[0].name == name
    assert len(store.list()) == 3


# Time


def test_a_key_expires_at_its_time(store: KeyStore, clock: Clock) -> None:
    key, text = store.add("guest", Role.recognise, expires=store.now() + DAY)
    clock.now += 86_399
    assert store.find(text).expires == key.expires
    clock.now += 1
    assert reason(store, text) == "expired"


@pytest.mark.parametrize("reopen", [False, True])
def test_a_clock_that_is_set_back_revives_no_key(tmp_path: Path, clock: Clock, reopen: bool) -> None:
    path = tmp_path / "keys.sqlite"
    store = KeyStore(path, clock=clock)
    _, text = store.add("guest", Role.recognise, expires=store.now() + DAY)
    clock.now += 86_401
    assert reason(store, text) == "expired"
    store.maintain()
    if reopen:
        store.close()
        store = KeyStore(path, clock=clock)
    clock.now -= 7 * 86_400
    assert reason(store, text) == "expired"
    store.close()


def test_a_service_that_is_killed_just_after_a_key_expired_has_written_that_down(tmp_path: Path, clock: Clock) -> None:
    path = tmp_path / "keys.sqlite"
    with contextlib.closing(KeyStore(path, clock=clock)) as store:
        _, guest = store.add("guest", Role.recognise, expires=store.now() + DAY)
        _, door = store.add("door", Role.recognise)
        clock.now += 86_400 + 1
        store.maintain()
        shutil.copy(path, killed := tmp_path / "killed.sqlite")
        shutil.copy(f"{path}-wal", f"{killed}-wal")
    clock.now -= 86_400
    with contextlib.closing(KeyStore(killed, clock=clock)) as store:
        assert reason(store, guest) == "expired"
        assert reason(store, door) is None


def test_a_time_that_is_past_or_has_no_zone_is_refused(store: KeyStore) -> None:
    for expires in (store.now(), store.now() - DAY, (store.now() + DAY).replace(tzinfo=None)):
        with pytest.raises(InputError, match="zone"):
            store.add("guest", Role.recognise, expires=expires)


def test_the_day_of_the_last_use_is_kept_and_no_more(store: KeyStore, clock: Clock) -> None:
    key, text = store.add("door", Role.recognise)
    assert key.last_used is None
    store.find(text)
    clock.now += 3 * 86_400
    store.find(text)
    before = store.path.with_name(store.path.name + "-wal").stat().st_mtime_ns
    store.find(text)
    assert store.path.with_name(store.path.name + "-wal").stat().st_mtime_ns == before  # `find` writes nothing
    store.maintain()
    day = datetime.datetime.fromtimestamp(clock.now, datetime.timezone.utc).date()
    assert store.list()[0].last_used == store.find(text).last_used == day


# Changes


def test_a_revoked_key_stays_revoked(store: KeyStore, clock: Clock) -> None:
    key, text = store.add("door", Role.recognise)
    first = store.revoke(key.id)
    assert reason(store, text) == "revoked"
    clock.now += 100
    assert store.revoke(key.id) == first
    with pytest.raises(InputError, match="keys list"):
        store.revoke("00000000")


def test_a_rotated_key_works_through_its_grace_and_the_new_one_for_as_long_as_the_old_was_made_for(
    store: KeyStore, clock: Clock
) -> None:
    old, before = store.add("door", Role.enrol, gallery="berlin", expires=store.now() + 30 * DAY)
    clock.now += 86_400
    new, after = store.rotate(old.id, DAY)
    assert dataclasses.replace(new, id=old.id, created=old.created, expires=old.expires) == old
    assert new.expires == store.now() + 30 * DAY
    assert reason(store, before) is reason(store, after) is None
    clock.now += 86_400
    assert (reason(store, before), reason(store, after)) == ("expired", None)
    with pytest.raises(InputError, match=new.id):
        store.rotate(old.id, DAY)


def test_rotation_never_makes_the_old_key_last_longer(store: KeyStore) -> None:
    old, text = store.add("door", Role.enrol, expires=store.now() + DAY)
    store.rotate(old.id, 7 * DAY)
    assert store.find(text).expires == old.expires


@pytest.mark.parametrize("grace", [-DAY, 400 * DAY, datetime.timedelta.max])
def test_a_grace_is_at_most_a_year(store: KeyStore, grace: datetime.timedelta) -> None:
    with pytest.raises(InputError, match="grace"):
        store.rotate(store.add("door", Role.enrol)[0].id, grace)


def test_only_valid_keys_for_all_galleries_count_as_administrators(store: KeyStore, clock: Clock) -> None:
    store.add("a", Role.admin, expires=store.now() + DAY)
    store.add("b", Role.enrol)
    revoked, _ = store.add("c", Role.admin)
    assert store.count_admins() == 2
    store.revoke(revoked.id)
    assert store.count_admins() == 1
    clock.now += 86_400
    assert store.count_admins() == 0


def test_what_another_process_changes_is_in_force_within_a_second(tmp_path: Path) -> None:
    path = tmp_path / "keys.sqlite"
    with contextlib.closing(KeyStore(path)) as store:
        key, text = store.add("door", Role.recognise)
        store.find(text)
        program = (
            "import sys; from pathlib import Path; from edgeface.serve.keys import KeyStore, Role\n"
            "store = KeyStore(Path(sys.argv[1])); store.revoke(sys.argv[2]); print(store.add('new', Role.enrol)[1])"
        )
        done = subprocess.run([sys.executable, "-c", program, path, key.id], capture_output=True, text=True, check=True)
        changed = time.monotonic()
        while reason(store, text) is None or reason(store, done.stdout.strip()) is not None:
            assert time.monotonic() - changed < 1


def test_threads_that_find_add_and_revoke_agree(tmp_path: Path) -> None:
    failures: list[BaseException] = []
    with contextlib.closing(KeyStore(tmp_path / "keys.sqlite")) as store:
        _, lasting = store.add("lasting", Role.recognise)

        def work() -> None:
            try:
                for _ in range(8):
                    key, text = store.add("short", Role.enrol)
                    assert store.find(text) is not store.find(lasting)
                    store.revoke(key.id)
                    assert reason(store, text) == "revoked"
            except BaseException as error:
                failures.append(error)

        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not failures
        assert [key.state(store.now()) for key in store.list()].count("revoked") == 32


@pytest.mark.alone
def test_finding_a_key_takes_less_than_50_microseconds(tmp_path: Path) -> None:
    with contextlib.closing(KeyStore(tmp_path / "keys.sqlite")) as store:
        texts = [store.add(f"door {number}", Role.recognise)[1] for number in range(100)]
        for each in texts:  # which is also the day's first use
            store.find(each)
        wrong = [str(uuid.uuid4()) for _ in range(100)]
        for what in (texts, wrong):
            started = time.process_time()
            for _ in range(50):
                for each in what:
                    with contextlib.suppress(KeyRefused):
                        store.find(each)
            assert (time.process_time() - started) / 5000 < 50e-6


# Files


def test_the_folder_and_the_files_are_their_owners_alone(store: KeyStore) -> None:
    store.add("door", Role.recognise)
    assert stat.S_IMODE(store.path.parent.stat().st_mode) == 0o700
    assert {stat.S_IMODE(file.stat().st_mode) for file in store.path.parent.iterdir()} == {0o600}


def test_a_file_that_others_may_write_to_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "keys.sqlite"
    KeyStore(path).close()
    path.chmod(0o620)
    with pytest.raises(ServiceFileError, match="chmod 600"):
        KeyStore(path)
    path.chmod(0o600)
    tmp_path.chmod(0o777)
    with pytest.raises(ServiceFileError, match="700 the folder"):
        KeyStore(path)


def test_a_store_that_must_exist_is_not_made(tmp_path: Path) -> None:
    with pytest.raises(ServiceFileError, match="No such file"):
        KeyStore(tmp_path / "keys.sqlite", create=False)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("how", ["remove", "replace"])
def test_a_file_that_was_removed_or_replaced_lets_nobody_in(tmp_path: Path, how: str) -> None:
    path, other = tmp_path / "keys.sqlite", tmp_path / "other.sqlite"
    KeyStore(other).close()
    with contextlib.closing(KeyStore(path)) as store:
        _, text = store.add("door", Role.recognise)
        path.unlink() if how == "remove" else other.replace(path)
        time.sleep(0.3)
        with pytest.raises(ServiceFileError, match="removed or replaced"):
            store.find(text)
        with pytest.raises(ServiceFileError, match="removed or replaced"):
            store.add("door", Role.recognise)


@pytest.mark.slow
def test_two_processes_that_start_at_once_share_one_store(tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from edgeface.serve.keys import KeyStore, Role\n"
        "sys.stdin.read(1); store = KeyStore(Path(sys.argv[1])); print(store.add('x', Role.enrol)[1])"
    )
    path = tmp_path / "new" / "keys.sqlite"
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", program, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for _ in range(3)
    ]
    texts = [process.communicate("x")[0].strip() for process in processes]
    with contextlib.closing(KeyStore(path)) as store:
        assert [store.find(text).name for text in texts] == ["x"] * 3


def test_a_full_disk_refuses_new_keys_and_lets_the_old_ones_in(tmp_path: Path, clock: Clock) -> None:
    path = tmp_path / "keys.sqlite"
    with contextlib.closing(KeyStore(path, clock=clock)) as store:
        key, text = store.add("door", Role.recognise)
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1024, before[1]))
        try:
            with pytest.raises(OutputError):
                store.add("other", Role.recognise)
            assert store.find(text) == key
            with pytest.raises(OutputError):
                store.maintain()
            assert store.find(text) == key
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
            signal.signal(signal.SIGXFSZ, ignored)
        assert store.list() == [key]
        store.add("other", Role.recognise)


def make(path: Path) -> tuple[list[Key], str]:
    with contextlib.closing(KeyStore(path)) as store:
        for number in range(20):
            _, text = store.add(f"door {number}", Role.recognise, gallery="berlin", expires=store.now() + DAY)
        return store.list(), text


@pytest.mark.parametrize(
    "sql",
    [
        "CREATE TRIGGER t AFTER INSERT ON keys BEGIN DELETE FROM keys; END",
        "CREATE TABLE more (a)",
        "CREATE VIEW v AS SELECT 1",
        "DROP TABLE keys",
        "PRAGMA application_id = 1",
        "PRAGMA user_version = 2",
        "DELETE FROM store",
        "UPDATE store SET salt = x'00'",
        "UPDATE store SET salt = 'text of thirty-two characters. ..'",
        "UPDATE store SET latest = 'x'",
        "UPDATE keys SET role = 'root'",
        "UPDATE keys SET expires = 'never'",
        "UPDATE keys SET expires = 9223372036854775807",
        "UPDATE keys SET name = x'ff'",
        "UPDATE keys SET name = CAST(x'ff' AS TEXT)",
        "UPDATE keys SET digest = x'00' WHERE name = 'door 1'",
    ],
)
def test_a_file_that_somebody_changed_is_refused_and_left_as_it_is(tmp_path: Path, sql: str) -> None:
    path = tmp_path / "keys.sqlite"
    make(path)
    with contextlib.closing(sqlite3.connect(path)) as other:
        other.execute(sql)
        other.commit()
    before = path.read_bytes()
    with pytest.raises(ServiceFileError) as raised:
        KeyStore(path)
    assert raised.value.exit_code == 2
    assert path.read_bytes() == before


@pytest.mark.parametrize("content", [b"", b"SQLite format 3\0", b"text", bytes(4096)])
def test_a_file_that_is_no_store_is_refused_and_left_as_it_is(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "keys.sqlite"
    path.write_bytes(content)
    path.chmod(0o600)
    with pytest.raises(ServiceFileError):
        KeyStore(path)
    assert path.read_bytes() == content


@pytest.mark.parametrize("rounds", [pytest.param(60), pytest.param(2000, marks=pytest.mark.nightly)])
def test_a_damaged_file_is_an_error_of_edgeface_or_tells_nothing_new(tmp_path: Path, rounds: int) -> None:
    whole = tmp_path / "keys.sqlite"
    keys, _ = make(whole)
    content, chance = whole.read_bytes(), random.Random(rounds)
    for number in range(rounds):
        damaged = bytearray(content)
        for _ in range(chance.choice((1, 4, 64))):
            damaged[chance.randrange(len(damaged))] ^= 1 << chance.randrange(8)
        if chance.random() < 0.2:
            del damaged[chance.randrange(len(damaged)) :]
        folder = tmp_path / str(number)
        folder.mkdir()
        path = folder / "keys.sqlite"
        path.write_bytes(damaged)
        path.chmod(0o600)
        try:
            with contextlib.closing(KeyStore(path)) as store:
                assert len(store.list()) <= len(keys)
                assert reason(store, str(uuid.uuid4())) == "unknown"
        except (ServiceFileError, OutputError):
            pass
        assert path.exists()
        shutil.rmtree(folder)
