"""What a liveness contract accepts, what its id depends on, and that it is not mistaken for an embedding model's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from minifasnet_files import liveness_contract, write_liveness_ir
from tiny_ir import write_tiny_ir

from edgeface.errors import ContractError, ModelFormatError
from edgeface.model.ir_file import any_contract_of, read_contract, read_ir, read_liveness_contract
from edgeface.model.liveness_contract import LivenessContract
from edgeface.model.stored import UNNUMBERED


@pytest.mark.parametrize(
    "wrong",
    [
        {"color": "RGB"},
        {"value_range": (0.0, 1.0)},
        {"layout": "NHWC"},
        {"crop": "clipped"},
        {"crop_scale": 0.5},
        {"crop_scale": float("nan")},
        {"classes": ("flat", "other")},
        {"classes": ("live", "live")},
        {"classes": ("live",)},
        {"input_size": (0, 80)},
        {"weights_id": ""},
    ],
    ids=str,
)
def test_a_contract_that_would_open_the_door_to_a_photo_cannot_be_made(wrong: dict[str, Any]) -> None:
    with pytest.raises(ContractError):
        liveness_contract(**wrong)


def test_the_id_depends_on_everything_that_changes_the_numbers_and_on_nothing_else() -> None:
    first = liveness_contract()
    changes: dict[str, Any] = {
        "weights_id": "2" * 64,
        "input_size": (16, 16),
        "crop_scale": 3.0,
        "classes": ("live", "flat", "other"),
        "precision": "FP16",
    }
    others = {liveness_contract(**{name: value}).contract_id for name, value in changes.items()}
    assert len(others | {first.contract_id}) == 6
    kept = UNNUMBERED | {"framework", "source_sha256"}
    other: dict[str, Any] = dict.fromkeys(kept, "x") | {
        "provenance": "published", "source_sha256": "3" * 64, "weights_sha256": "4" * 64,
    }  # fmt: skip
    assert liveness_contract(**other).contract_id == first.contract_id


def test_a_contract_comes_back_from_its_ir(tmp_path: Path) -> None:
    _, found = read_liveness_contract(write_liveness_ir(tmp_path))

    assert found.contract_id == liveness_contract().contract_id
    assert found.classes == ("flat", "live", "other")
    assert found.weights_sha256
    assert LivenessContract.from_dict(found.to_dict()) == found


def test_a_liveness_model_is_no_embedding_model_and_the_reverse(tmp_path: Path) -> None:
    liveness = write_liveness_ir(tmp_path)
    embedding = write_tiny_ir(tmp_path)

    with pytest.raises(ContractError, match="expected an embedding model, found a liveness model"):
        read_contract(liveness)
    with pytest.raises(ContractError, match="expected a liveness model, found an embedding model"):
        read_liveness_contract(embedding)
    assert isinstance(any_contract_of(read_ir(liveness), liveness.read_bytes(), source="x"), LivenessContract)
    read_contract(embedding)


@pytest.mark.parametrize(("before", "after"), [('"2.0"', '"4.0"'), ('"BGR"', '"RGB"'), ("flat", "live")])
def test_an_edited_contract_is_refused(tmp_path: Path, before: str, after: str) -> None:
    path = write_liveness_ir(tmp_path)
    text = path.read_text()
    assert before in text
    path.write_text(text.replace(before, after))

    with pytest.raises((ContractError, ModelFormatError)):
        read_liveness_contract(path)
