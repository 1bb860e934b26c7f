"""People and their embeddings, kept for years: encrypted, bound to one contract, and erased for good on request."""

from typing import TYPE_CHECKING

from edgeface.lazy import exports

if TYPE_CHECKING:
    from edgeface.gallery.encodings import EncodingImport, StoredEncodings, import_encodings, read_encodings
    from edgeface.gallery.enrolment import Enrolment, EnrolRules, enrol
    from edgeface.gallery.enrolment_images import EnrolmentPlan, FolderEnrolment, enrol_folder, plan_enrolment
    from edgeface.gallery.index.live import LiveIndex
    from edgeface.gallery.keys import find_key, read_key
    from edgeface.gallery.opening import create_gallery, open_gallery
    from edgeface.gallery.records import (
        Changes,
        Erasure,
        GalleryInfo,
        KeptImage,
        NewTemplate,
        Person,
        Template,
        TemplateBlock,
    )
    from edgeface.gallery.store.base import GalleryStore
    from edgeface.gallery.store.restore import Restoring, restore_gallery
    from edgeface.gallery.transfer import export_gallery, import_gallery

__all__ = [
    "Changes",
    "EncodingImport",
    "EnrolRules",
    "Enrolment",
    "EnrolmentPlan",
    "Erasure",
    "FolderEnrolment",
    "GalleryInfo",
    "GalleryStore",
    "KeptImage",
    "LiveIndex",
    "NewTemplate",
    "Person",
    "Restoring",
    "StoredEncodings",
    "Template",
    "TemplateBlock",
    "create_gallery",
    "enrol",
    "enrol_folder",
    "export_gallery",
    "find_key",
    "import_encodings",
    "import_gallery",
    "open_gallery",
    "plan_enrolment",
    "read_encodings",
    "read_key",
    "restore_gallery",
]

__getattr__ = exports(  # a gallery's records need neither a model nor OpenCV
    __name__,
    {
        "encodings": ("EncodingImport", "StoredEncodings", "import_encodings", "read_encodings"),
        "enrolment": ("EnrolRules", "Enrolment", "enrol"),
        "enrolment_images": ("EnrolmentPlan", "FolderEnrolment", "enrol_folder", "plan_enrolment"),
        "index.live": ("LiveIndex",),
        "keys": ("find_key", "read_key"),
        "opening": ("create_gallery", "open_gallery"),
        "records": (
            "Changes",
            "Erasure",
            "GalleryInfo",
            "KeptImage",
            "NewTemplate",
            "Person",
            "Template",
            "TemplateBlock",
        ),
        "store.base": ("GalleryStore",),
        "store.restore": ("Restoring", "restore_gallery"),
        "transfer": ("export_gallery", "import_gallery"),
    },
)
