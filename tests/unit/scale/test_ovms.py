"""A repository as OpenVINO Model Server's documentation wants it, from IRs of edgeface.

What the server itself does with it cannot be tested here: it is no Python package. The rules are those of its
docs/models_repository.md, docs/parameters.md and docs/binary_input_kfs.md.
"""

from __future__ import annotations

import json
import shutil
import threading
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
import pytest
from contracts import sample_contract
from tiny_ir import tiny_crop, write_tiny_ir
from tiny_people import SIZE, red_network

from edgeface.cli import main
from edgeface.convert.ir import random_images, save_ir
from edgeface.errors import ContractError, InputError, ModelFormatError
from edgeface.model.contract import ModelContract
from edgeface.model.ir_file import check_weights, read_contract
from edgeface.model.opset import ops
from edgeface.runtime import Embedder
from edgeface.runtime.adapter import must_unpack
from edgeface.scale.ovms import export_ovms

CROP = tiny_crop((250, 20, 20))


@pytest.fixture
def ir(tmp_path: Path) -> Path:
    (tmp_path / "irs").mkdir()
    return write_tiny_ir(tmp_path / "irs")


def config_of(repository: Path) -> dict[str, Any]:
    (model,) = json.loads((repository / "config.json").read_text())["model_config_list"]
    return dict(model["config"])


def test_a_model_is_a_folder_of_versions_with_one_public_name_a_port_and_its_contract_where_clients_see_it(
    ir: Path, tmp_path: Path
) -> None:
    repository = tmp_path / "models"
    (done,) = export_ovms([ir], repository)
    assert (done.name, done.version, done.written, done.images) == ("tiny", 1, True, True)
    found = sorted(str(path.relative_to(repository)) for path in repository.rglob("*") if path.is_file())
    assert found == [".edgeface.lock", "config.json", "tiny/1/tiny.bin", "tiny/1/tiny.xml"]
    assert config_of(repository) == {
        "name": "tiny",
        "base_path": "tiny",
        "layout": "NHWC:NCHW",
        "plugin_config": {"PERFORMANCE_HINT": "THROUGHPUT", "INFERENCE_PRECISION_HINT": "f32"},
    }
    model, contract = read_contract(done.ir)
    check_weights(done.ir, contract)
    assert (model.input(0).get_names(), model.output(0).get_names()) == ({"image"}, {"embeddings"})
    shown = {key: model.get_rt_info(["model_info", key]).astype(str) for key in model.rt_info["model_info"]}
    assert shown["contract_id"] == contract.contract_id == read_contract(ir)[1].contract_id
    known = {key: each for key, each in shown.items() if key in contract.to_dict()}
    assert ModelContract.from_text(known | {"weights_sha256": ""}).contract_id == contract.contract_id
    with Embedder.load(ir) as before, Embedder.load(done.ir) as after:
        assert np.array_equal(before.embed(CROP), after.embed(CROP))


def test_names_beside_the_contracts_are_taken_from_the_ports(tmp_path: Path) -> None:
    ir = write_tiny_ir(tmp_path)
    model = ov.Core().read_model(ir)
    model.output(0).add_names({"InceptionResnetV1/Normalize"})
    contract = read_contract(ir)[1]
    (tmp_path / "two").mkdir()
    two, _ = save_ir(model, tmp_path / "two", contract)
    assert len(ov.Core().read_model(two).output(0).get_names()) == 2
    (done,) = export_ovms([two], tmp_path / "models")
    assert ov.Core().read_model(done.ir).output(0).get_any_name() == "embeddings"


def with_other_weights(ir: Path, folder: Path) -> Path:
    """The same contract, and a .bin of its own: what a conversion by a newer OpenVINO may give."""
    model, contract = read_contract(ir)
    (parameter,) = model.get_parameters()
    (target,) = parameter.output(0).get_target_inputs()
    target.replace_source_output(ops.multiply(parameter, ops.constant(np.ones((1, 3, 1, 1), np.float32))).output(0))
    model.validate_nodes_and_infer_types()
    folder.mkdir()
    return save_ir(model, folder, contract)[0]


def test_a_new_ir_is_the_next_version_and_the_same_one_is_not_written_again(ir: Path, tmp_path: Path) -> None:
    repository = tmp_path / "models"
    export_ovms([ir], repository)
    first = (repository / "tiny/1/tiny.xml").stat()
    assert [each.written for each in export_ovms([ir], repository)] == [False]
    (second,) = export_ovms([with_other_weights(ir, tmp_path / "other")], repository)
    assert (second.version, second.written) == (2, True)
    after = (repository / "tiny/1/tiny.xml").stat()
    assert (first.st_ino, first.st_mtime_ns) == (after.st_ino, after.st_mtime_ns)
    shutil.rmtree(repository / "tiny/1")  # of versions that were removed, no number comes back
    assert export_ovms([ir], repository)[0].version == 3
    assert sorted(path.name for path in (repository / "tiny").iterdir()) == ["2", "3"]


def test_versions_are_counted_in_64_bits_as_the_server_does(ir: Path, tmp_path: Path) -> None:
    repository, other = tmp_path / "models", with_other_weights(ir, tmp_path / "other")
    export_ovms([ir], repository)
    (repository / "tiny/1").rename(repository / "tiny/20261129170000")
    (repository / "tiny/99999999999999999999").mkdir()  # the server does not count it
    (repository / "tiny/007").mkdir()  # nor finds what it counts here
    assert export_ovms([other], repository)[0].version == 20261129170001
    shutil.move(repository / "tiny/20261129170001", repository / f"tiny/{2**63 - 1}")
    with pytest.raises(InputError, match="found the last, 9223372036854775807"):
        export_ovms([ir], repository)


def test_a_configuration_that_is_a_link_stays_one(ir: Path, tmp_path: Path) -> None:
    repository, kept = tmp_path / "models", tmp_path / "kept.json"
    repository.mkdir()
    (repository / "config.json").symlink_to(kept)
    export_ovms([ir], repository)
    assert (repository / "config.json").is_symlink()
    assert json.loads(kept.read_text())["model_config_list"][0]["config"]["base_path"] == "tiny"


def test_a_version_of_another_contract_is_refused_and_goes_by_a_name_of_its_own(ir: Path, tmp_path: Path) -> None:
    repository = tmp_path / "models"
    export_ovms([ir], repository)
    (tmp_path / "b").mkdir()
    other = write_tiny_ir(tmp_path / "b", source="b")
    before = (repository / "config.json").read_text()
    with pytest.raises(ContractError, match=r"cannot be compared; export it by another name, --name"):
        export_ovms([other], repository)
    assert (repository / "config.json").read_text() == before
    assert [path.name for path in (repository / "tiny").iterdir()] == ["1"]
    (done,) = export_ovms([other], repository, name="tiny-b")
    assert done.ir == repository / "tiny-b/1/tiny-b.xml"
    names = [
        each["config"]["name"] for each in json.loads((repository / "config.json").read_text())["model_config_list"]
    ]
    assert names == ["tiny", "tiny-b"]


@pytest.mark.parametrize("name", ["../x", "a/b", "", "m\n", ".x", "config.json"])
def test_a_name_that_is_no_folder_of_a_model_is_refused_before_anything_is_written(
    name: str, ir: Path, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match="--name"):
        export_ovms([ir], tmp_path / "models", name=name)
    assert not (tmp_path / "models").exists()


@pytest.mark.parametrize(
    ("changes", "layout"),
    [
        ({"color": "BGR", "layout": "NCHW"}, "NHWC:NCHW"),
        ({"color": "BGR", "layout": "NHWC"}, None),
        ({"color": "RGB", "layout": "NCHW"}, None),
        ({"color": "RGB", "layout": "NHWC"}, "NCHW:NHWC"),
    ],
)
def test_the_server_decodes_image_files_for_inputs_of_bgr_only(
    tmp_path: Path, changes: dict[str, Any], layout: str | None
) -> None:
    """It makes them NHWC in BGR, and refuses them for an input that clients see as NCHW."""
    path = tmp_path / "red.xml"
    network = red_network(layout=changes["layout"])
    contract = sample_contract(input_size=(SIZE, SIZE), embedding_dim=SIZE * SIZE, normalized=False, **changes)
    contract.write_to(network)
    ov.save_model(network, path, compress_to_fp16=False)
    (done,) = export_ovms([path], tmp_path / "models")
    assert done.images == (changes["color"] == "BGR")
    assert config_of(tmp_path / "models").get("layout") == layout


def test_what_the_configuration_says_of_others_and_beyond_the_layout_stays(ir: Path, tmp_path: Path) -> None:
    repository = tmp_path / "models"
    repository.mkdir()
    others = {
        "model_config_list": [
            {"config": {"name": "resnet", "base_path": "/opt/resnet"}},
            {"config": {"name": "tiny", "base_path": "old", "nireq": 3, "layout": "NCHW"}},
        ],
        "monitoring": {"metrics": {"enable": True}},
    }
    (repository / "config.json").write_text(json.dumps(others))
    export_ovms([ir], repository)
    after = json.loads((repository / "config.json").read_text())
    assert after["monitoring"] == others["monitoring"]
    assert after["model_config_list"][0] == others["model_config_list"][0]
    assert after["model_config_list"][1] == {
        "config": {"name": "tiny", "base_path": "tiny", "nireq": 3, "layout": "NHWC:NCHW"}
    }


@pytest.mark.parametrize("text", ["[]", "{", '{"model_config_list": 3}', '{"model_config_list": [{"config": 1}]}'])
def test_a_configuration_of_something_else_is_left_alone(ir: Path, tmp_path: Path, text: str) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(InputError, match=r"config\.json"):
        export_ovms([ir], tmp_path)
    assert (tmp_path / "config.json").read_text() == text
    assert not (tmp_path / "tiny").exists()


def test_a_damaged_ir_leaves_nothing(ir: Path, tmp_path: Path) -> None:
    content = bytearray(ir.with_suffix(".bin").read_bytes())
    content[-1] ^= 1
    ir.with_suffix(".bin").write_bytes(content)
    with pytest.raises(ModelFormatError, match="damaged"):
        export_ovms([ir], tmp_path / "models")
    assert not (tmp_path / "models").exists()


def test_compressed_weights_are_unpacked_for_a_server_of_several_streams(tmp_path: Path) -> None:
    packed = Path(__file__).parents[2] / "fixtures" / "0_1" / "models" / "weights" / "net.xml"
    model, contract = read_contract(packed)
    assert must_unpack(model, "CPU")
    (done,) = export_ovms([packed], tmp_path / "models")
    served, same = read_contract(done.ir)
    assert not must_unpack(served, "CPU")
    assert same.contract_id == contract.contract_id
    images = random_images(contract, 2)
    found = [ov.compile_model(each, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})(images)[0] for each in (model, served)]
    assert np.abs(found[0] - found[1]).max() <= 1e-5


def test_an_ir_that_cannot_be_exported_leaves_those_before_it_whole(ir: Path, tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    other = write_tiny_ir(tmp_path / "b", source="b")  # of the same name
    with pytest.raises(ContractError):
        export_ovms([ir, other], tmp_path / "models")
    assert config_of(tmp_path / "models")["name"] == "tiny"
    with pytest.raises(ModelFormatError):
        export_ovms([ir, tmp_path / "absent.xml"], tmp_path / "others")
    assert not (tmp_path / "others").exists()


def test_exports_side_by_side_get_versions_of_their_own(ir: Path, tmp_path: Path) -> None:
    irs = [ir, with_other_weights(ir, tmp_path / "other")]
    threads = [threading.Thread(target=export_ovms, args=([each], tmp_path / "models")) for each in irs]
    for each in threads:
        each.start()
    for each in threads:
        each.join(30)
    assert sorted(path.name for path in (tmp_path / "models/tiny").iterdir()) == ["1", "2"]
    assert config_of(tmp_path / "models")["name"] == "tiny"


def test_the_command_exports_and_a_folder_of_a_training_still_needs_no_word_before_it(
    ir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    repository = str(tmp_path / "models")
    assert main(["export", "ovms", str(ir), "-o", repository, "--json"]) == 0
    (model,) = json.loads(capsys.readouterr().out)["models"]
    assert (model["name"], model["version"], model["images"]) == ("tiny", 1, True)
    assert main(["export", "ovms", str(ir), "-o", repository]) == 0
    assert "tiny version 1 is there already: " in capsys.readouterr().out
    assert main(["export", "ovms", str(ir), "-o", repository, "--name", "../up"]) == 2
    assert "--name" in capsys.readouterr().err
    assert main(["export", "ovms", str(ir), str(ir), "-o", repository, "--name", "both"]) == 2
    capsys.readouterr()
    for words in (["export"], ["export", "training"]):
        assert main([*words, str(tmp_path / "trained"), "-o", str(tmp_path / "kiosk.tar")]) == 2
        assert "trained" in capsys.readouterr().err
        assert main([*words, "-o", str(tmp_path / "kiosk.tar"), str(tmp_path / "trained")]) == 2
        assert "trained" in capsys.readouterr().err
