"""The version of the package, for the files and requests that carry it."""

__version__ = "0.1.0"
