"""Where models come from: the catalog, the cache, and the way from one to the other."""

from typing import TYPE_CHECKING

from edgeface.lazy import exports

if TYPE_CHECKING:
    from edgeface.zoo.bundle import Manifest, export_bundle, import_bundle, read_manifest
    from edgeface.zoo.catalog import Catalog, load_catalog, load_model_yml
    from edgeface.zoo.default import default_model, set_default_model
    from edgeface.zoo.downloads import Download, download
    from edgeface.zoo.fetch import Event, Policy, Progress
    from edgeface.zoo.schema import ModelEntry, ModelFile
    from edgeface.zoo.store import Blob, FileCheck, ModelStore

__all__ = [
    "Blob",
    "Catalog",
    "Download",
    "Event",
    "FileCheck",
    "Manifest",
    "ModelEntry",
    "ModelFile",
    "ModelStore",
    "Policy",
    "Progress",
    "default_model",
    "download",
    "export_bundle",
    "import_bundle",
    "load_catalog",
    "load_model_yml",
    "read_manifest",
    "set_default_model",
]

__getattr__ = exports(  # a conversion reads the catalog and needs no HTTP client
    __name__,
    {
        "bundle": ("Manifest", "export_bundle", "import_bundle", "read_manifest"),
        "catalog": ("Catalog", "load_catalog", "load_model_yml"),
        "default": ("default_model", "set_default_model"),
        "downloads": ("Download", "download"),
        "fetch": ("Event", "Policy", "Progress"),
        "schema": ("ModelEntry", "ModelFile"),
        "store": ("Blob", "FileCheck", "ModelStore"),
    },
)
