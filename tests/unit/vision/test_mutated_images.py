"""2,000 damaged files in a process of limited memory and time: a picture or a named error, nothing else."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

_CHILD = textwrap.dedent(
    """
    import json, os, random, resource, struct, sys, tempfile
    from pathlib import Path
    import cv2, numpy as np
    from edgeface.errors import ImageError
    from edgeface.vision.image import ImageLimits, read_image, read_photo_file

    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # libjpeg says there what it thinks of damaged files
    cv2.setNumThreads(1)
    resource.setrlimit(resource.RLIMIT_AS, (2 << 30, 2 << 30))
    random.seed(20260101)
    noise = np.random.default_rng(0).integers(0, 256, (12, 16, 3), np.uint8)
    picture = cv2.resize(noise, (160, 120), interpolation=cv2.INTER_CUBIC)
    alpha = np.dstack([picture, picture[:, :, 0]])
    seeds = [
        cv2.imencode(suffix, image, options)[1].tobytes()
        for suffix, image, options in [
            (".jpg", picture, []), (".jpg", picture, [cv2.IMWRITE_JPEG_PROGRESSIVE, 1]), (".jpg", picture[:, :, 0], []),
            (".png", picture, []), (".png", alpha, []), (".png", picture.astype(np.uint16) * 257, []),
            (".webp", picture, []), (".webp", alpha, [cv2.IMWRITE_WEBP_QUALITY, 101]), (".bmp", picture, []),
            (".tiff", picture, []), (".tiff", picture[:, :, 0].astype(np.uint16) * 257, []), (".ppm", picture, []),
        ]
    ]

    exif = b"Exif\\0\\0II*\\0" + struct.pack("<IHHHIHHI", 8, 1, 0x0112, 3, 1, 6, 0, 0)
    seeds.append(seeds[0][:2] + b"\\xff\\xe1" + struct.pack(">H", len(exif) + 2) + exif + seeds[0][2:])
    wide = cv2.resize(picture, (1300, 60))  # enough pixels to be read reduced
    seeds += [cv2.imencode(".jpg", wide, [cv2.IMWRITE_JPEG_PROGRESSIVE, each])[1].tobytes() for each in (0, 1)]
    folder = Path(tempfile.mkdtemp(dir=sys.argv[1]))

    def truncate(data):
        return data[: random.randrange(len(data))]

    def flip(data):
        data = bytearray(data)
        for _ in range(random.choice([1, 3, 30])):
            data[random.randrange(len(data))] ^= 1 << random.randrange(8)
        return bytes(data)

    def flip_header(data):
        data = bytearray(data)
        data[random.randrange(min(len(data), 64))] = random.randrange(256)
        return bytes(data)

    def enlarge(data):
        for size in (struct.pack(">II", 160, 120), struct.pack(">HH", 120, 160), struct.pack("<ii", 160, 120),
                     struct.pack("<HH", 160, 120)):
            huge = bytes([random.randrange(64, 256)]) * len(size)
            if size in data[:400]:
                return data.replace(size, huge, 1)
        return data[:4] + b"\\xff" * 12 + data[16:]

    def empty(data):
        return bytes(random.choice([0, 1, 2, 12, 5000]))

    def rename(data):
        others = [b"GIF89a", b"%PDF-1.7", b"II*\\0", b"\\xff\\xd8\\xff", b"BM", b"\\x89PNG\\r\\n\\x1a\\n"]
        return random.choice(others) + data[8:]

    def misname(data):
        path = folder / ("picture" + random.choice([".jpg", ".png", ".webp", ".bmp", ".mp4", ".txt", ""]))
        path.write_bytes(data)
        return path

    counts = {}
    for number in range(2002):
        mutate = [truncate, flip, flip_header, enlarge, empty, rename, misname][number % 7]
        source, limits = mutate(seeds[number % len(seeds)]), ImageLimits(max_pixels=16_000_000)
        if number % 2:
            path = source if isinstance(source, Path) else folder / "picture"
            if path is not source:
                path.write_bytes(source)
        try:
            if number % 2:
                image, *_ = read_photo_file(path, reduced=(2, 4, 8)[number % 3], limits=limits)
            else:
                image = read_image(source, limits=limits)
            assert image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3
            outcome = "picture"
        except ImageError as error:
            assert len(str(error)) > 10
            outcome = "error"
        key = f"{mutate.__name__} {outcome}"
        counts[key] = counts.get(key, 0) + 1
    # Not ru_maxrss, which a new process inherits from the one that started it.
    status = dict(line.split(":", 1) for line in open("/proc/self/status"))
    counts["peak_mb"] = int(status["VmHWM"].split()[0]) // 1024
    print(json.dumps(counts))
    """
)


@pytest.mark.timeout(120)
def test_2000_mutated_files_crash_nothing_hang_nothing_and_stay_small(tmp_path: Path):
    done = subprocess.run(
        [sys.executable, "-c", _CHILD, tmp_path], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, f"{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
    counts = json.loads(done.stdout)
    assert counts.pop("peak_mb") < 700
    assert sum(counts.values()) == 2002
    # Flipped bits may leave a JPEG's structure and its checksumless data whole; the others may not get through.
    assert not {"truncate picture", "empty picture"} & counts.keys()
    assert counts["misname picture"] == 286  # what a file is, its bytes say
    assert counts["flip error"] > 100
