"""Two contracts never meet: every public function that takes embeddings, or what decides by them, is tried.

The functions are found by their annotations. A new one fails here until it stands in `REFUSES`, with a call that brings
two contracts together, or in `BRINGS_NOTHING_TOGETHER`, with the reason why it cannot.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from contracts import sample_contract
from tiny_ir import write_tiny_ir
from unit.gallery.conformance import CONTRACT, DIM, OTHER_CONTRACT, vectors
from unit.gallery.postgres import test_postgres

import edgeface
from edgeface.analyzer import FaceAnalyzer
from edgeface.errors import ContractError
from edgeface.gallery.encodings import DLIB_CONTRACT_ID, import_encodings
from edgeface.gallery.enrolment import EnrolRules, enrol
from edgeface.gallery.enrolment_images import enrol_folder
from edgeface.gallery.index import ApproximateIndex, ExactIndex, LiveIndex, follow
from edgeface.gallery.records import Changes, NewTemplate, TemplateBlock, unit_vector
from edgeface.gallery.store import cache
from edgeface.gallery.store.sqlite import SqliteStore
from edgeface.gallery.transfer import export_gallery, import_gallery
from edgeface.kiosk.decision import Decider
from edgeface.kiosk.settings import DecisionSettings
from edgeface.model.contract import ModelContract
from edgeface.pipeline.table import EmbeddingTable
from edgeface.recognize import Embedding, Embeddings, Metric, calibrate, known, threshold
from edgeface.recognize.cluster import chinese_whispers, dbscan
from edgeface.recognize.identify import Identifier, TrackIdentifier
from edgeface.recognize.index import PersonRule, pair_scores, rank_people
from edgeface.recognize.open_set import SearchThreshold, choose_search_threshold, threshold_from_pairs
from edgeface.train.classify import TrainedHead

CARRIERS = re.compile(
    r"\b(Embeddings?|EmbeddingTable|NewTemplate|Template|TemplateBlock|Changes|Face|FaceObservation|Index|MemoryIndex"
    r"|LiveIndex|GalleryStore|SqliteStore|PostgresStore|Threshold|SearchThreshold|EnrolRules"
    r"|Identifier)\b"
)
"""Types that hold embeddings, or belong to one contract."""

ELSEWHERE = ("edgeface.cli.", "edgeface.convert.", "edgeface.zoo.")
"""Commands call what is tried here; the others have words like these for other things, and know no embeddings."""


def public_functions() -> Iterator[tuple[str, Callable[..., Any]]]:
    for found in pkgutil.walk_packages(edgeface.__path__, "edgeface."):
        if found.name.startswith(ELSEWHERE) or found.name.endswith("__main__"):
            continue
        try:
            module = importlib.import_module(found.name)
        except ModuleNotFoundError as error:  # of an extra that is not installed
            if not error.name or error.name.partition(".")[0] == "edgeface":
                raise
            continue
        for name, thing in list(vars(module).items()):
            if name.startswith("_") or getattr(thing, "__module__", None) != found.name:
                continue
            if inspect.isfunction(thing):
                yield name, thing
            elif inspect.isclass(thing):
                for member, value in list(vars(thing).items()):
                    function = getattr(value, "__func__", value)
                    if inspect.isfunction(function) and (member == "__init__" or not member.startswith("_")):
                        yield f"{name}.{member}", function


def takes_what_belongs_to_a_contract(function: Callable[..., Any]) -> bool:
    return any(CARRIERS.search(str(each.annotation)) for each in inspect.signature(function).parameters.values())


def block(contract_id: str, rows: int = 3) -> TemplateBlock:
    ids = np.arange(1, rows + 1)
    return TemplateBlock(ids=ids, person_ids=ids, vectors=vectors(rows), contract_id=contract_id, generation=1)


def cut(contract_id: str) -> SearchThreshold:
    return SearchThreshold.by_hand(0.5, contract_id=contract_id, gallery_size=3)


def limits(contract_id: str) -> threshold.Threshold:
    return calibrate([0.9], [0.1] * 9, fars=[0.1], contract_id=contract_id, metric=Metric.cosine)[0]


def head(contract_id: str) -> TrainedHead:
    rows, bias = vectors(2).astype(np.float32), np.zeros(2, np.float32)
    return TrainedHead(labels=("Ada", "Bob"), weights=rows, bias=bias, contract_id=contract_id)


def table(contract_id: str) -> EmbeddingTable:
    return EmbeddingTable(
        vectors=vectors(1),
        paths=np.array(["a.png"]),
        modified=np.zeros(1, np.int64),
        faces=np.zeros(1, np.int32),
        boxes=np.zeros((1, 4), np.float32),
        scores=np.ones(1, np.float32),
        contract_id=contract_id,
        settings="",
    )


@pytest.fixture
def ours(tmp_path: Path) -> Iterator[SimpleNamespace]:
    """What belongs to `CONTRACT`, a gallery of it, and an embedding and more of `OTHER_CONTRACT`."""
    row, rows = vectors(1)[0], vectors(3)
    path = tmp_path / "ours.gallery"
    with SqliteStore.create(path, contract_id=CONTRACT, dim=DIM, key=None) as store:
        yield SimpleNamespace(
            folder=tmp_path,
            store=store,
            person=store.add_person("Ada", templates=[NewTemplate(embedding=Embedding(row, CONTRACT))]).id,
            one=Embedding(row, CONTRACT),
            alien=Embedding(row, OTHER_CONTRACT),
            aliens=Embeddings(rows, OTHER_CONTRACT),
            template=NewTemplate(embedding=Embedding(row, OTHER_CONTRACT)),
            changes=Changes(generation=9, removed=np.empty(0, np.int64), added=block(OTHER_CONTRACT)),
            index=ExactIndex(block(CONTRACT)),
            identifier=Identifier(ExactIndex(block(CONTRACT)), cut(CONTRACT)),
            rules=EnrolRules(duplicate_above=0.9, agree_above=0.1, contract_id=CONTRACT),
            header=store.database.header,
            cipher=store.database.cipher,
        )


def contract_of(seed: str) -> ModelContract:
    return sample_contract(source_sha256=seed * 64, embedding_dim=DIM, weights_sha256="0" * 64)


def import_theirs(ours: SimpleNamespace) -> None:
    with SqliteStore.create(ours.folder / "theirs", contract_id=OTHER_CONTRACT, dim=DIM, key=None) as theirs:
        theirs.add_person("Grace", templates=[ours.template])
        export_gallery(theirs, ours.folder / "export", key=None)
    import_gallery(ours.store, ours.folder / "export", key=None, rules=ours.rules)


def enrol_their_table(ours: SimpleNamespace) -> None:
    table(OTHER_CONTRACT).save(ours.folder / "theirs.npz")
    enrol_folder(ours.store, [ours.folder / "theirs.npz"], rules=ours.rules, name="Grace")


def enrol_theirs(ours: SimpleNamespace) -> None:
    """Enrol by rules of another contract, then a template of another contract."""
    own = NewTemplate(embedding=ours.one)
    foreign = EnrolRules(duplicate_above=0.9, agree_above=0.1, contract_id=OTHER_CONTRACT)
    with pytest.raises(ContractError):
        enrol(ours.store, "Grace", [own], rules=foreign)
    enrol(ours.store, "Grace", [ours.template], rules=ours.rules)


def graph() -> ApproximateIndex:
    pytest.importorskip("usearch", reason="the extra 'index' is not installed")
    return ApproximateIndex(block(CONTRACT))


def live_after_another_model(ours: SimpleNamespace) -> None:
    live = LiveIndex(ours.store, lambda _: ExactIndex(block(OTHER_CONTRACT)))
    len(live)


def analyze(ours: SimpleNamespace, ask: Callable[[FaceAnalyzer, np.ndarray], object]) -> None:
    with edgeface.load(write_tiny_ir(ours.folder), detector=None) as app:
        ask(app, np.full((32, 32, 3), 100, np.uint8))


REFUSES: dict[str, Callable[[SimpleNamespace], object]] = {
    "chinese_whispers": lambda o: chinese_whispers(o.aliens, limits(CONTRACT)),
    "dbscan": lambda o: dbscan(o.aliens, limits(CONTRACT)),
    "apply_changes": lambda o: cache.apply_changes(block(CONTRACT), o.changes),
    "write_templates": lambda o: cache.write_templates(o.store.path, o.header, o.cipher, block(OTHER_CONTRACT)),
    "EnrolRules.from_thresholds": lambda o: EnrolRules.from_thresholds([limits(CONTRACT), limits(OTHER_CONTRACT)]),
    "enrol": enrol_theirs,
    "enrol_folder": enrol_their_table,
    "unit_vector": lambda o: unit_vector(o.template, o.store.info),
    "Rows.check": lambda o: o.store.rows.check([o.template]),
    "GalleryStore.add_person": lambda o: o.store.add_person("Grace", templates=[o.template]),
    "GalleryStore.add_templates": lambda o: o.store.add_templates(o.person, [o.template]),
    "import_gallery": import_theirs,
    "import_encodings": lambda o: import_encodings(o.store, o.folder / "dlib.json", rules=o.rules),
    "Identifier.__init__": lambda o: Identifier(o.index, cut(OTHER_CONTRACT)),
    "Identifier.identify": lambda o: o.identifier.identify(o.alien),
    "Identifier.identify_frame": lambda o: o.identifier.identify_frame([o.one, o.alien]),
    "Identifier.identify_looks": lambda o: o.identifier.identify_looks([[o.one, o.alien]]),
    "TrackIdentifier.update": lambda o: TrackIdentifier(o.identifier).update({1: o.one, 2: o.alien}),
    "ApproximateIndex.recall": lambda o: graph().recall(o.aliens),
    "MemoryIndex.apply": lambda o: o.index.apply(o.changes),
    "MemoryIndex.compare": lambda o: o.index.compare(o.alien, [1]),
    "MemoryIndex.reset": lambda o: o.index.reset(block(OTHER_CONTRACT)),
    "MemoryIndex.search": lambda o: o.index.search(o.alien),
    "MemoryIndex.search_batch": lambda o: o.index.search_batch(o.aliens),
    "LiveIndex.__init__": live_after_another_model,
    "LiveIndex.compare": lambda o: LiveIndex(o.store).compare(o.alien, [1]),
    "LiveIndex.search": lambda o: LiveIndex(o.store).search(o.alien),
    "LiveIndex.search_batch": lambda o: LiveIndex(o.store).search_batch(o.aliens),
    "follow": lambda o: follow(ExactIndex(block(OTHER_CONTRACT)), o.store),
    "FaceAnalyzer.verify": lambda o: analyze(
        o, lambda app, crop: app.verify(crop, crop, threshold=limits(OTHER_CONTRACT))
    ),
    "FaceAnalyzer.identify": lambda o: analyze(
        o, lambda app, crop: app.identify(crop, o.store, threshold=cut(OTHER_CONTRACT))
    ),
    "choose_threshold": lambda o: known.choose_threshold(limits(OTHER_CONTRACT), contract_of("b")),
    "choose_search_threshold": lambda o: choose_search_threshold(
        limits(OTHER_CONTRACT), contract_of("b"), gallery_size=3
    ),
    "verify": lambda o: threshold.verify(o.one, o.alien, limits(CONTRACT)),
    "threshold_from_pairs": lambda o: threshold_from_pairs(
        [limits(CONTRACT), limits(OTHER_CONTRACT)], fpir=0.5, gallery_size=3
    ),
    "pair_scores": lambda o: pair_scores(o.index, [o.alien], np.array([1]), PersonRule()),
    "rank_people": lambda o: rank_people(o.index, o.alien),
    "EmbeddingTable.join": lambda o: EmbeddingTable.join([table(CONTRACT), table(OTHER_CONTRACT)]),
    "fit_threshold": lambda o: known.fit_threshold(limits(contract_of("a").contract_id), contract_of("b")),
    "save_thresholds": lambda o: threshold.save_thresholds(
        o.folder / "t.json", [limits(CONTRACT), limits(OTHER_CONTRACT)]
    ),
    "Decider.__init__": lambda o: Decider(DecisionSettings(), contract_of("b"), LiveIndex(o.store), bool),
    "TrainedHead.classify": lambda o: head(CONTRACT).classify(o.alien),
    "threshold_at": lambda o: threshold.threshold_at([limits(CONTRACT), limits(OTHER_CONTRACT)], 0.1),
}

_ONE = "holds or reads what is of one contract"
_PROTOCOL = "a protocol: its children are tried"
_UNBOUND = "knows no contract; who calls it, and is tried, has compared them"
_BOX = "looks at the face's box, not at its embedding"
_PEOPLE = "looks at people, not at their embeddings"
_SERVED = "one model's answer, or decided by `Identifier` or `verify`, which are tried"
_SIZE = "looks at the gallery's size; tried with `choose_search_threshold`"
BRINGS_NOTHING_TOGETHER: dict[str, str] = {
    "ThresholdCalibration.__init__": _ONE,
    "Operating.__init__": _ONE,
    "BulkResult.__init__": _ONE,
    "rows_of": "describes the faces of one photo, whose contract `make_table` is told",
    "why_none": "looks at the faces' reasons, not at their embeddings",
    "Disagreement.__init__": _ONE,
    "EnrolmentImage.__init__": _ONE,
    "enrolment_image": _ONE,
    "cut_out": "looks at the face's box, not at its embedding",
    "Changes.__init__": _ONE,
    "examine_cache": _ONE,
    "NewTemplate.__init__": _ONE,
    "Template.__init__": _ONE,
    "Rows.add_templates": _UNBOUND,
    "rebuild": "brings the gallery to the embedder's contract, which is what it is for",
    "export_gallery": _ONE,
    "Identification.__init__": _ONE,
    "ClassifierOutcome.__init__": _ONE,
    "TrackIdentifier.__init__": _ONE,
    "ApproximateIndex.__init__": _ONE,
    "MemoryIndex.__init__": _ONE,
    "ExactIndex.__init__": _ONE,
    "exact_index": _ONE,
    "make_index": _ONE,
    "MadeGallery.__init__": _ONE,
    "Index.compare": _PROTOCOL,
    "Index.search": _PROTOCOL,
    "Index.search_batch": _PROTOCOL,
    "Table.__init__": _ONE,
    "Table.put": _UNBOUND,
    "require_rows": _ONE,
    "require_supported": _ONE,
    "Verification.__init__": _ONE,
    "PostgresIndex.__init__": _ONE,
    "Face.__init__": _ONE,
    "Face.stack": _BOX,
    "FaceObservation.__init__": _ONE,
    "Decider.identify": "returns the refusal of `Identifier` as a reason; see unit/kiosk/test_visits.py",
    "DoorWatch.__init__": "makes a `Decider`, which is tried",
    "Visits.see": "asks its `Decider`",
    "FaceSteps.__init__": "keeps the functions of one pipeline",
    "FrameGroup.__init__": _ONE,
    "KioskTrack.see": "asks only whether a look is the one before",
    "FaceAnalyzer.search_threshold": _SIZE,
    "Pipeline.embed": _BOX,
    "Pipeline.start_embedding": _BOX,
    "GallerySnapshot.follow": "copies a gallery of another contract anew; see unit/gallery/postgres/test_snapshot.py",
    "SnapshotIndex.__init__": _ONE,
    "SnapshotKeeper.__init__": "keeps what opens the gallery",
    "SnapshotKeeper.start": "keeps what sends",
    "deliver": "enrols by `enrol`, which is tried",
    "enrol_images": "enrols by `enrol`, which is tried",
    "ServedGallery.__init__": "compares its model with the gallery at every search; see unit/serve/test_galleries.py",
    "cluster_folder": "tried with `choose_threshold` and `dbscan`, which decide",
    "from_left": _BOX,
    "FaceAnalyzer.identify_faces": _SERVED,
    "FoundFaces.__init__": _SERVED,
    "FoundFaces.describe": _SERVED,
    "PairComparer.__init__": _SERVED,
    "PairComparer.compare": _SERVED,
    "Pipeline.embed_all": _SERVED,
    "RankedFace.__init__": _SERVED,
    "analyzed_face": _SERVED,
    "compare_embeddings": _SERVED,
    "people_like": _SERVED,
    "rank_embeddings": _SERVED,
    "search_fields": _SERVED,
    "threshold_answer": _SERVED,
    "largest_face": _BOX,
    "EventPublisher.following": _PEOPLE,
    "erasure_batches": _PEOPLE,
    "find_expired": _PEOPLE,
    "forget_gone": _PEOPLE,
    "forget_people": _PEOPLE,
    "withhold": _PEOPLE,
}

ON_A_SERVER = {f"PostgresIndex.{name}" for name in ("search", "search_batch", "compare")}
"""Tried by `test_the_server_is_not_asked_for_what_does_not_belong`, where there is a server."""


def test_every_public_function_that_takes_embeddings_is_tried_here() -> None:
    found = {place for place, function in public_functions() if takes_what_belongs_to_a_contract(function)}
    listed = REFUSES.keys() | BRINGS_NOTHING_TOGETHER.keys() | ON_A_SERVER
    assert found - listed == set(), "new: let it refuse another contract, and say here how"
    assert listed - found == set(), "gone, or renamed"
    assert not REFUSES.keys() & BRINGS_NOTHING_TOGETHER.keys()
    assert callable(test_postgres.test_the_server_is_not_asked_for_what_does_not_belong)


@pytest.mark.parametrize("place", REFUSES)
def test_two_contracts_never_meet(place: str, ours: SimpleNamespace) -> None:
    before = ours.store.generation(), len(ours.index)
    with pytest.raises(ContractError, match=rf"{OTHER_CONTRACT}|{contract_of('b').contract_id}|{DLIB_CONTRACT_ID}"):
        REFUSES[place](ours)
    assert (ours.store.generation(), len(ours.index)) == before


def test_an_approximate_index_refuses_too(ours: SimpleNamespace) -> None:
    index = graph()
    for call in (
        lambda: index.search(ours.alien),
        lambda: index.search_batch(ours.aliens),
        lambda: index.compare(ours.alien, [1]),
        lambda: index.apply(ours.changes),
        lambda: index.reset(block(OTHER_CONTRACT)),
    ):
        with pytest.raises(ContractError, match="expected one contract_id"):
            call()
    assert len(index) == 3
