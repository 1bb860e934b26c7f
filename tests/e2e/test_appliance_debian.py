"""The appliance in a Debian of its own without a network: installed, started, asked, upgraded, and gone back."""

from __future__ import annotations

import base64
import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from appliances import sign, unpack

from edgeface.kiosk.appliance import TOP, build_appliance
from edgeface.zoo.store import ModelStore

pytestmark = [
    pytest.mark.nightly,
    pytest.mark.real,
    pytest.mark.timeout(3600),
    pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("debootstrap"), reason="needs root and debootstrap"),
]

PEOPLE = "/api/edgeface/v1/galleries/default/people"
IDENTIFY = "/api/edgeface/v1/identify"
# Only a loopback, and processes and mounts that end with the command.
NAMESPACES = ["unshare", "--net", "--mount", "--pid", "--fork", "--kill-child"]
INSIDE = """ip link set lo up && mount -t proc proc "$0/proc" && mount -t sysfs sys "$0/sys" &&
mount --rbind /dev "$0/dev" && exec chroot "$0" "$@" """
# Run by the Python of that Debian: starts the unit's command as its user, asks, and stops it as systemd does.
VISIT = """
import json, shlex, subprocess, sys, time, urllib.request
unit = open("/etc/systemd/system/multi-user.target.wants/edgeface.service").read().splitlines()
told = dict(line.split("=", 1) for line in unit if "=" in line)
begun = time.monotonic()
user = told["User"]
service = subprocess.Popen(shlex.split(told["ExecStart"]), user=user, group=user, extra_groups=[])

def ask(method, path, body=None, key=""):
    data = None if body is None else json.dumps(body).encode()
    headers = {"x-api-key": key, "content-type": "application/json"}
    request = urllib.request.Request("http://127.0.0.1:8000" + path, data, headers, method=method)
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.loads(answer.read() or b"null")

while True:
    assert service.poll() is None and time.monotonic() - begun < 300
    try:
        ask("GET", "/health/ready")
        break
    except OSError:
        time.sleep(0.1)
print(f"ready after {time.monotonic() - begun:.1f} s", file=sys.stderr)
key = open("/var/lib/edgeface/first.key").read().strip()
answers = [ask(*request, key=key) for request in json.load(sys.stdin)]
service.terminate()
assert service.wait(60) == 0
print(json.dumps(answers))
"""


def mirror() -> tuple[str, str]:
    """Return mirror and suite of this machine, as apt has them in either of its formats."""
    for file in sorted(Path("/etc/apt/sources.list.d").glob("*.sources")):
        uri, suite = (re.search(rf"^{key}: *(\S+)", file.read_text(), re.M) for key in ("URIs", "Suites"))
        if uri and suite:
            return uri[1], suite[1]
    lines = "".join(file.read_text() for file in sorted(Path("/etc/apt").rglob("*.list")))
    if line := re.search(r"^deb (?:\[.*?\] )?(\S+) (\S+) main", lines, re.M):
        return line[1], line[2]
    pytest.skip("apt has no mirror here")


@pytest.fixture(scope="module")
def debian(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The root of a fresh Debian: its base system and Python, and systemd, of which only the analysis runs."""
    root = tmp_path_factory.mktemp("debian")
    uri, suite = mirror()
    words = ["debootstrap", "--variant=minbase", "--include=python3,systemd", suite, str(root), uri]
    subprocess.run(words, check=True, stdout=subprocess.DEVNULL)
    yield root
    shutil.rmtree(root)


def run(root: Path, *words: str, code: int = 0, told: str = "") -> str:
    """Run a program in a Debian, without a network; return its output."""
    done = subprocess.run(
        [*NAMESPACES, "sh", "-c", INSIDE, str(root), *words],
        input=told, stdout=subprocess.PIPE, text=True, timeout=900, check=False,
        env={"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"},
    )  # fmt: skip
    print(done.stdout)
    assert done.returncode == code
    return done.stdout


def visit(root: Path, *requests: list[Any]) -> list[Any]:
    """Start the service, ask it, and stop it; return its answers."""
    answers: list[Any] = json.loads(run(root, "python3", "-c", VISIT, told=json.dumps(requests)).splitlines()[-1])
    return answers


def place(archive: Path, root: Path, name: str) -> Path:
    """Unpack an archive below /tmp of a Debian; return its folder there."""
    return unpack(archive, root / "tmp" / name)


@pytest.fixture(scope="module")
def archives(
    tmp_path_factory: pytest.TempPathFactory, real_ir: Path, liveness_irs: Path
) -> Iterator[tuple[Path, Path]]:
    """Two archives with all wheels, and FaceNet; the configuration that they bring differs."""
    folder = tmp_path_factory.mktemp("archives")
    for ir in liveness_irs.glob("*.xml"):
        target = ModelStore().ir_path(ir.stem)
        target.parent.mkdir(parents=True, exist_ok=True)
        for suffix in (".xml", ".bin"):
            shutil.copyfile(ir.with_suffix(suffix), target.with_suffix(suffix))
    (folder / "serve.yml").write_text("limits: {queue: 4}\n")
    build_appliance(folder / "1.tar", model=real_ir)
    wheels = unpack(folder / "1.tar", folder / "1") / "wheels"
    build_appliance(folder / "2.tar", config=folder / "serve.yml", model=real_ir, wheels=wheels)
    yield folder / "1.tar", folder / "2.tar"
    shutil.rmtree(folder)


def test_a_fresh_debian_without_a_network_serves_upgrades_and_goes_back(
    debian: Path, archives: tuple[Path, Path], data: Path
) -> None:
    place(archives[0], debian, "1")
    said = run(debian, f"/tmp/1/{TOP}/install")
    assert "liveness: 2 models" in said
    first = (debian / "opt/edgeface/current").readlink()
    run(debian, "systemd-analyze", "verify", "--man=no", f"/opt/edgeface/{first}/edgeface.service")
    photo, other = (base64.b64encode((data / "photos" / f"lennon-{i}.jpg").read_bytes()).decode() for i in (1, 2))
    enrolled, found = visit(
        debian, ["POST", PEOPLE, {"name": "John", "photo": [photo]}], ["POST", IDENTIFY, {"photo": other}]
    )
    assert enrolled["name"] == "John"
    assert [face["person"] for face in found["faces"]] == ["John"], found
    key = debian / "var/lib/edgeface/first.key"
    assert key.stat().st_mode & 0o777 == 0o600
    assert key.stat().st_uid != 0

    place(archives[1], debian, "2")
    run(debian, f"/tmp/2/{TOP}/install")
    second = (debian / "opt/edgeface/current").readlink()
    assert first not in (second, None)
    (people,) = visit(debian, ["GET", PEOPLE])
    assert [each["name"] for each in people["people"]] == ["John"]

    broken = place(archives[0], debian, "3")
    next(broken.glob("wheels/scipy-*.whl")).write_bytes(b"PK")  # what the digests name, and no wheel
    sign(broken)
    run(debian, f"/tmp/3/{TOP}/install", code=1)
    assert (debian / "opt/edgeface/current").readlink() == second
    spoilt = place(archives[0], debian, "4")
    weights = next(spoilt.glob("store/irs/*/*/*[0-9].bin"))
    weights.write_bytes(weights.read_bytes()[::-1])
    sign(spoilt)
    run(debian, f"/tmp/4/{TOP}/install", code=1)
    assert (debian / "opt/edgeface/current").readlink() == second
    (people,) = visit(debian, ["GET", PEOPLE])
    assert [each["name"] for each in people["people"]] == ["John"]

    run(debian, f"/tmp/2/{TOP}/install", "--rollback")
    assert (debian / "opt/edgeface/current").readlink() == first
    (people,) = visit(debian, ["GET", PEOPLE])
    assert [each["name"] for each in people["people"]] == ["John"]
    run(debian, f"/tmp/2/{TOP}/install", "--uninstall", "--purge")
    assert not any((debian / each).exists() for each in ("opt/edgeface", "var/lib/edgeface", "etc/edgeface"))


def test_the_containerfile_runs_the_same_installer(debian: Path, archives: tuple[Path, Path]) -> None:
    """Its RUN lines in a Debian, as podman runs them in an image of Debian."""
    root = debian
    shutil.copyfile(archives[0], root / "mnt/kiosk.tar")
    text = (unpack(archives[0], root / "tmp/c") / "Containerfile").read_text().replace("\\\n", " ")
    steps = [re.sub(r"--mount=\S+", "", line[4:]) for line in text.splitlines() if line.startswith("RUN ")]
    assert len(steps) == 2
    run(root, "sh", "-c", steps[1])  # the first installs what debootstrap has
    (entry,) = re.findall(r"^ENTRYPOINT (.*)$", text, re.M)
    unit = (root / "opt/edgeface/current/edgeface.service").read_text()
    assert f"ExecStart={' '.join(json.loads(entry))}\n" in unit
    assert not list((root / "var/lib/edgeface").iterdir())  # no key in an image
