"""Train an embedder by a metric loss: a projection behind it, or its last blocks.

It is meant for faces of low resolution above all. The embedder's embeddings of the photos, and of copies of low
resolution, are computed once; a projection of them trains in minutes on a CPU. It becomes the end of the IR, which is a
model of its own: its embeddings do not compare with the parent's.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from edgeface.convert.converter import require_plain_name
from edgeface.convert.ir import FreshProcessCheck, publish_ir, save_ir
from edgeface.convert.source import weights_id_of
from edgeface.errors import InputError
from edgeface.evaluate.faces import CROPS, FaceCutter, FaceSource, find_images
from edgeface.evaluate.low_resolution import pairs_with_copies, require_resolutions
from edgeface.files import staging_folder, stopwatch
from edgeface.model.ir_file import read_contract, read_ir
from edgeface.progress import ProgressCallback, ignore_progress
from edgeface.quantize.calibration import to_inputs
from edgeface.quantize.gate import cosines, embed
from edgeface.quantize.verification import SCORED, LabelledPairs, VerificationChange, compare_verification
from edgeface.train.copies import Features
from edgeface.train.data import FaceSet, find_one_person, gather_people, require_output
from edgeface.train.head import judge_strangers, require_trainable
from edgeface.train.loop import CHECKPOINT, Batches, History, Optimisation, discard_checkpoint, fit
from edgeface.train.metric_losses import octuplet_loss, triplet_loss
from edgeface.train.network import TrainableTail, run_batches
from edgeface.train.outcome import MetricOutcome, MetricSettings, lineage_of, measured
from edgeface.train.projection import Projection
from edgeface.train.report import write_metric_report

METRIC_DEFAULT = Optimisation(epochs=40, batch=128, rate=1e-3, patience=10)
"""Optimisation of a projection."""

_JUDGED = 64
"""Photos whose embeddings by the IR that was written are compared with those of what was trained."""
_AGREEMENT = 1e-4
"""Largest difference between both, which sum in another order."""


def train_metric(
    root: Path,
    output: Path,
    model: Path,
    faces: FaceSource = CROPS,
    *,
    settings: MetricSettings | None = None,
    optimisation: Optimisation | None = None,
    strangers: LabelledPairs | None = None,
    name: str | None = None,
    force: bool = False,
    cache: Path | None = None,
    progress: ProgressCallback = ignore_progress,
) -> MetricOutcome:
    """Train an embedder on the people of a folder by a metric loss, and write it with a report.

    Parameters
    ----------
    root
        Folder with one folder of photos for each person.
    output
        Receives ``<name>.xml`` and ``.bin``, ``training.json``, ``report.html`` and ``log.jsonl``. An unfinished
        training there is resumed. It is not the folder of the model.
    model
        FP32 IR with a contract.
    faces
        Source of the faces.
    settings, optimisation
        By default those of an octuplet loss on a projection.
    strangers
        Labelled pairs of other people, on which embedders before and after are compared; see
        `edgeface.train.head.pairs_of_strangers`.
    name
        Of the embedder; None: the model's.
    force
        Write an embedder that became worse at telling strangers apart, or for which there are no pairs.
    cache, progress
        See `gather_people`; called with the stages of the work.

    Raises
    ------
    InputError
        If the photos, the settings or the model cannot be used, or there are no pairs and `force` is not set.
    ContractError
        If the model has no contract or seeded weights, or is not of precision FP32.
    OutputError
        If the output cannot be written.
    """
    settings, optimisation = settings or MetricSettings(), optimisation or METRIC_DEFAULT
    _, contract = read_contract(model)
    require_resolutions(settings.resolutions, side=min(contract.input_size))
    require_plain_name(contract.name if name is None else name)
    require_output(root, output, "training.json", CHECKPOINT)
    require_trainable(model, output, contract, changes=True, judged=strangers is not None or force)
    with stopwatch() as elapsed:
        people = gather_people(root, model, faces, min_photos=settings.min_photos, cache=cache, progress=progress)
        tail = TrainableTail(model, settings.unfreeze) if settings.unfreeze else None
        features = Features(model, contract, tail, cache=cache, progress=progress)
        full, low = features.of_people(people), features.reduced(people.crops, settings.resolutions)
        network: nn.Module = tail or Projection(contract.embedding_dim, settings.hidden, seed=optimisation.seed)
        before = run_batches(tail, full) if tail is not None else full
        untrained = None if tail is None else TrainableTail(model, settings.unfreeze)
        history, validation = _train(
            network, full, low, before, people, settings, optimisation, output, progress=progress
        )
        changes = {} if strangers is None else _judge(strangers, features, untrained, network, settings.resolutions)
        outcome = MetricOutcome(
            ir=None,
            contract=contract,
            parent_id=contract.contract_id,
            settings=settings,
            optimisation=optimisation,
            faces=people,
            validation=validation,
            history=history,
            changes=changes,
            one_person=find_one_person(people),
            reasons=judge_strangers(changes[min(contract.input_size)]) if changes else (),
            seconds=0.0,
        )
        after = run_batches(network, full)
        outcome = _publish(outcome, model, output, network, before, after, name or contract.name, force=force)
        outcome = dataclasses.replace(outcome, seconds=elapsed())
    write_metric_report(outcome, output)
    if outcome:
        discard_checkpoint(output)
    return outcome


def person_batches(
    people: NDArray[np.intp], rows: NDArray[np.intp], *, batch: int, photos: int, copies: int = 1, seed: int = 0
) -> Batches:
    """Return batches of several photos of several people, each photo with one of its copies.

    Parameters
    ----------
    people : (N,) intp
        Person of each photo.
    rows : (n,) intp
        Photos to take.
    batch, photos
        Photos in a batch, and of a person in it, at most. A batch has two people or more even so.
    copies
        Copies that each photo has.
    seed
        Of all that is drawn; it and the epoch decide it alone.

    Returns
    -------
    Batches
        Rows of one batch: ``photo + N * copy``.

    Raises
    ------
    InputError
        If fewer than two people have photos.
    """
    own = [rows[people[rows] == person] for person in np.unique(people[rows])]
    if len(own) < 2:
        raise InputError(expected="photos of at least two people in a batch", found=f"{len(own)}")
    together = max(2, batch // photos)
    count = max(1, min(-(-len(own) // together), len(own) // 2))

    def batches(epoch: int) -> Iterator[NDArray[np.intp]]:
        rng = np.random.default_rng([seed, epoch])
        for some in np.array_split(rng.permutation(len(own)), count):
            taken = np.concatenate([rng.permutation(own[person])[:photos] for person in some])
            yield taken + len(people) * rng.integers(max(1, copies), size=len(taken))

    return batches


def _train(
    network: nn.Module,
    full: NDArray[np.float32],
    low: NDArray[np.float32],
    before: NDArray[np.float32],
    people: FaceSet,
    settings: MetricSettings,
    optimisation: Optimisation,
    output: Path,
    *,
    progress: ProgressCallback,
) -> tuple[History, NDArray[np.intp]]:
    x, copies = torch.from_numpy(full), torch.from_numpy(low)
    was = functional.normalize(torch.from_numpy(before))
    labels = torch.from_numpy(people.people.astype(np.int64))
    validation = _choose_validation(len(people.names), settings.validation, optimisation.seed)
    inside = np.isin(people.people, validation)

    def loss_of(rows: NDArray[np.intp]) -> Tensor:
        copy, photo = np.divmod(rows, len(people))
        high = functional.normalize(network(x[photo]))
        loss = settings.keep * (high - was[photo]).square().sum(dim=1).mean()
        if settings.resolutions:
            reduced = functional.normalize(network(copies[copy, photo]))
            loss = loss + settings.pull * (reduced - was[photo]).square().sum(dim=1).mean()
        if settings.loss == "octuplet":
            return loss + octuplet_loss(
                high, reduced, labels[photo], margin=settings.margin, kind=settings.distance, terms=settings.terms
            )
        both = (high, reduced) if settings.resolutions else (high,)
        return loss + triplet_loss(
            torch.cat(both),
            labels[photo].repeat(len(both)),
            margin=settings.margin,
            mining=settings.mining,
            kind=settings.distance,
        )

    def batches_of(rows: NDArray[np.intp]) -> Batches:
        return person_batches(
            people.people,
            rows,
            batch=optimisation.batch,
            photos=settings.photos,
            copies=len(settings.resolutions),
            seed=optimisation.seed,
        )

    judged = list(batches_of(np.flatnonzero(inside))(0))

    def validate() -> Mapping[str, float]:
        losses = [float(loss_of(rows)) for rows in judged]
        return {"loss": float(np.average(losses, weights=[len(rows) for rows in judged]))}

    history = fit(
        network,
        loss_of,
        batches_of(np.flatnonzero(~inside)),
        validate,
        optimisation,
        output,
        fingerprint=people.fingerprint(dataclasses.asdict(settings)),
        tail=network if settings.unfreeze else None,
        progress=progress,
    )
    return history, validation


def _choose_validation(count: int, share: float, seed: int) -> NDArray[np.intp]:
    """Draw the people to stop training by, two or more of `count`, and leave two or more."""
    if count < 4:
        raise InputError(
            expected="at least 4 people with enough photos, two to train on and two to stop training by",
            found=f"{count}",
            remedy="add people, or pass a lower --min-photos",
        )
    chosen = min(max(2, round(share * count)), count - 2)
    return np.sort(np.random.default_rng(seed).permutation(count)[:chosen]).astype(np.intp)


def _judge(
    strangers: LabelledPairs, features: Features, before: nn.Module | None, after: nn.Module, resolutions: Sequence[int]
) -> dict[int, VerificationChange]:
    """Compare embedders on pairs in each resolution of the second photo, the full one, with its size, last."""
    pairs = strangers.pairs
    files = find_images(strangers.images, pairs.images)
    crops = np.stack(list(FaceCutter(files, pairs.images, features.contract, strangers.faces)))
    rows = np.unique(pairs.second)
    full = features.of(crops)
    reduced = features.reduced(crops[rows], resolutions)
    first, second = (_embeddings_by_resolution(network, full, reduced, rows) for network in (before, after))
    protocol, scored = SCORED[0]
    changes = {}
    for pixels, *two in zip([*resolutions, min(features.contract.input_size)], first, second, strict=True):
        changes[pixels] = compare_verification(
            two[0], two[1], pairs_with_copies(pairs), protocol=protocol, settings=scored, seed=strangers.seed
        )
    return changes


def _embeddings_by_resolution(
    network: nn.Module | None, full: NDArray[np.float32], reduced: NDArray[np.float32], rows: NDArray[np.intp]
) -> Iterator[NDArray[np.float32]]:
    """Yield embeddings of all photos and behind them of their copies, of these rows, in each resolution; full is last.

    They are (2 N, D), for `pairs_with_copies`.
    """
    whole = run_batches(network, full)
    for copies in reduced:
        second = whole.copy()
        second[rows] = run_batches(network, copies)
        yield np.concatenate([whole, second])
    yield np.concatenate([whole, whole])


def _publish(
    outcome: MetricOutcome,
    model: Path,
    output: Path,
    network: nn.Module,
    before: NDArray[np.float32],
    after: NDArray[np.float32],
    name: str,
    *,
    force: bool,
) -> MetricOutcome:
    """Write the embedder, if it is no worse than its parent in full resolution or `force` is set."""
    trained = network.write_into(read_ir(model))
    change = outcome.changes.get(min(outcome.contract.input_size))
    lineage = lineage_of(outcome.faces, "finetuned", outcome.settings, outcome.optimisation, outcome.history)
    contract = dataclasses.replace(
        outcome.contract,
        lineage=measured(lineage, cosines(before, after), change),
        name=name,
        normalized=outcome.contract.normalized or not outcome.settings.unfreeze,
        weights_id=weights_id_of(trained),
        provenance="unknown",
    )
    with FreshProcessCheck() as check, staging_folder(output) as staging:
        staged, contract = save_ir(trained, staging, contract)
        outcome = dataclasses.replace(outcome, contract=contract)
        if outcome.reasons and not force:
            return outcome
        check(staged)
        found = embed(read_ir(staged), to_inputs(outcome.faces.crops[:_JUDGED], contract))
        apart = float(np.abs(found - after[:_JUDGED]).max() / np.abs(after[:_JUDGED]).max())
        if not apart <= _AGREEMENT:
            raise InputError(
                path=model,
                expected="an IR that computes what was trained",
                found=f"a relative difference of {apart:.2g}",
                remedy="report this as a fault",
            )
        return dataclasses.replace(outcome, ir=publish_ir(staged, output))
