"""Get published models onto this machine: the catalog, downloads, the model store, bundles, the default model."""

from typing import TYPE_CHECKING

from edgeface.lazy import exports

if TYPE_CHECKING:
    from edgeface.zoo.bundle import Manifest, export_bundle, import_bundle, read_manifest
    from edgeface.zoo.catalog import Catalog, load_catalog, load_model_yml
    from edgeface.zoo.default import default_model, default_name, presence, set_default_model
    from edgeface.zoo.downloads import Download, DownloadEvent, download
    from edgeface.zoo.policy import DownloadPolicy
    from edgeface.zoo.schema import ModelEntry, ModelFile
    from edgeface.zoo.store import Blob, FileCheck, ModelStore

__all__ = [
    "Blob",
    "Catalog",
    "Download",
    "DownloadEvent",
    "DownloadPolicy",
    "FileCheck",
    "Manifest",
    "ModelEntry",
    "ModelFile",
    "ModelStore",
    "default_model",
    "default_name",
    "download",
    "export_bundle",
    "import_bundle",
    "load_catalog",
    "load_model_yml",
    "presence",
    "read_manifest",
    "set_default_model",
]

__getattr__ = exports(  # a conversion reads the catalog and downloads nothing
    __name__,
    {
        "bundle": ("Manifest", "export_bundle", "import_bundle", "read_manifest"),
        "catalog": ("Catalog", "load_catalog", "load_model_yml"),
        "default": ("default_model", "default_name", "presence", "set_default_model"),
        "downloads": ("Download", "DownloadEvent", "download"),
        "policy": ("DownloadPolicy",),
        "schema": ("ModelEntry", "ModelFile"),
        "store": ("Blob", "FileCheck", "ModelStore"),
    },
)
