"""Train a classifier of people on embeddings, drop it, and keep the embedder with the proof of what it gained.

The backbone is frozen unless its last blocks are unfrozen: embeddings are then computed once, and a head is trained in
seconds. What is published is the embedder, an IR with a contract, and beside it the head with its labels.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import openvino as ov
import torch
from numpy.typing import NDArray
from torch import nn

from edgeface.convert.converter import require_plain_name
from edgeface.convert.ir import FreshProcessCheck, publish_ir, save_ir
from edgeface.convert.source import weights_id_of
from edgeface.errors import ContractError, InputError
from edgeface.evaluate.faces import CROPS, Embedded, FaceSource, embed_images
from edgeface.evaluate.lfw import calibrate_embedded
from edgeface.evaluate.pairs import Pairs, pairs_from_folders
from edgeface.files import sha256_of, staging_folder, stopwatch
from edgeface.model.contract import Method, ModelContract
from edgeface.model.ir_file import check_weights, read_contract, read_ir
from edgeface.progress import Progress, ProgressCallback, ignore_progress
from edgeface.quantize.calibration import to_inputs
from edgeface.quantize.gate import cosines, embed
from edgeface.quantize.verification import (
    SCORED,
    LabelledPairs,
    VerificationChange,
    compare_verification,
    read_labelled,
)
from edgeface.recognize.known import RATES
from edgeface.recognize.threshold import Threshold, save_thresholds
from edgeface.train.archive import HEAD, THRESHOLDS
from edgeface.train.classify import TrainedHead
from edgeface.train.data import (
    FaceSet,
    Part,
    augment,
    find_one_person,
    gather_people,
    require_held_out,
    require_output,
    split_photos,
)
from edgeface.train.loop import CHECKPOINT, PRESETS, History, Optimisation, discard_checkpoint, fit, shuffled
from edgeface.train.losses import focal_loss, weights_of_classes
from edgeface.train.network import TrainableTail, run_batches
from edgeface.train.outcome import HeadJudgement, HeadOutcome, HeadSettings, lineage_of, measured
from edgeface.train.report import write_report

_MOST_BYTES = 2 << 30
"""Most memory for the features that unfrozen blocks take."""


class _Classifier(nn.Module):  # type: ignore[misc]
    """A linear layer on embeddings that are as long as those that the embedder was trained with, after a tail."""

    def __init__(self, dim: int, classes: int, tail: TrainableTail | None, *, scale: float, seed: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        bound = dim**-0.5
        self.linear = nn.Linear(dim, classes)
        with torch.no_grad():
            for parameter in self.linear.parameters():
                parameter.uniform_(-bound, bound, generator=generator)
        self.tail, self.scale = tail, scale

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        embeddings = features if self.tail is None else self.tail(features)
        logits: torch.Tensor = self.linear(embeddings * self.scale)
        return logits


def train_head(
    root: Path,
    output: Path,
    model: Path,
    faces: FaceSource = CROPS,
    *,
    settings: HeadSettings | None = None,
    optimisation: Optimisation | None = None,
    strangers: LabelledPairs | None = None,
    name: str | None = None,
    force: bool = False,
    cache: Path | None = None,
    progress: ProgressCallback = ignore_progress,
) -> HeadOutcome:
    """Train a classifier of the people of a folder, and write the embedder, the head and a report.

    Parameters
    ----------
    root
        Folder with one folder of photos for each person.
    output
        Receives ``<name>.xml`` and ``.bin``, ``head.npz``, ``training.json``, ``report.html`` and ``log.jsonl``, and
        for a fine-tuned embedder ``thresholds.json``, chosen on the pairs of strangers. An unfinished training there
        is resumed. It is not the folder of the model.
    model
        IR with a contract; FP32 if blocks are unfrozen.
    faces
        Source of the faces.
    settings, optimisation
        By default the presets for a frozen backbone, and for a fine-tuned one.
    strangers
        Labelled pairs of other people, on which embedders before and after are compared; see `pairs_of_strangers`.
        Needed if blocks are unfrozen.
    name
        Of the embedder; None: the model's.
    force
        Write an embedder that became worse at telling strangers apart, or for which there are no pairs.
    cache, progress
        See `gather_people`; called with the stages of the work.

    Raises
    ------
    InputError
        If the photos, the settings, the model or the name cannot be used, or `output` has a finished training.
    ContractError
        If the model has no contract or seeded weights.
    OutputError
        If the output cannot be written.
    """
    settings = settings or HeadSettings()
    optimisation = optimisation or PRESETS["finetune" if settings.unfreeze else "linear"]
    parent, contract = read_contract(model)
    require_plain_name(contract.name if name is None else name)
    require_output(root, output, "training.json", CHECKPOINT)
    require_trainable(model, output, contract, changes=settings.unfreeze > 0, judged=strangers is not None or force)
    with stopwatch() as elapsed:
        people = gather_people(root, model, faces, min_photos=settings.min_photos, cache=cache, progress=progress)
        parts = split_photos(people, held_out=settings.held_out, validation=settings.validation, seed=optimisation.seed)
        require_held_out(root, parts, settings.held_out)
        tail = TrainableTail(model, settings.unfreeze) if settings.unfreeze else None
        work = _Work(people, parts, tail, model, settings, optimisation, progress)
        head, embeddings, history = work.train(output)
        held = parts["held_out"]
        judgement = HeadJudgement(
            photos=held, probabilities=head.probabilities(embeddings[held]), truth=people.people[held]
        )
        outcome = HeadOutcome(
            ir=None,
            contract=work.child(history, name, parent),
            parent_id=contract.contract_id,
            settings=settings,
            optimisation=optimisation,
            head=head,
            history=history,
            judgement=judgement,
            verification=None,
            faces=people,
            parts=parts,
            one_person=find_one_person(people),
            reasons=(),
            seconds=0.0,
        )
        outcome = _publish(outcome, model, output, tail, strangers, force=force, progress=progress)
        outcome = dataclasses.replace(outcome, seconds=elapsed())
    write_report(outcome, output)
    if outcome:
        discard_checkpoint(output)
    return outcome


def require_trainable(model: Path, output: Path, contract: ModelContract, *, changes: bool, judged: bool) -> None:
    """Refuse what would fail after minutes of work.

    `changes` tells whether embeddings will change, and `judged` whether pairs of strangers show how, or it is forced.
    """
    check_weights(model, contract, sha256_of(model.with_suffix(".bin")))
    contract.refuse_seeded(source=str(model))
    if output.resolve() == model.resolve().parent:
        raise InputError(path=output, expected="another folder than the model's", found="that of the model")
    if changes and contract.precision != "FP32":
        raise ContractError(
            path=model,
            expected="an FP32 IR, whose weights can be trained",
            found=contract.precision,
            remedy="convert the model with --precision fp32",
        )
    if changes and not judged:
        raise InputError(
            expected="labelled pairs of other people, to prove that the embedder still tells strangers apart",
            found="none",
            remedy="pass --verify FOLDER (or a pairs list with --images), or --force",
        )
    with staging_folder(output):
        pass


@dataclass(frozen=True, slots=True, eq=False)
class _Work:
    """What one training works with."""

    people: FaceSet
    parts: Mapping[Part, NDArray[np.intp]]
    tail: TrainableTail | None
    model: Path
    settings: HeadSettings
    optimisation: Optimisation
    progress: ProgressCallback

    def train(self, output: Path) -> tuple[TrainedHead, NDArray[np.float32], History]:
        """Return the head, the embeddings of all photos by the trained embedder, and how it was trained."""
        features = self.people.embeddings if self.tail is None else self._features(self.people.crops)
        network, history = self._fit(features, output)
        embeddings, strangers = run_batches(self.tail, features), self.people.strangers
        if self.tail is not None and len(strangers):
            strangers = run_batches(self.tail, self._features(self.people.stranger_crops))
        head = TrainedHead(
            labels=self.people.names,
            weights=(network.linear.weight.detach().numpy() * np.float32(network.scale)).copy(),
            bias=network.linear.bias.detach().numpy().copy(),
            contract_id=self.people.contract.contract_id,
        )
        rows = self.parts["validation"]
        head = head.calibrated(embeddings[rows], self.people.people[rows]) if len(rows) else head
        return head.with_threshold(strangers), embeddings, history

    def _features(self, crops: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return what is trained on, of crops: embeddings, or what the unfrozen blocks take."""
        inputs = to_inputs(crops, self.people.contract)
        if self.tail is None:
            self.progress(Progress("features", 0, len(inputs), "crops"))
            return embed(read_ir(self.model), inputs)
        size = self.tail.features(inputs[:1])[0].nbytes * len(inputs)
        if size > _MOST_BYTES:
            raise InputError(
                expected=f"at most {_MOST_BYTES >> 20:,} MB of features",
                found=f"{size >> 20:,} MB for {len(inputs):,} crops",
                remedy="unfreeze fewer blocks",
            )
        return self.tail.features(inputs, progress=self.progress)

    def _fit(self, features: NDArray[np.float32], output: Path) -> tuple[_Classifier, History]:
        people, settings, seed = self.people, self.settings, self.optimisation.seed
        contract, classes, rows = people.contract, len(people.names), self.parts["train"]
        copies = list(augment(people.crops[rows], settings.augmentation, copies=settings.copies, seed=seed))
        inputs = np.concatenate([features[rows], *map(self._features, copies)])
        labels = np.tile(people.people[rows], 1 + len(copies))
        scale = contract.embedding_dim**0.5 if contract.normalized else 1.0
        network = _Classifier(contract.embedding_dim, classes, self.tail, scale=scale, seed=seed)
        weights = torch.from_numpy(weights_of_classes(labels, classes, settings.class_weights))
        gamma = settings.gamma if settings.loss == "focal" else 0.0
        x, y = torch.from_numpy(inputs), torch.from_numpy(labels.astype(np.int64))
        judged = self.parts["validation"] if len(self.parts["validation"]) else rows
        seen, truth = torch.from_numpy(features[judged]), torch.from_numpy(people.people[judged].astype(np.int64))

        def validate() -> Mapping[str, float]:
            logits = network(seen)
            right = (logits.argmax(dim=1) == truth).double().mean()
            return {"loss": float(focal_loss(logits, truth, gamma=gamma)), "accuracy": float(right)}

        history = fit(
            network,
            lambda batch: focal_loss(network(x[batch]), y[batch], gamma=gamma, weights=weights),
            shuffled(len(inputs), self.optimisation.batch, seed),
            validate,
            self.optimisation,
            output,
            fingerprint=people.fingerprint(dataclasses.asdict(settings)),
            tail=self.tail,
            progress=self.progress,
        )
        return network, history

    def child(self, history: History, name: str | None, parent: ov.Model) -> ModelContract:
        """Return the contract of the embedder: the parent's, with a lineage and the identity of trained weights.

        `parent` is written to. The cosines of the lineage are measured when the IR is there.
        """
        contract = self.people.contract
        method: Method = "head" if self.tail is None else "finetuned"
        lineage = lineage_of(self.people, method, self.settings, self.optimisation, history)
        child = dataclasses.replace(contract, lineage=lineage, name=name or contract.name)
        if self.tail is None:
            return child
        return dataclasses.replace(child, weights_id=weights_id_of(self.tail.write_into(parent)), provenance="unknown")


def _publish(
    outcome: HeadOutcome,
    model: Path,
    output: Path,
    tail: TrainableTail | None,
    strangers: LabelledPairs | None,
    *,
    force: bool,
    progress: ProgressCallback,
) -> HeadOutcome:
    """Write embedder and head, if it is no worse than its parent or `force` is set."""
    held = outcome.faces.crops[outcome.judgement.photos]
    with FreshProcessCheck() as check, staging_folder(output) as staging:
        trained = read_ir(model)
        trained = trained if tail is None else tail.write_into(trained)
        staged, contract = save_ir(trained, staging, outcome.contract)
        check(staged)
        inputs = to_inputs(held, contract)
        after = embed(read_ir(staged), inputs)  # of the file, as it was written
        cosine = cosines(outcome.faces.embeddings[outcome.judgement.photos], after)
        change, thresholds = None, tuple[Threshold, ...]()
        if tail is not None and strangers is not None:
            change, thresholds = verify_strangers(model, staged, strangers, progress=progress)
        assert contract.lineage is not None
        lineage = measured(contract.lineage, cosine, change)
        staged, contract = save_ir(trained, staging, dataclasses.replace(contract, lineage=lineage))
        head = dataclasses.replace(outcome.head, contract_id=contract.contract_id)
        reasons = () if change is None else judge_strangers(change)
        outcome = dataclasses.replace(outcome, contract=contract, head=head, verification=change, reasons=reasons)
        if reasons and not force:
            return outcome
        head.save(output / HEAD)
        (output / THRESHOLDS).unlink(missing_ok=True)  # of an embedder that was trained here before
        if thresholds:
            save_thresholds(output / THRESHOLDS, thresholds)
        return dataclasses.replace(outcome, ir=publish_ir(staged, output))


def verify_strangers(
    before: Path, after: Path, strangers: LabelledPairs, *, progress: ProgressCallback = ignore_progress
) -> tuple[VerificationChange, tuple[Threshold, ...]]:
    """Verify the same pairs by two embedders; return the comparison, and thresholds for the second one."""

    def embedded(ir: Path, stage: str) -> Embedded:
        def report(each: Progress) -> None:
            progress(Progress(stage, each.done, each.total, each.unit))

        return embed_images(strangers.images, strangers.pairs.images, ir, strangers.faces, progress=report)

    first, second = embedded(before, "strangers, before"), embedded(after, "strangers, after")
    protocol, settings = SCORED[0]
    pairs = strangers.pairs
    change = compare_verification(
        first.vectors, second.vectors, pairs, protocol=protocol, settings=settings, seed=strangers.seed
    )
    told = f"{len(pairs):,} pairs of people who were not trained on"
    return change, calibrate_embedded(second, pairs, fars=RATES, created_from=told).thresholds


def judge_strangers(change: VerificationChange) -> tuple[str, ...]:
    """Return why an embedder is refused: its accuracy fell, and the paired interval excludes that it did not."""
    low, high = change.accuracy.interval
    if low <= 0:
        return ()
    return (
        f"verification of {change.pairs:,} pairs of people who were not trained on: expected no loss, found accuracy "
        f"{change.accuracy.before:.4f} before and {change.accuracy.after:.4f} after, a drop of "
        f"{change.accuracy.drop:.4f} (95 % interval {low:.4f} to {high:.4f}): the embedder became worse at telling "
        "strangers apart",
    )


def pairs_of_strangers(
    listed: str | Path,
    trained: Path,
    images: Path | None = None,
    *,
    faces: FaceSource = CROPS,
    most: int = 1500,
    seed: int = 0,
) -> LabelledPairs:
    """Read labelled pairs, without those of people who are trained on.

    Parameters
    ----------
    listed, images
        A folder with one folder of photos for each person; or as for `edgeface.quantize.read_labelled`.
    trained
        Folder of the people who are trained on: pairs with one of their names are left out.
    faces
        Source of the faces of a folder or a list.
    most
        Most pairs of each kind of a folder.
    seed
        Of the order of the pairs, which decides the folds.

    Raises
    ------
    InputError
        If fewer than 20 pairs of a kind are left, or as `edgeface.quantize.read_labelled`.
    """
    folder = Path(listed)
    if str(listed) != "lfw" and folder.is_dir():
        labelled = LabelledPairs(images=folder, pairs=pairs_from_folders(folder, most=most, seed=seed), faces=faces)
    else:
        labelled = read_labelled(listed, images, detector=faces.detector)
        if labelled.faces.boxes is None:
            labelled = dataclasses.replace(labelled, faces=faces)
    names = {each.name for each in trained.iterdir() if each.is_dir()} if trained.is_dir() else set()
    pairs = labelled.pairs
    known = np.array([Path(image).parts[0] in names for image in pairs.images])
    left = np.flatnonzero(~known[pairs.first] & ~known[pairs.second])
    genuine = int(pairs.same[left].sum())
    if min(genuine, len(left) - genuine) < _FEWEST_PAIRS:
        raise InputError(
            path=listed,
            expected=f"at least {_FEWEST_PAIRS} genuine and as many impostor pairs of people who are not trained on",
            found=f"{genuine} and {len(left) - genuine}",
            remedy="give photos of more people",
        )
    # Folds are cut in the order of the list: each gets its share of both kinds.
    rng = np.random.default_rng(seed)
    fold_of = np.empty(len(left), np.intp)
    for kind in (True, False):
        rows = np.flatnonzero(pairs.same[left] == kind)
        fold_of[rng.permutation(rows)] = np.arange(len(rows)) * _FOLDS // len(rows)
    left = left[np.argsort(fold_of, kind="stable")]
    used, place = np.unique(np.stack([pairs.first[left], pairs.second[left]]), return_inverse=True)
    first, second = place.reshape(2, -1).astype(np.intp)
    chosen = Pairs(tuple(pairs.images[row] for row in used), first, second, pairs.same[left], _FOLDS)
    return dataclasses.replace(labelled, pairs=chosen, seed=seed)


_FOLDS = 10
_FEWEST_PAIRS = 20
