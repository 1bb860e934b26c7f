"""A folder that holds one folder a person in, its images and whose they are out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgeface.errors import InputError
from edgeface.vision.image import IMAGE_SUFFIXES

__all__ = ["images_of_people"]


def images_of_people(root: Path) -> tuple[tuple[str, ...], NDArray[np.intp], tuple[str, ...]]:
    """List ``root/Name/anything.jpg``, sorted by person and file.

    Returns
    -------
    images : tuple of str
        Relative to `root`, with forward slashes.
    people : (N,) intp
        Rows of `names`; sorted.
    names : tuple of str
        Folders that hold an image.

    Raises
    ------
    InputError
        If there is no such folder.
    """
    if not root.is_dir():
        raise InputError(f"{root}: expected a folder that holds one folder a person, found none")
    images: list[str] = []
    people: list[int] = []
    names: list[str] = []
    for folder in sorted(each for each in root.iterdir() if each.is_dir()):
        if found := sorted(each for each in folder.iterdir() if each.suffix.lower() in IMAGE_SUFFIXES):
            images += [each.relative_to(root).as_posix() for each in found]
            people += [len(names)] * len(found)
            names.append(folder.name)
    return tuple(images), np.asarray(people, np.intp), tuple(names)
