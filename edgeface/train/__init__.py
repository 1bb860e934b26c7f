"""Train on a user's own photos: a classifier of people, and the embedder's last blocks. Needs the extra `train`.

`data` gathers one aligned face a photo with its embedding, caches both, and splits them by photo. `network` runs the
last blocks of any FP32 IR in torch, with the first ones in OpenVINO, and writes trained weights back into the IR, so
that no weights are converted twice: FaceNet's graph and facenet-pytorch's state dictionary both come as the IR that
'edgeface convert' makes of them. `losses` are functions of tensors. `loop` trains whatever module and loss it is given,
with a log, early stopping and checkpoints that a killed run resumes from. `head` puts them together for a classifier,
proves what the embedder gained on people who were not trained on, and publishes embedder, head (`outcome`) and
`report`. `metric` trains a `projection` of embeddings, or the last blocks, by the losses in `metric_losses`, on photos
and their `copies` of low resolution. `classify`
is what stays of the classifier, without torch; `archive` carries it with its IR.
"""

from typing import TYPE_CHECKING, Any

from edgeface.errors import ExtraNotInstalledError
from edgeface.lazy import exports

if TYPE_CHECKING:
    from edgeface.train.archive import TrainingArchive, export_training, import_training
    from edgeface.train.classifier import ClassifierOutcome, train_classifier
    from edgeface.train.classify import TrainedHead
    from edgeface.train.data import FaceSet, augment, find_one_person, gather_people, split_photos
    from edgeface.train.head import pairs_of_strangers, train_head
    from edgeface.train.loop import PRESETS, History, Optimisation, fit
    from edgeface.train.losses import focal_loss, weights_of_classes
    from edgeface.train.metric import METRIC_DEFAULT, train_metric
    from edgeface.train.metric_losses import octuplet_loss, triplet_costs, triplet_loss
    from edgeface.train.network import TrainableTail
    from edgeface.train.outcome import HeadOutcome, HeadSettings, MetricOutcome, MetricSettings
    from edgeface.train.projection import Projection

__all__ = [
    "METRIC_DEFAULT",
    "PRESETS",
    "ClassifierOutcome",
    "FaceSet",
    "HeadOutcome",
    "HeadSettings",
    "History",
    "MetricOutcome",
    "MetricSettings",
    "Optimisation",
    "Projection",
    "TrainableTail",
    "TrainedHead",
    "TrainingArchive",
    "augment",
    "export_training",
    "find_one_person",
    "fit",
    "focal_loss",
    "gather_people",
    "import_training",
    "octuplet_loss",
    "pairs_of_strangers",
    "split_photos",
    "train_classifier",
    "train_head",
    "train_metric",
    "triplet_costs",
    "triplet_loss",
    "weights_of_classes",
]

_find = exports(  # torch is imported by what trains alone
    __name__,
    {
        "archive": ("TrainingArchive", "export_training", "import_training"),
        "classifier": ("ClassifierOutcome", "train_classifier"),
        "classify": ("TrainedHead",),
        "data": ("FaceSet", "augment", "find_one_person", "gather_people", "split_photos"),
        "head": ("pairs_of_strangers", "train_head"),
        "loop": ("PRESETS", "History", "Optimisation", "fit"),
        "losses": ("focal_loss", "weights_of_classes"),
        "metric": ("METRIC_DEFAULT", "train_metric"),
        "metric_losses": ("octuplet_loss", "triplet_costs", "triplet_loss"),
        "network": ("TrainableTail",),
        "outcome": ("HeadOutcome", "HeadSettings", "MetricOutcome", "MetricSettings"),
        "projection": ("Projection",),
    },
)


def __getattr__(name: str) -> Any:
    try:
        return _find(name)
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        raise ExtraNotInstalledError("train", needed_for="training") from error
