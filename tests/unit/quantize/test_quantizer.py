"""The gate: what passes is written with its lineage, what does not leaves nothing behind, and the search helps it."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import cv2
import numpy as np
import pytest
from extras import need_nncf
from tiny_net import skin_crops, write_tiny_net

from edgeface.errors import InputError
from edgeface.evaluate.lfw import DEFAULTS
from edgeface.evaluate.pairs import pairs_from_folders
from edgeface.evaluate.protocol import ProtocolName
from edgeface.model.contract import ModelContract
from edgeface.model.ir_file import read_contract, read_ir
from edgeface.quantize import CalibrationSet, LabelledPairs, QuantizationLimits, QuantizationRecipe, gather, quantize
from edgeface.quantize.calibration import to_inputs
from edgeface.quantize.gate import embed, measure_fidelity
from edgeface.quantize.sensitivity import groups_of, rank, revert
from edgeface.runtime import DevicePlan, Embedder
from edgeface.vision.listing import list_photos

need_nncf()
IMPOSSIBLE = QuantizationLimits(min_cosine=1.0)


@pytest.fixture(scope="module")
def ir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_net(tmp_path_factory.mktemp("parent"))


@pytest.fixture(scope="module")
def contract(ir: Path) -> ModelContract:
    return read_contract(ir)[1]


@pytest.fixture(scope="module")
def calibration() -> CalibrationSet:
    crops = skin_crops(30)
    return CalibrationSet(crops=crops[:15], held_out=crops[15:], names=tuple(map(str, range(30))))


@pytest.mark.slow
def test_what_passes_is_written_with_its_lineage(
    ir: Path, contract: ModelContract, calibration: CalibrationSet, tmp_path: Path
) -> None:
    outcome = quantize(ir, tmp_path / "out", calibration)

    assert outcome
    assert outcome.reasons == ()
    assert outcome.ir == tmp_path / "out" / "tiny.xml"
    child = read_contract(outcome.ir)[1]
    assert child == outcome.contract
    assert child.precision == "INT8"
    assert child.contract_id != contract.contract_id
    assert child.lineage is not None
    assert child.lineage.parent_id == contract.contract_id
    assert child.lineage.calibration_sha256 == calibration.digest
    assert "15 images" in child.lineage.settings
    inputs = to_inputs(calibration.held_out, contract)
    expected = measure_fidelity(embed(read_ir(ir), inputs), embed(read_ir(outcome.ir), inputs))
    assert child.lineage.min_cosine == pytest.approx(expected.min_cosine)
    assert outcome.bytes_after < outcome.bytes_before
    with Embedder.load(outcome.ir) as embedder:  # damaged or exchanged weights would be noticed here
        assert embedder.embed(calibration.held_out).shape == (15, contract.embedding_dim)


@pytest.mark.slow
def test_what_is_refused_leaves_nothing_behind(ir: Path, calibration: CalibrationSet, tmp_path: Path) -> None:
    outcome = quantize(ir, tmp_path / "out", calibration, limits=IMPOSSIBLE, search=1)

    assert not outcome
    assert "cosine against FP32" in outcome.reasons[0]
    assert [bool(trial) for trial in outcome.trials] == [False, False]
    assert outcome.to_dict()["passed"] is False
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_the_search_puts_layers_back_until_the_limit_is_kept(
    ir: Path, calibration: CalibrationSet, tmp_path: Path
) -> None:
    refused = quantize(ir, tmp_path / "a", calibration, limits=IMPOSSIBLE, search=3)
    least = [trial.fidelity.min_cosine for trial in refused.trials]
    assert least[0] < least[1] < 1
    within = QuantizationLimits(min_cosine=(least[0] + least[1]) / 2)

    outcome = quantize(ir, tmp_path / "b", calibration, limits=within, search=3)

    assert outcome
    assert len(outcome.trials) == 2
    kept = outcome.trials[1].in_float
    assert len(kept) == 1  # the tiny net has a layer a group
    assert outcome.contract.lineage is not None
    assert f"in floating point: {kept[0]}" in outcome.contract.lineage.settings


def test_a_bad_calibration_set_is_refused_before_anything_is_computed(
    ir: Path, calibration: CalibrationSet, tmp_path: Path
) -> None:
    swapped = dataclasses.replace(
        calibration, crops=calibration.crops[..., ::-1], held_out=calibration.held_out[..., ::-1]
    )

    outcome = quantize(ir, tmp_path / "out", swapped)

    assert "red and blue were exchanged" in outcome.reasons[0]
    assert outcome.trials == ()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("method", "ratio"), [("fp16", 0.6), ("weights", 0.75)])
def test_storage_passes_the_same_gate(
    method: str, ratio: float, ir: Path, contract: ModelContract, calibration: CalibrationSet, tmp_path: Path
) -> None:
    outcome = quantize(ir, tmp_path, calibration, recipe=QuantizationRecipe(method=method))  # type: ignore[arg-type]

    assert outcome
    assert outcome.bytes_after < ratio * outcome.bytes_before
    assert outcome.trials[0].fidelity.min_cosine > 0.999
    assert outcome.contract.lineage is not None
    assert outcome.contract.lineage.calibration_sha256 == ""
    assert read_contract(ir)[1] == contract  # the parent is as it was


@pytest.mark.slow
def test_labelled_pairs_are_scored_before_and_after(ir: Path, calibration: CalibrationSet, tmp_path: Path) -> None:
    for person in range(12):
        (tmp_path / "images" / f"p{person:02}").mkdir(parents=True)
        base = skin_crops(1, seed=100 + person)[0].astype(int)
        for number in range(2):
            noise = np.random.default_rng(person * 2 + number).integers(-6, 6, base.shape)
            picture = (base + noise).clip(0, 255).astype(np.uint8)
            cv2.imwrite(str(tmp_path / "images" / f"p{person:02}" / f"{number}.png"), picture)
    pairs = dataclasses.replace(pairs_from_folders(tmp_path / "images"), folds=2)
    plain = (ProtocolName.omz, DEFAULTS[ProtocolName.facenet])
    labelled = LabelledPairs(images=tmp_path / "images", pairs=pairs, scored=(plain,))

    outcome = quantize(ir, tmp_path / "out", calibration, pairs=labelled, limits=QuantizationLimits(max_drop=0.5))

    (verification,) = outcome.trials[0].verification
    assert verification.accuracy.before > 0.7
    assert outcome.contract.lineage is not None
    assert outcome.contract.lineage.accuracy_drop == pytest.approx(verification.accuracy.drop)


def test_only_an_fp32_parent_is_taken_and_never_replaced(ir: Path, calibration: CalibrationSet, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="would replace its parent"):
        quantize(ir, ir.parent, calibration)
    half = write_tiny_net(tmp_path, precision="FP16")
    with pytest.raises(InputError, match="expected an IR of precision FP32"):
        quantize(half, tmp_path / "out", calibration)


# --- sensitivity ------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_putting_every_layer_back_gives_the_parents_embeddings(ir: Path, calibration: CalibrationSet) -> None:
    from edgeface.quantize.compress import compress

    parent = read_ir(ir)
    inputs = to_inputs(calibration.held_out, ModelContract.read_from(parent))
    compressed = compress(parent, inputs, QuantizationRecipe())
    groups = groups_of(parent)
    assert [name for group in groups for name in group] == ["a", "b", "c", "d"]

    everything = revert(compressed, parent, [name for group in groups for name in group])

    expected = embed(parent, inputs)
    assert np.abs(embed(compressed, inputs) - expected).max() > 1e-4
    assert embed(everything, inputs) == pytest.approx(expected, abs=1e-5)
    ranked = rank(
        compressed, parent, groups, lambda model: measure_fidelity(expected, embed(model, inputs)).mean_cosine
    )
    gains = [gain for gain, _ in ranked]
    assert gains == sorted(gains, reverse=True) and gains[0] > 0  # noqa: PT018


# --- calibration ------------------------------------------------------------------------------------------------


def write_photos(folder: Path, count: int) -> Path:
    folder.mkdir(parents=True)
    for number, crop in enumerate(skin_crops(count)):
        cv2.imwrite(str(folder / f"{number:03}.png"), crop)
    return folder


def test_photographs_are_divided_by_the_seed_and_none_is_in_both_halves(
    contract: ModelContract, tmp_path: Path
) -> None:
    photos = list_photos([write_photos(tmp_path / "photos", 40)]).photos
    first, again, other = (gather(photos, contract, subset=30, seed=seed) for seed in (1, 1, 2))

    assert first.names == again.names != other.names
    assert first.digest == again.digest != other.digest
    assert (len(first.crops), len(first.held_out)) == (30, 10)
    assert len({crop.tobytes() for crop in (*first.crops, *first.held_out)}) == 40


def test_a_fifth_is_held_out_of_a_small_set(contract: ModelContract, tmp_path: Path) -> None:
    known = gather(list_photos([write_photos(tmp_path / "photos", 20)]).photos, contract, subset=300)

    assert (len(known.crops), len(known.held_out)) == (16, 4)


def test_the_model_is_fed_what_the_adapter_feeds_it(ir: Path, contract: ModelContract) -> None:
    crops = skin_crops(4)
    inputs = to_inputs(crops, contract)

    assert np.array_equal(np.concatenate(inputs), crops.transpose(0, 3, 1, 2))
    with Embedder.load(ir, plan=DevicePlan(device="CPU", precision="f32")) as embedder:
        assert embed(read_ir(ir), inputs) == pytest.approx(embedder.embed(crops), abs=1e-6)
