"""What happens to a gallery while the service runs: its file goes, comes back, is another one, or has another key."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from fastapi.testclient import TestClient
from tiny_ir import BLUE, GREEN, draw, write_tiny_ir
from unit.serve.conftest import OPEN, MakeService, client_of, enrol, jpeg

import edgeface
from edgeface.errors import ContractError, GalleryError, GalleryServerError
from edgeface.gallery.keys import read_key
from edgeface.gallery.opening import open_gallery
from edgeface.gallery.records import NewTemplate, detector_note
from edgeface.gallery.store.restore import restore_gallery
from edgeface.serve.keys import Role
from edgeface.serve.problems import problem_of
from edgeface.serve.service import Service
from edgeface.serve.settings import Model

pytestmark = pytest.mark.timeout(60)
IDENTIFY = "/api/edgeface/v1/identify"


def identified(client: TestClient) -> str | None:
    """Who is found in a photo of blue, or the code of the problem."""
    answer = client.post(IDENTIFY, files={"photo": jpeg(BLUE)})
    body = answer.json()
    if answer.status_code == 503:
        assert answer.headers["retry-after"]
    return str(body["faces"][0]["person"] if answer.status_code == 200 else body["code"])


def move(gallery: Path, folder: Path) -> None:
    """Move a gallery with all that SQLite keeps beside it."""
    folder.mkdir(exist_ok=True)
    for file in gallery.parent.glob(gallery.name + "*"):
        shutil.move(file, folder / file.name)


def test_a_gallery_that_is_removed_is_never_answered_from_and_is_there_again_when_it_is_back(
    client: TestClient, service: Service, tmp_path: Path
) -> None:
    enrol(service, "Ada", BLUE)
    place = Path(service.gallery(None).store.database.where)
    assert identified(client) == "Ada"
    move(place, tmp_path / "away")
    assert [identified(client) for _ in range(2)] == ["gallery-replaced"] * 2
    assert not client.get("/health/ready").json()["ready"]
    assert not place.exists(), "no empty gallery takes its place"
    move(tmp_path / "away" / place.name, place.parent)
    assert identified(client) == "Ada"
    assert client.get("/health/ready").json()["ready"]


def test_a_restored_copy_is_searched_from_the_next_request_on(
    client: TestClient, service: Service, tmp_path: Path
) -> None:
    store = service.gallery(None).store
    place, key = Path(store.database.where), f"file:{service.settings.state / 'keys' / 'default.key'}"
    enrol(service, "Ada", BLUE)
    copy = tmp_path / "copy.gallery"
    store.database.outside(f"VACUUM INTO '{copy}'")
    enrol(service, "Grace", GREEN)
    store.forget(store.find("Ada").id)  # type: ignore[union-attr]
    assert identified(client) == "None"
    restore_gallery(place, copy, key=read_key(key, beside=place))
    assert identified(client) == "Ada"
    assert service.gallery(None).store.find("Grace") is None


def test_a_gallery_with_another_key_is_opened_when_the_service_has_it(client: TestClient, service: Service) -> None:
    enrol(service, "Ada", BLUE)
    key = service.settings.state / "keys" / "default.key"
    with open_gallery(service.gallery(None).store.database.where, key=f"file:{key}") as other:
        other.rekey(b"\1" * 32)
    assert [identified(client) for _ in range(2)] == ["gallery-replaced", "gallery-key"]
    key.write_text((b"\1" * 32).hex())
    assert identified(client) == "Ada"


def test_after_a_model_of_another_contract_the_gallery_says_what_to_do(
    client: TestClient, service: Service, tmp_path: Path
) -> None:
    enrol(service, "Ada", BLUE)
    other = write_tiny_ir(tmp_path / "other", name="other", source="b")
    service.models.load("default", Model(model=str(other)))
    answer = client.post(IDENTIFY, files={"photo": jpeg(BLUE)})
    assert (answer.status_code, answer.json()["code"]) == (409, "other-contract")
    assert "gallery rebuild" in answer.json()["detail"]
    service.models.load("default", service.settings.models["default"])
    assert identified(client) == "Ada"


def test_a_client_is_not_told_where_things_are(make_service: MakeService, tmp_path: Path) -> None:
    for error in (
        GalleryError(f"{tmp_path}/people.gallery: expected a gallery"),
        GalleryError("PostgreSQL db.example:5432/faces edgeface_door: no gallery of this name exists"),
        GalleryServerError("PostgreSQL db.example:5432/faces edgeface_door: the server went away"),
    ):
        told = str(problem_of(error).to_dict())
        assert "db.example" not in told
        assert str(tmp_path) not in told
    assert "people.gallery: expected a gallery" in str(
        problem_of(GalleryError(f"{tmp_path}/people.gallery: expected a gallery"))
    )
    service = make_service(galleries={"default": OPEN, "north": OPEN})
    service.galleries["north"].close()
    with client_of(service) as client:
        answer = client.post(IDENTIFY, params={"gallery": "north"}, files={"photo": jpeg(BLUE)})
        assert (answer.status_code, answer.json()["code"]) == (503, "gallery-replaced")
        assert identified(client) == "None"


def test_a_model_whose_embeddings_are_of_any_length_is_served(tmp_path: Path, make_service: MakeService) -> None:
    """As dlib's, the default model of a first start."""
    ir = write_tiny_ir(tmp_path / "long", name="long", unit=False)
    service = make_service(models={"default": {"model": str(ir)}}, galleries={"default": OPEN | {"threshold": 0.9}})
    enrol(service, "Ada", BLUE)
    with client_of(service) as client:
        answer = client.post("/api/edgeface/v1/identify", files={"photo": jpeg(BLUE, GREEN)}).json()
    assert [face["person"] for face in answer["faces"]] == ["Ada", None]


def test_a_contract_that_says_unit_length_is_held_to_it(tmp_path: Path, make_service: MakeService) -> None:
    ir = write_tiny_ir(tmp_path / "long", unit=False, normalized=True)
    with pytest.raises(ContractError, match="of the length that the contract says, found lengths"):
        make_service(models={"default": {"model": str(ir)}})


def test_auto_is_the_detector_that_the_galleries_were_made_with_and_another_one_is_told(
    make_service: MakeService, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(edgeface, "_stored", lambda detector: detector == "yunet")

    def asked(service: Service) -> object:
        with service.models.use("default") as model:
            return model.options.detector

    with make_service() as service:
        assert asked(service) == "yunet"
        with service.models.use("default") as model:
            template = NewTemplate(embedding=model.analyzer.embed(draw(BLUE)), detector="mtcnn")
        service.gallery(None).store.add_person("Ada", templates=[template])
    with make_service() as service:
        assert asked(service) == "mtcnn"
        client = client_of(service, Role.recognise)
        told = client.get("/api/edgeface/v1/galleries/default").json()
        assert told["detectors"] == ["mtcnn"]
        assert "made with mtcnn, and squares finds the faces now" in told["detector_note"]
        assert told["detector_note"] in caplog.text
        assert client.get("/api/edgeface/v1/models").json()["models"][0]["detector"] == "squares"  # the loaded one
        service.load_model("default")
        assert asked(service) == "mtcnn"


def test_a_note_names_every_other_detector_that_made_templates() -> None:
    assert detector_note([], "yunet") is None
    assert detector_note(["yunet"], "yunet") is None
    note = detector_note(["mtcnn"], "yunet")
    assert note is not None
    assert note.startswith("the gallery's templates were made with mtcnn, and yunet finds the faces now")
    again = "erase people with 'edgeface gallery forget' and enrol their photos again"
    assert note.endswith(f"; use the detector mtcnn, or {again}")
    note = detector_note(["mtcnn", "retail-0004", "yunet"], "yunet")
    assert note is not None
    assert note.startswith("some of the gallery's templates were made with mtcnn and retail-0004, and yunet finds")
    assert note.endswith(f"; {again}; whose templates these are is not stored")
