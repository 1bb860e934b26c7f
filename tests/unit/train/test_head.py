"""The last blocks of an IR in torch, a head from a folder of photos to an archive, and what is said on the way."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import stat
import tarfile
from pathlib import Path

import numpy as np
import openvino as ov
import pytest
from commands import edgeface
from tiny_trainable import DIM, SIZE, face_net, write_net, write_photos

torch = pytest.importorskip("torch", reason="the extra 'train' is not installed")

from edgeface.convert.parity import run_model  # noqa: E402
from edgeface.errors import ArchiveError, ChecksumError, ContractError, InputError, OutputError  # noqa: E402
from edgeface.model.contract import Lineage, ModelContract  # noqa: E402
from edgeface.model.ir_file import read_contract, read_ir  # noqa: E402
from edgeface.model.opset import ops  # noqa: E402
from edgeface.quantize.verification import Change, VerificationChange  # noqa: E402
from edgeface.recognize.threshold import load_thresholds  # noqa: E402
from edgeface.runtime.embedder import Embedder  # noqa: E402
from edgeface.runtime.plan import DevicePlan  # noqa: E402
from edgeface.train import head as module  # noqa: E402
from edgeface.train.archive import export_training, import_training  # noqa: E402
from edgeface.train.classify import TrainedHead  # noqa: E402
from edgeface.train.data import gather_people  # noqa: E402
from edgeface.train.head import judge_strangers, pairs_of_strangers, train_head  # noqa: E402
from edgeface.train.loop import Optimisation  # noqa: E402
from edgeface.train.network import TrainableTail, count_blocks  # noqa: E402
from edgeface.train.outcome import HeadJudgement, HeadSettings  # noqa: E402

FAST = Optimisation(epochs=40, rate=0.02, patience=0)


@pytest.fixture
def ir(tmp_path: Path) -> Path:
    return write_net(tmp_path / "model")


@pytest.fixture
def people(tmp_path: Path) -> Path:
    return write_photos(tmp_path / "people", 6, 10)


# The network


def images(count: int = 3) -> np.ndarray:
    return np.random.default_rng(0).uniform(0, 255, (count, 3, SIZE, SIZE)).astype(np.float32)


def test_a_residual_block_is_one_block_and_a_layer_on_its_own_another(ir: Path) -> None:
    assert count_blocks(read_ir(ir)) == 3  # the first convolution, the residual one, the dense layer


@pytest.mark.parametrize("blocks", [1, 2, 3])
def test_the_last_blocks_in_torch_give_the_embeddings_of_the_ir(ir: Path, blocks: int) -> None:
    tail = TrainableTail(ir, blocks)
    with torch.no_grad():
        found = tail(torch.from_numpy(tail.features([image[np.newaxis] for image in images()]))).numpy()
    assert np.abs(found - run_model(read_ir(ir), images())).max() < 1e-6
    assert len(tail.weights) == {1: 1, 2: 3, 3: 4}[blocks]


def test_weights_that_were_changed_in_torch_are_those_of_the_ir_that_is_written(ir: Path) -> None:
    tail = TrainableTail(ir, 3)
    features = torch.from_numpy(tail.features([image[np.newaxis] for image in images()]))
    unchanged = run_model(tail.write_into(read_ir(ir)), images())
    assert np.array_equal(unchanged, run_model(read_ir(ir), images()))
    with torch.no_grad():
        for weight in tail.weights.values():
            weight += 0.05 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(1))
        expected = tail(features).numpy()
    found = run_model(tail.write_into(read_ir(ir)), images())
    assert np.abs(found - expected).max() < 1e-6
    assert np.abs(found - unchanged).max() > 1e-3


def test_the_gradient_reaches_every_weight_of_the_tail(ir: Path) -> None:
    tail = TrainableTail(ir, 3)
    out = tail(torch.from_numpy(tail.features([image[np.newaxis] for image in images()])))
    (out * torch.arange(DIM)).sum().backward()
    assert all(weight.grad is not None and bool(weight.grad.abs().sum() > 0) for weight in tail.weights.values())


@pytest.mark.parametrize("blocks", [0, 4])
def test_more_blocks_than_there_are_cannot_be_unfrozen(ir: Path, blocks: int) -> None:
    with pytest.raises(InputError, match="1 to 3"):
        TrainableTail(ir, blocks)


def all_operations() -> ov.Model:
    """Every kind of operation that can be trained through and is not in the tiny network."""
    rng = np.random.default_rng(0)

    def normal(*shape: int) -> np.ndarray:
        return rng.normal(0, 0.5, shape).astype(np.float32)

    image = ops.parameter([-1, 3, SIZE, SIZE], np.float32, name="image")
    x = ops.convolution(ops.multiply(image, np.float32(0.01)), normal(8, 3, 3, 3), [2, 2], [0, 1], [1, 0], [1, 1])
    x = ops.prelu(x, np.full(8, 0.25, np.float32))
    x = ops.group_convolution(x, normal(8, 1, 1, 3, 3), [1, 1], [1, 1], [1, 1], [1, 1])
    x = ops.pad(x, np.array([0, 0, 0, 0]), np.array([0, 2, 1, 1]), "constant", np.float32(0))
    pooled = ops.max_pool(x, [1, 1], [1, 1], [1, 1], [1, 1], [3, 3]).output(0)
    x = ops.concat([pooled, x.output(0)], 1)
    x = ops.avg_pool(ops.subtract(x, normal(1, 20, 1, 1)), [2, 2], [1, 1], [1, 1], [3, 3], True)
    x = ops.reduce_sum(ops.divide(x, np.float32(3)), np.array([3]), keep_dims=False)
    x = ops.transpose(x, np.array([0, 2, 1]))
    flat = ops.reshape(x, np.array([0, -1]), special_zero=True)
    size = flat.get_output_partial_shape(0)[1].get_length()
    y = ops.relu(ops.add(ops.matmul(flat, normal(DIM, size), False, True), normal(1, DIM)))
    scale = ops.sqrt(ops.maximum(ops.reduce_mean(ops.power(y, np.float32(2)), np.array([1]), True), np.float32(1e-6)))
    z = ops.reshape(ops.divide(y, scale), np.array([-1, 1, DIM]), special_zero=False)
    return ov.Model([ops.squeeze(z, np.array([1]))], [image], "operations")


def test_every_operation_that_is_listed_gives_what_openvino_gives(tmp_path: Path) -> None:
    from edgeface.train.network import _OPERATIONS

    path = tmp_path / "operations.xml"
    ov.save_model(all_operations(), path, compress_to_fp16=False)
    model = read_ir(path)
    tail = TrainableTail(path, count_blocks(model))
    with torch.no_grad():
        found = tail(torch.from_numpy(tail.features([image[np.newaxis] for image in images()]))).numpy()
    assert np.abs(found - run_model(model, images())).max() < 1e-5
    tried = {op.get_type_name() for each in (model, face_net()) for op in each.get_ops()}
    assert _OPERATIONS.keys() <= tried


# The head


def train(root: Path, output: Path, ir: Path, **options: object) -> module.HeadOutcome:
    options = {"settings": HeadSettings(), "optimisation": FAST, "cache": output.parent / "cache", **options}
    return train_head(root, output, ir, **options)


@pytest.mark.slow
def test_a_frozen_backbone_is_published_unchanged_with_its_id_and_a_lineage(
    tmp_path: Path, ir: Path, people: Path
) -> None:
    done = train(people, tmp_path / "out", ir)
    assert done
    assert done.judgement.accuracy > 0.9
    assert done.ir is not None
    _, parent = read_contract(ir)
    _, child = read_contract(done.ir)
    assert child.contract_id == parent.contract_id == done.head.contract_id
    assert child.lineage is not None
    assert child.lineage.method == "head"
    assert child.lineage.parent_id == parent.contract_id
    assert child.lineage.calibration_sha256 == done.faces.digest
    assert "trained_epochs" in child.lineage.settings
    assert np.array_equal(run_model(read_ir(done.ir), images()), run_model(read_ir(ir), images()))
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        *("head.npz", "log.jsonl", "report.html", "tiny.bin", "tiny.xml", "training.json")
    ]
    assert stat.S_IMODE((tmp_path / "out/head.npz").stat().st_mode) == 0o600


@pytest.mark.slow
def test_the_saved_head_answers_photos_as_it_was_judged(tmp_path: Path, ir: Path, people: Path) -> None:
    done = train(people, tmp_path / "out", ir)
    head = TrainedHead.load(tmp_path / "out/head.npz")
    rows = done.judgement.photos
    with Embedder.load(tmp_path / "out/tiny.xml", plan=DevicePlan(device="CPU", precision="f32")) as embedder:
        vectors = embedder.embed(done.faces.crops[rows])
    assert head.labels == done.faces.names
    assert head.probabilities(vectors) == pytest.approx(done.judgement.probabilities, abs=1e-5)
    right = head.probabilities(vectors).argmax(axis=1) == done.faces.people[rows]
    assert right.mean() == done.judgement.accuracy


@pytest.mark.slow
def test_training_again_gives_the_same_weights(tmp_path: Path, ir: Path, people: Path) -> None:
    first, second = (train(people, tmp_path / name, ir) for name in "ab")
    assert np.array_equal(first.head.weights, second.head.weights)


@pytest.mark.slow
def test_a_finished_head_is_not_confident_without_end(tmp_path: Path, ir: Path, people: Path) -> None:
    """Six validation photos that are all right are no proof of certainty."""
    done = train(people, tmp_path / "out", ir)
    assert done.judgement.probabilities.max() < 1 - 1e-6


@pytest.mark.slow
def test_copies_are_trained_on_beside_the_photos(tmp_path: Path, ir: Path, people: Path) -> None:
    plain = train(people, tmp_path / "a", ir)
    mirrored = train(people, tmp_path / "b", ir, settings=HeadSettings(augmentation="mirror"))
    assert not np.allclose(plain.head.weights, mirrored.head.weights)
    assert mirrored.judgement.accuracy > 0.6  # the mirror image of such a pattern is another pattern


@pytest.mark.slow
def test_photos_of_dropped_people_choose_where_the_answer_is_unknown(tmp_path: Path, ir: Path, people: Path) -> None:
    write_photos(people, 60, 2, seed=1)
    done = train(people, tmp_path / "out", ir)
    assert len(done.faces.dropped) == 60
    assert "120 photos of people" in done.head.threshold_from
    reached = done.head.probabilities(done.faces.strangers).max(axis=1) >= done.head.threshold
    assert reached.mean() <= 0.01
    few = done.head.with_threshold(done.faces.strangers[:99])
    assert few.threshold == done.head.threshold  # as it was: too few to choose by


def strangers_of(tmp_path: Path, people: Path) -> module.LabelledPairs:
    return pairs_of_strangers(write_photos(tmp_path / "others", 12, 4, seed=2), people, most=60)


@pytest.mark.slow
def test_a_finetuned_embedder_gets_an_id_of_its_own_and_is_verified_on_strangers(
    tmp_path: Path, ir: Path, people: Path
) -> None:
    strangers = strangers_of(tmp_path, people)
    settings = HeadSettings(unfreeze=2)
    run = Optimisation(epochs=4, rate=1e-2, tail_share=0.01, patience=0)
    done = train(people, tmp_path / "out", ir, settings=settings, optimisation=run, strangers=strangers, force=True)
    assert done.ir is not None
    model, child = read_contract(done.ir)
    _, parent = read_contract(ir)
    assert child.contract_id != parent.contract_id
    assert child.lineage is not None
    assert child.lineage.method == "finetuned"
    assert child.provenance == "unknown"
    assert done.head.contract_id == child.contract_id
    assert done.verification is not None
    assert done.verification.pairs == len(strangers.pairs) == 120
    before, after = run_model(read_ir(ir), images()), run_model(model, images())
    assert 1e-6 < np.abs(before - after).max() < 0.5
    assert child.lineage.min_cosine < 1
    assert child.lineage.accuracy_drop == done.verification.accuracy.drop
    chosen = load_thresholds(tmp_path / "out/thresholds.json")
    assert {each.contract_id for each in chosen} == {child.contract_id}
    assert chosen[0].impostors == 60
    made = export_training(tmp_path / "out", tmp_path / "kiosk.tar")
    assert "thresholds.json" in dict(made.files)
    again = train(people, tmp_path / "b", ir, settings=settings, optimisation=run, strangers=strangers, force=True)
    assert again.contract.contract_id == child.contract_id


@pytest.mark.slow
def test_an_embedder_that_became_worse_is_not_written_unless_forced(
    tmp_path: Path, ir: Path, people: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    strangers = strangers_of(tmp_path, people)
    settings, run = HeadSettings(unfreeze=1), Optimisation(epochs=2, rate=5.0, tail_share=1.0, patience=0)
    monkeypatch.setattr(module, "verify_strangers", lambda *_, **__: (worse(), ()))
    refused = train(people, tmp_path / "out", ir, settings=settings, optimisation=run, strangers=strangers)
    assert not refused
    assert "worse at telling strangers apart" in refused.reasons[0]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        *("checkpoint.pt", "log.jsonl", "report.html", "training.json")
    ]
    assert "Not written" in (tmp_path / "out/report.html").read_text()
    forced = train(people, tmp_path / "out", ir, settings=settings, optimisation=run, strangers=strangers, force=True)
    assert forced
    assert forced.history.resumed_at == 2  # it was not trained again
    assert forced.reasons == refused.reasons
    assert (tmp_path / "out/tiny.xml").is_file()
    assert not (tmp_path / "out/checkpoint.pt").exists()


def worse(low: float = 0.01) -> VerificationChange:
    drop = Change(before=0.9, after=0.85, drop=0.05, interval=(low, 0.09))
    return VerificationChange(
        protocol="facenet", setting="x", pairs=100, accuracy=drop, val=drop, eer=drop, lost=7, won=2, p_value=0.1
    )


def test_a_drop_that_the_interval_does_not_prove_is_no_reason() -> None:
    assert judge_strangers(worse(low=-0.001)) == ()
    assert len(judge_strangers(worse())) == 1


def test_pairs_of_people_who_are_trained_on_are_left_out(tmp_path: Path, people: Path) -> None:
    others = write_photos(tmp_path / "others", 12, 4, seed=2)
    write_photos(others, 6, 4)  # the people who are trained on
    labelled = pairs_of_strangers(others, people, most=100_000)
    pairs = labelled.pairs
    assert {image.split("/")[0] for image in pairs.images} == {f"P2_{each:02}" for each in range(12)}
    assert (int(pairs.same.sum()), len(pairs)) == (12 * 6, 48 * 47 // 2)
    assert (people / "P0_00").is_dir()
    with pytest.raises(InputError, match="not trained on"):
        pairs_of_strangers(people, people)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("settings", "options", "message"),
    [
        (HeadSettings(unfreeze=1), {}, "labelled pairs of other people"),
        (HeadSettings(unfreeze=9), {"force": True}, "1 to 3"),
        (HeadSettings(min_photos=11), {}, "0 such people of 6"),
        (HeadSettings(held_out=0.0), {}, "their share is 0; pass a higher --held-out"),
    ],
)
def test_what_cannot_be_trained_is_refused_and_leaves_nothing(
    tmp_path: Path, ir: Path, people: Path, settings: HeadSettings, options: dict[str, object], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        train(people, tmp_path / "out", ir, settings=settings, **options)
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_the_folder_of_the_model_and_an_int8_model_are_refused(tmp_path: Path, ir: Path, people: Path) -> None:
    with pytest.raises(InputError, match="another folder"):
        train(people, ir.parent, ir)
    small = write_net(tmp_path / "small", precision="INT8")
    with pytest.raises(ContractError, match="FP32"):
        train(people, tmp_path / "out", small, settings=HeadSettings(unfreeze=1), force=True)


def test_a_judgement_counts_what_a_person_would_count() -> None:
    probabilities = np.array([[0.9, 0.1, 0], [0.2, 0.8, 0], [0.55, 0.45, 0], [0.1, 0.2, 0.7], [0.6, 0.1, 0.3]])
    judged = HeadJudgement(photos=np.arange(5), probabilities=probabilities, truth=np.array([0, 1, 1, 2, 2]))
    assert judged.accuracy == 0.6
    assert judged.interval == pytest.approx((0.1466, 0.9473), abs=1e-3)
    assert judged.recalls(3) == [(1, 1), (1, 2), (1, 2)]
    assert judged.mistakes() == [(1, 0, 1), (2, 0, 1)]
    # bins of 0.1: 0.9 right, 0.8 right, 0.55 wrong, 0.7 right, 0.6 wrong
    assert judged.calibration_error == pytest.approx((0.1 + 0.2 + 0.55 + 0.3 + 0.6) / 5)


def test_the_temperature_makes_probabilities_as_often_right_as_they_say() -> None:
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 4, 4000)
    logits = np.eye(4)[truth] * 2 + rng.gumbel(size=(4000, 4))
    answers = logits.argmax(axis=1)
    exact = TrainedHead(
        labels=tuple("abcd"), weights=np.eye(4, dtype=np.float32), bias=np.zeros(4, np.float32), contract_id="c"
    )
    loud = dataclasses.replace(exact, weights=exact.weights * 7)
    shares = np.eye(4)[truth] * 2
    found = loud.calibrated(shares, answers)
    assert found.temperature == pytest.approx(7, rel=0.1)


# The archive


@pytest.mark.slow
def test_an_archive_brings_the_embedder_the_head_and_its_labels_to_another_machine(
    tmp_path: Path, ir: Path, people: Path
) -> None:
    done = train(people, tmp_path / "out", ir)
    made = export_training(tmp_path / "out", tmp_path / "kiosk.tar")
    assert stat.S_IMODE((tmp_path / "kiosk.tar").stat().st_mode) == 0o600
    again = export_training(tmp_path / "out", tmp_path / "again.tar")
    assert (tmp_path / "kiosk.tar").read_bytes() == (tmp_path / "again.tar").read_bytes()
    assert made == again
    with pytest.raises(OutputError, match="this file exists already"):
        export_training(tmp_path / "out", tmp_path / "again.tar")
    there = import_training(tmp_path / "kiosk.tar", tmp_path / "there")
    assert there.labels == done.faces.names
    assert there.files == made.files
    assert read_contract(tmp_path / "there/tiny.xml")[1] == done.contract
    assert np.array_equal(TrainedHead.load(tmp_path / "there/head.npz").weights, done.head.weights)
    with pytest.raises(InputError, match="exists"):
        import_training(tmp_path / "kiosk.tar", tmp_path / "there")


def rewrite(source: Path, target: Path, changes: dict[str, bytes | None]) -> Path:
    """Copy an archive with other content for some members; None leaves one out."""
    import io

    with tarfile.open(source) as old, tarfile.open(target, "w") as new:
        members = {each.name: old.extractfile(each).read() for each in old.getmembers()}
        for name, content in (members | changes).items():
            if content is not None:
                info = tarfile.TarInfo(name)
                info.size = len(content)
                new.addfile(info, io.BytesIO(content))
    return target


@pytest.mark.slow
def test_an_archive_that_was_changed_is_refused_and_nothing_is_left(tmp_path: Path, ir: Path, people: Path) -> None:
    train(people, tmp_path / "out", ir)
    export_training(tmp_path / "out", tmp_path / "kiosk.tar")
    whole = (tmp_path / "kiosk.tar").read_bytes()
    for number, (changes, kind) in enumerate(
        [
            ({"head.npz": b"PK\x03\x04"}, ChecksumError),
            ({"tiny.bin": None}, ArchiveError),
            ({"more.txt": b"x"}, ArchiveError),
            ({"manifest.json": b"{}"}, ArchiveError),
            ({"manifest.json": b"[" * 100_000}, ArchiveError),
            ({"manifest.json": None}, ArchiveError),
            ({"../outside": b"x"}, ArchiveError),
        ]
    ):
        bad = rewrite(tmp_path / "kiosk.tar", tmp_path / f"bad{number}.tar", changes)
        with pytest.raises(kind):
            import_training(bad, tmp_path / "there")
    for length in (0, 100, 5000, len(whole) // 2):
        (tmp_path / "cut.tar").write_bytes(whole[:length])
        with pytest.raises(ArchiveError):
            import_training(tmp_path / "cut.tar", tmp_path / "there")
    assert not (tmp_path / "there").exists()
    assert not (tmp_path / "outside").exists()


@pytest.mark.slow
def test_what_an_archive_holds_is_checked_even_if_its_digests_agree(tmp_path: Path, ir: Path, people: Path) -> None:
    done = train(people, tmp_path / "out", ir)
    export_training(tmp_path / "out", tmp_path / "kiosk.tar")
    with tarfile.open(tmp_path / "kiosk.tar") as archive:
        told = json.load(archive.extractfile("manifest.json"))
    narrow = dataclasses.replace(done.head, weights=done.head.weights[:, :3])
    narrow.save(tmp_path / "narrow.npz")
    for name, content, message in (
        ("head.npz", b"PK\x03\x04", "bad.tar: .*expected a head"),
        ("head.npz", (tmp_path / "narrow.npz").read_bytes(), "bad.tar: .*found one for 3"),
        ("deep/more.txt", b"x", "bad.tar: expected the files of its manifest.json, found deep/"),
    ):
        digest = hashlib.sha256(content).hexdigest()
        manifest = {**told, "files": {**told["files"], name.split("/")[0]: digest}}
        changes = {name: content, "manifest.json": json.dumps(manifest).encode()}
        bad = rewrite(tmp_path / "kiosk.tar", tmp_path / "bad.tar", changes)
        with pytest.raises(InputError, match=message):
            import_training(bad, tmp_path / "there")
    assert not (tmp_path / "there").exists()


@pytest.mark.parametrize(
    ("files", "remedy"),
    [
        (("a.xml",), r"copy its \.xml and \.bin; or train a head"),
        (("classifier.npz",), r"copy classifier\.npz"),
        (("a.xml", "b.xml", "head.npz"), r"found a\.xml, b\.xml and a head\.npz; remove the \.xml and \.bin"),
        ((), "edgeface train head"),
    ],
)
def test_a_folder_that_holds_no_head_is_refused_with_what_to_do(
    tmp_path: Path, files: tuple[str, ...], remedy: str
) -> None:
    for name in files:
        (tmp_path / name).touch()
    with pytest.raises(InputError, match=remedy):
        export_training(tmp_path, tmp_path / "kiosk.tar")


@pytest.mark.slow
def test_a_head_of_another_model_does_not_travel_with_it(tmp_path: Path, ir: Path, people: Path) -> None:
    done = train(people, tmp_path / "out", ir)
    dataclasses.replace(done.head, contract_id="f" * 16).save(tmp_path / "out/head.npz")
    with pytest.raises(ContractError, match=r"head\.npz: .* another training wrote; train a head on this model"):
        export_training(tmp_path / "out", tmp_path / "kiosk.tar")
    assert not (tmp_path / "kiosk.tar").exists()


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"no head", None])
def test_a_file_that_is_no_head_is_named(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "head.npz"
    if content is None:
        np.savez(path, weights=np.eye(2), bias=np.zeros(2), description=np.array("[]"))
    else:
        path.write_bytes(content)
    with pytest.raises(InputError, match=r"head\.npz: expected a head"):
        TrainedHead.load(path)


def test_labels_that_are_one_text_are_no_labels(tmp_path: Path) -> None:
    told = {"labels": "ab", "contract_id": "c", "threshold_from": "", "schema_version": 1}
    arrays = {"weights": np.eye(2, dtype=np.float32), "bias": np.zeros(2, np.float32)}
    np.savez(tmp_path / "head.npz", **arrays, description=np.array(json.dumps(told)))
    with pytest.raises(InputError, match="no list of texts"):
        TrainedHead.load(tmp_path / "head.npz")


def test_a_head_of_impossible_numbers_cannot_be_made() -> None:
    good = {"labels": ("a", "b"), "weights": np.eye(2, dtype=np.float32), "bias": np.zeros(2, np.float32)}
    for wrong in (
        {"labels": ("a",)},
        {"bias": np.zeros(3, np.float32)},
        {"weights": np.full((2, 2), np.nan, np.float32)},
        {"temperature": 0.0},
        {"threshold": 1.5},
    ):
        with pytest.raises(InputError):
            TrainedHead(**{**good, "contract_id": "c", **wrong})


@pytest.mark.parametrize("name", ["../evil", "", "a\x1b[31m", "a/b"])
def test_a_name_that_is_no_file_name_is_refused_before_the_work(
    tmp_path: Path, ir: Path, people: Path, name: str
) -> None:
    with pytest.raises(InputError, match="name: expected a plain file name"):
        train(people, tmp_path / "out", ir, name=name)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("folder", ["unknown", "#7", "A\u200bda", "\x1b[31mAda", "Ada\udcff"])
def test_a_folder_whose_name_no_gallery_takes_becomes_no_label(
    tmp_path: Path, ir: Path, people: Path, folder: str
) -> None:
    (people / "P0_00").rename(people / folder)
    with pytest.raises(InputError, match="name: expected"):
        train(people, tmp_path / "out", ir)


def test_two_folders_of_one_name_are_not_two_people(tmp_path: Path, ir: Path, people: Path) -> None:
    (people / "P0_00").rename(people / "Zo\u00eb")
    (people / "P0_01").rename(people / "Zoe\u0308")
    with pytest.raises(InputError, match="expected one folder a person, found two of the name 'Zo\u00eb'"):
        train(people, tmp_path / "out", ir)


def test_nothing_is_written_among_the_photos_or_over_a_finished_training(
    tmp_path: Path, ir: Path, people: Path
) -> None:
    for output in (people, people / "P0_00", people / "out"):
        with pytest.raises(InputError, match="expected a folder outside of the photos"):
            train(people, output, ir)
    (tmp_path / "out").mkdir()
    (tmp_path / "out/training.json").write_text("{}")
    with pytest.raises(InputError, match="expected a folder without a finished training"):
        train(people, tmp_path / "out", ir)


# The commands


@pytest.mark.slow
def test_the_command_trains_reports_and_exports(tmp_path: Path, ir: Path, people: Path) -> None:
    (people / "P0_00" / "broken.jpg").write_bytes(b"x")
    write_photos(people, 1, 2, seed=3)
    words = ("train", "head", people, "--model", ir, "--crops", "-o", tmp_path / "out", "--epochs", 30, "--rate", 0.02)
    done = edgeface(*words, "--json")
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert answer["written"]
    assert answer["accuracy"] > 0.9
    assert answer["dropped_people"] == {"P3_00": 2}
    assert "broken.jpg" in done.stderr
    assert "P3_00: left out, with 2 usable photos" in done.stderr
    report = (tmp_path / "out/report.html").read_text()
    named = (tmp_path / "out" / each for each in ("report.html", "training.json", "head.npz"))
    assert {stat.S_IMODE(each.stat().st_mode) for each in named} == {0o600}  # they name people
    assert "Accuracy, held out" in report
    assert "P3_00 (2)" in report
    shown = edgeface("inspect", tmp_path / "out/tiny.xml", columns=200).stdout
    assert f"{answer['parent_id']}: head; cosine between both 1.0000" in shown
    assert "trained_epochs" in shown
    exported = edgeface("export", tmp_path / "out", "-o", tmp_path / "kiosk.tar", "--json")
    assert exported.returncode == 0, exported.stderr
    assert json.loads(exported.stdout)["people"] == [f"P0_0{each}" for each in range(6)]
    assert (tmp_path / "kiosk.tar").is_file()


@pytest.mark.slow
def test_two_names_for_one_person_are_said(tmp_path: Path, ir: Path, people: Path) -> None:
    for photo in (people / "P0_00").iterdir():
        target = people / "Someone" / photo.name
        target.parent.mkdir(exist_ok=True)
        target.write_bytes(photo.read_bytes())
    words = ("train", "head", people, "--model", ir, "--crops", "-o", tmp_path / "out", "--epochs", 3)
    done = edgeface(*words, "--preset", "focal-restarts")
    assert json.loads((tmp_path / "out/training.json").read_text())["settings"]["schedule"] == "cosine-restarts"
    assert "P0_00 and Someone seem to be one person" in done.stderr
    assert "One person under two names?" in (tmp_path / "out/report.html").read_text()


@pytest.mark.slow
def test_a_refused_embedder_ends_the_command_with_1(
    tmp_path: Path, ir: Path, people: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "verify_strangers", lambda *_, **__: (worse(), ()))
    others = write_photos(tmp_path / "others", 12, 4, seed=2)
    words = ("train", "head", people, "--model", ir, "--crops", "-o", tmp_path / "out", "--unfreeze", 1)
    done = edgeface(*words, "--epochs", 2, "--verify", others)
    assert done.returncode == 1
    assert "worse at telling strangers apart" in done.stderr
    assert "nothing written" in done.stdout


# The contract


def lineage(**changes: object) -> Lineage:
    fields: dict[str, object] = {
        "parent_id": "a" * 16,
        "method": "head",
        "settings": "",
        "calibration_sha256": "b" * 64,
        "mean_cosine": 1.0,
        "p01_cosine": 1.0,
        "min_cosine": 1.0,
    }
    return Lineage(**{**fields, **changes})


def test_a_lineage_changes_the_id_only_if_the_numbers_change(ir: Path) -> None:
    _, contract = read_contract(ir)
    headed = dataclasses.replace(contract, lineage=lineage())
    assert headed.contract_id == contract.contract_id
    assert ModelContract.from_dict(headed.to_dict()) == headed
    tuned = dataclasses.replace(contract, lineage=lineage(method="finetuned"))
    assert tuned.contract_id != contract.contract_id
    known = dataclasses.replace(contract, weights_id="c" * 64)
    assert dataclasses.replace(known, lineage=lineage()).former_ids == known.former_ids
    assert dataclasses.replace(known, lineage=lineage(method="finetuned")).former_ids == ()


def test_gathered_people_say_what_they_are(tmp_path: Path, ir: Path, people: Path) -> None:
    found = gather_people(people, ir, cache=tmp_path / "cache")
    assert repr(found) == "FaceSet(60 photos of 6 people, 0 people dropped)"
