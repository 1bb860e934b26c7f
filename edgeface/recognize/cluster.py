"""Group the faces of unknown people: DBSCAN and Chinese Whispers on one graph of neighbours.

Two faces are neighbours when their cosine similarity is above a threshold. The similarities are computed in blocks
of rows, and only the pairs above the threshold are kept: memory grows with the neighbours, not with N squared.
"""

from __future__ import annotations

import filecmp
import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix
from scipy.sparse.csgraph import connected_components

from edgeface.errors import ContractError, InputError
from edgeface.files import output_errors, staging_folder, write_atomically
from edgeface.model.embedding import Embeddings, require_same_contract
from edgeface.pipeline.batch import BulkResult, embed_folder
from edgeface.pipeline.pipeline import Pipeline
from edgeface.progress import ProgressCallback, ignore_progress
from edgeface.recognize.known import choose_threshold, known_thresholds
from edgeface.recognize.metrics import Metric
from edgeface.recognize.threshold import Threshold
from edgeface.untrusted import read_json, reading

NO_CLUSTER = -1
"""Label of a face that belongs to no cluster."""

_NAMED = 3
"""Most files that a message names."""
_TOLERATED = 0.1
"""False neighbours of a face, on average. Every face is compared with all others, so the false accept rate must be
below this divided by the number of faces."""

_BLOCK_VALUES = 1 << 22
"""Similarities held at a time: 16 MiB of float32."""
_ROUNDS = 100

Labels = NDArray[np.intp]


@dataclass(frozen=True, slots=True, eq=False)
class Clusters:
    """Clusters of faces: labels (N,) 0, 1, ... in the order of each one's first face, or `NO_CLUSTER`.

    `threshold` is the cosine similarity above which two faces were neighbours.
    """

    labels: Labels
    contract_id: str
    threshold: float

    @property
    def count(self) -> int:
        """Number of clusters."""
        return int(self.labels.max(initial=NO_CLUSTER)) + 1

    def members(self, label: int) -> Labels:
        """Return the rows of one cluster, or with `NO_CLUSTER` those in none."""
        return np.flatnonzero(self.labels == label)


def dbscan(embeddings: Embeddings, threshold: Threshold | float, *, min_samples: int = 2) -> Clusters:
    """Density-based clustering (Ester, Kriegel, Sander, Xu, KDD 1996) with cosine similarity.

    A face with at least `min_samples` neighbours, itself counted, is a core; cores that are neighbours are one
    person, and a face next to a core joins it: the earliest cluster, if there are several. It chains: two people
    become one if a single row of in-between faces links them, so that its threshold has to be stricter than that
    of `chinese_whispers`.

    Parameters
    ----------
    embeddings
        (N, D) of one contract.
    threshold
        Calibrated for the same contract with metric cosine, or a cosine similarity.
    min_samples
        1: every face is in a cluster, and the clusters are the connected components.

    Returns
    -------
    Clusters
        The same as ``sklearn.cluster.DBSCAN(eps=1 - threshold, metric="cosine")``, but for pairs exactly at the
        threshold, which are no neighbours here.

    Raises
    ------
    ContractError
        If the threshold belongs to another contract.
    InputError
        If the threshold is not from -1 to 1, or `min_samples` is not positive.
    """
    value, graph = _neighbours(embeddings, threshold, min_samples)
    degrees = np.diff(graph.indptr)
    rows, others = np.repeat(np.arange(len(degrees)), degrees), graph.indices
    core = degrees + 1 >= min_samples
    labels = np.where(core, _components(rows, others, core), len(core))
    # A border face takes the lowest component of its cores; a component is named by its first core.
    inside = core[others]
    np.minimum.at(labels, rows[inside], labels[others[inside]])
    return Clusters(_renumber(np.where(labels < len(core), labels, NO_CLUSTER)), embeddings.contract_id, value)


def chinese_whispers(
    embeddings: Embeddings, threshold: Threshold | float, *, min_samples: int = 1, seed: int = 0
) -> Clusters:
    """Cluster a graph by local majority (Biemann, TextGraphs 2006): the usual choice for photo collections.

    Every face begins alone. In each round every face, in random order, joins the cluster that its neighbours weigh
    most for, by the sum of their similarities; of equals it takes the earliest. It ends when no face changes its
    cluster, or after 100 rounds. It does not chain as `dbscan` does: a few false neighbours are outvoted.

    Parameters
    ----------
    embeddings, threshold
        As for `dbscan`, which also says what is raised.
    min_samples
        Smaller clusters are dissolved: their faces are in no cluster.
    seed
        Seed of the order; the same seed gives the same clusters.
    """
    value, graph = _neighbours(embeddings, threshold, min_samples)
    labels = np.arange(len(embeddings))
    rng = np.random.default_rng(seed)
    connected = np.flatnonzero(np.diff(graph.indptr))
    for _ in range(_ROUNDS):
        moved = False
        for row in rng.permutation(connected):
            around = slice(graph.indptr[row], graph.indptr[row + 1])
            candidates, votes = np.unique(labels[graph.indices[around]], return_inverse=True)
            winner = candidates[np.bincount(votes, graph.data[around]).argmax()]
            moved |= winner != labels[row]
            labels[row] = winner
        if not moved:
            break
    sizes = np.bincount(labels, minlength=len(labels))
    return Clusters(
        _renumber(np.where(sizes[labels] >= min_samples, labels, NO_CLUSTER)), embeddings.contract_id, value
    )


def _neighbours(embeddings: Embeddings, given: Threshold | float, min_samples: int) -> tuple[float, csr_matrix]:
    """Return the threshold and the similarities above it, (N, N) float32, without those of faces to themselves."""
    if min_samples < 1:
        raise InputError(f"min_samples: expected 1 or more, found {min_samples}")
    threshold = _similarity(given, embeddings)
    vectors, count = embeddings.vectors, len(embeddings)
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    if not (lengths > 0).all():
        raise InputError("clustering: expected nonzero embeddings, found one of length 0")
    unit = vectors / lengths
    rows, others = [np.empty(0, np.int32)], [np.empty(0, np.int32)]
    weights = [np.empty(0, np.float32)]
    height = max(1, _BLOCK_VALUES // max(1, count))
    for start in range(0, count, height):
        scores = unit[start : start + height] @ unit.T
        np.fill_diagonal(scores[:, start:], -np.inf)
        row, other = np.nonzero(scores > threshold)
        rows.append((row + start).astype(np.int32))
        others.append(other.astype(np.int32))
        weights.append(scores[row, other])
    pairs = np.concatenate(rows), np.concatenate(others)
    return threshold, csr_matrix((np.concatenate(weights), pairs), shape=(count, count))


def _components(rows: Labels, others: Labels, core: NDArray[np.bool_]) -> Labels:
    """Return the lowest row that each core is connected with through cores."""
    inside = core[rows] & core[others]
    pairs = rows[inside], others[inside]
    edges = csr_matrix((np.ones(len(pairs[0]), np.int8), pairs), shape=(len(core), len(core)))
    _, labels = connected_components(edges, directed=False)
    _, lowest = np.unique(labels, return_index=True)
    return np.asarray(lowest[labels], np.intp)


def _renumber(labels: Labels) -> Labels:
    """Number clusters by their first member."""
    kept = labels != NO_CLUSTER
    _, first, inverse = np.unique(labels[kept], return_index=True, return_inverse=True)
    ranks = np.empty(len(first), np.intp)
    ranks[np.argsort(first)] = np.arange(len(first))
    numbered = np.full(len(labels), NO_CLUSTER, np.intp)
    numbered[kept] = ranks[inverse]
    return numbered


def _similarity(threshold: Threshold | float, embeddings: Embeddings) -> float:
    if not isinstance(threshold, Threshold):
        return Threshold.by_hand(threshold, contract_id=embeddings.contract_id).value
    require_same_contract(embeddings.contract_id, threshold.contract_id, what="clustering")
    if threshold.metric is not Metric.cosine:
        raise ContractError(
            f"clustering: expected a threshold of metric cosine, found one of {threshold.metric.value}; "
            "calibrate one with --metric cosine"
        )
    return threshold.value


@dataclass(frozen=True, slots=True, eq=False)
class ClusteredFolder:
    """What `cluster_folder` did.

    Attributes
    ----------
    clusters
        Labels of the rows of ``embedded.table``.
    embedded
        Embeddings of the faces, and why files have none.
    method
        ``chinese-whispers`` or ``dbscan``.
    warning
        Why the threshold may join different people; empty if nothing speaks against it.
    """

    clusters: Clusters
    embedded: BulkResult
    method: str
    warning: str

    def __repr__(self) -> str:
        return f"ClusteredFolder({self.clusters.count} people, {len(self.clusters.labels)} faces)"

    def to_dict(self) -> dict[str, Any]:
        """Return the content of clusters.json: who is in which photo, as JSON types."""
        names = [f"{label + 1:04d}" for label in range(self.clusters.count)]
        return {
            "contract_id": self.clusters.contract_id,
            "method": self.method,
            "threshold": self.clusters.threshold,
            "people": [{"name": name, "faces": self._faces(label)} for label, name in enumerate(names)],
            "unknown": self._faces(NO_CLUSTER),
        }

    def _faces(self, label: int) -> list[dict[str, Any]]:
        table = self.embedded.table
        return [
            {
                "path": str(table.paths[row]),
                "face": int(table.faces[row]) + 1,
                "box": [round(value, 1) for value in table.boxes[row].tolist()],
            }
            for row in self.clusters.members(label)
        ]


def cluster_folder(
    folder: Path,
    output_dir: Path,
    pipeline: Pipeline,
    *,
    method: Literal["chinese-whispers", "dbscan"] = "chinese-whispers",
    threshold: Threshold | float | Path | None = None,
    far: float | None = None,
    min_samples: int = 2,
    seed: int = 0,
    link: bool = False,
    progress: ProgressCallback = ignore_progress,
) -> ClusteredFolder:
    """Sort the photos of a folder into one folder a person: ``output_dir/people/0001``, ``0002``, ...

    A photo of two people is in both folders. Faces in no cluster are in ``people/unknown``. A later run replaces
    the folders when the new ones are complete, and embeds only what is new. It refuses folders with anything that it
    could not write again.

    Parameters
    ----------
    folder
        Photos, in any depth of folders; see `list_photos`.
    output_dir
        Also gets ``clusters.json`` and ``embeddings.npz``. It may lie in `folder`.
    pipeline
        Finds and embeds all faces.
    method
        `chinese_whispers` or `dbscan`.
    threshold, far
        See `choose_threshold`. With neither, or with a file: the most permissive threshold that gives each face at
        most 0.1 false neighbours, on average.
    min_samples
        Smallest cluster; for dbscan, see there.
    seed
        For chinese-whispers.
    link
        Link to the photos instead of copying them.
    progress
        Called after each file.

    Raises
    ------
    InputError
        If there is no such folder; if ``people`` was not written by an earlier run, or has since got files or names
        of others, or the only copies of photos; or as `embed_files`.
    MissingError
        If no threshold is given and none ships with the model.
    """
    if not folder.is_dir():
        raise InputError(f"{folder}: expected a folder of photos, found none")
    people = output_dir / "people"
    _require_own(people, output_dir / "clusters.json", folder)
    if far is None and (threshold is None or isinstance(threshold, Path)):
        known = known_thresholds(threshold, pipeline.contract)
    else:
        known = (choose_threshold(threshold, pipeline.contract, far=far),)
    embedded = embed_folder([folder], pipeline, output_dir / "embeddings.npz", results=people, progress=progress)
    faces = embedded.table.embeddings
    limit = _choose_limit(known, len(faces))
    if method == "dbscan":
        found = dbscan(faces, limit, min_samples=min_samples)
    else:
        found = chinese_whispers(faces, limit, min_samples=min_samples, seed=seed)
    result = ClusteredFolder(found, embedded, method, _warning(limit, len(faces)))
    _write_people(result, folder, output_dir, link=link)
    return result


def _require_own(people: Path, listing: Path, folder: Path) -> None:
    """Raise InputError if there is more in the folders of an earlier run than links and copies of photos."""
    if not people.exists():
        return
    if not listing.is_file():
        raise InputError(
            f"{people}: this folder exists and was not written by 'edgeface cluster' (no clusters.json beside it); "
            "choose another output folder"
        )
    with reading(listing, "people as 'edgeface cluster' lists them"):
        stored = read_json(listing, "people as 'edgeface cluster' lists them")
        sources: dict[tuple[str, str], list[Path]] = {}
        for person in [*stored["people"], {"name": "unknown", "faces": stored["unknown"]}]:
            for path in {Path(face["path"]) for face in person["faces"]}:
                sources.setdefault((person["name"], path.name), []).append(path)
    others = []
    for path in sorted(people.rglob("*")):
        if path.is_symlink() or not path.is_dir():
            name, *below = path.relative_to(people).parts
            photos = [each for each in sources.get((name, path.name), ()) if list(each.parts[-len(below) :]) == below]
            if not any(_is_copy(path, photo) for photo in (*photos, *([folder.joinpath(*below)] if photos else ()))):
                others.append(str(path.relative_to(people)))
    if others:
        raise InputError(
            path=people,
            expected="links and copies of photos, as the earlier run wrote them",
            found=f"{', '.join(others[:_NAMED])}{f' and {len(others) - _NAMED:,} more' if others[_NAMED:] else ''}, "
            "which would be lost",
            remedy="move them away, or choose another output folder",
        )


def _is_copy(path: Path, photo: Path) -> bool:
    return path.is_symlink() or (photo.is_file() and filecmp.cmp(path, photo))


def _choose_limit(known: tuple[Threshold, ...], faces: int) -> Threshold:
    """Choose the most permissive threshold with few enough false neighbours; if there is none, the strictest."""
    rising = sorted(known, key=lambda each: each.assured_far)
    fitting = [each for each in rising if each.observed_far * (faces - 1) <= _TOLERATED]
    return fitting[-1] if fitting else rising[0]


def _warning(limit: Threshold, faces: int) -> str:
    neighbours = limit.observed_far * max(0, faces - 1)
    if limit.far is None or neighbours <= _TOLERATED:
        return ""
    return (
        f"threshold {limit.value:.3f} was calibrated for {limit.rate}: among {faces:,} faces "
        f"each has about {neighbours:.1f} false neighbours, and different people may be joined. Calibrate for a lower "
        "rate, or give a higher similarity with --threshold."
    )


def _write_people(result: ClusteredFolder, folder: Path, output_dir: Path, *, link: bool) -> None:
    """Build the folders beside the old ones, and exchange them when they are complete."""
    listing, people = result.to_dict(), output_dir / "people"
    with staging_folder(output_dir) as staging:
        for person in [*listing["people"], {"name": "unknown", "faces": listing["unknown"]}]:
            for path in dict.fromkeys(Path(face["path"]) for face in person["faces"]):
                target = staging / "people" / person["name"] / path.relative_to(folder)
                target.parent.mkdir(parents=True, exist_ok=True)
                if link:
                    target.symlink_to(path.resolve())
                else:
                    shutil.copy2(path, target)
        with write_atomically(output_dir / "clusters.json", private=True) as partial:
            partial.write_text(json.dumps(listing, indent=2) + "\n", encoding="utf-8")
        with output_errors(people):
            if people.exists():
                people.replace(staging / "replaced")
            (staging / "people").replace(people)
