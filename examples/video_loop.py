"""Say who is in a video or before a camera: python examples/video_loop.py VIDEO_OR_CAMERA GALLERY.

Faces are tracked: a face is embedded a few times and not in every frame, and a person is recognised by the last
photos of a track together. The gallery may change while this runs.
"""

import sys

import edgeface
from edgeface.gallery import LiveIndex, open_gallery
from edgeface.pipeline.pipeline import Pipeline
from edgeface.pipeline.tracking import Tracker
from edgeface.recognize.identify import Identifier, TrackIdentifier
from edgeface.recognize.open_set import choose_search_threshold
from edgeface.runtime import Embedder
from edgeface.vision.quality import QualityGate
from edgeface.vision.source import open_source

if len(sys.argv) != 3:
    print("usage: python examples/video_loop.py VIDEO_OR_CAMERA GALLERY", file=sys.stderr)
    sys.exit(2)
video, gallery = sys.argv[1:]
with (
    Embedder.load(edgeface.find_model()) as embedder,
    edgeface.load_detector(min_size=40) as detector,
    open_gallery(gallery) as people,
    open_source(video) as frames,
):
    index = LiveIndex(people)
    threshold = choose_search_threshold(None, embedder.contract, gallery_size=max(1, len(index)))
    tracker = Tracker()
    pipeline = Pipeline(detector, embedder, tracker=tracker, gate=QualityGate())
    tracks = TrackIdentifier(Identifier(index, threshold), policy=pipeline.policy)
    said: dict[int, str] = {}
    for frame, faces in pipeline.run(frames):
        embeddings = {face.track_id: face.embedding for face in faces if face.embedding and face.track_id}
        for track, answer in tracks.update(embeddings, alive=tracker.alive).items():
            who = (answer.person or "?") if answer else answer.verdict.value
            if said.get(track) != who:
                said[track] = who
                print(f"{frame.timestamp:6.2f} s  track {track}: {who}", flush=True)
