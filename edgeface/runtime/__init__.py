"""Run models: devices, image formats, the asynchronous engine, and the embedder."""

from edgeface.runtime.adapter import ImageFormat
from edgeface.runtime.cache import ModelCache
from edgeface.runtime.counters import Counters, LatencyHistogram
from edgeface.runtime.embedder import Embedder
from edgeface.runtime.encryption import encrypt_ir
from edgeface.runtime.engine import Engine
from edgeface.runtime.plan import DevicePlan, ExecutionReport, default_plan, share_threads
from edgeface.runtime.pool import Pool, Retirement

__all__ = [
    "Counters",
    "DevicePlan",
    "Embedder",
    "Engine",
    "ExecutionReport",
    "ImageFormat",
    "LatencyHistogram",
    "ModelCache",
    "Pool",
    "Retirement",
    "default_plan",
    "encrypt_ir",
    "share_threads",
]
