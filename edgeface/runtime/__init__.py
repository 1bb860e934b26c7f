"""IR in, numbers out: devices, the adapter, the asynchronous engine, and the embedder on top."""

from edgeface.runtime.adapter import ImageFormat
from edgeface.runtime.cache import ModelCache
from edgeface.runtime.counters import Counters, LatencyHistogram
from edgeface.runtime.embedder import Embedder, share_threads
from edgeface.runtime.encryption import encrypt_ir
from edgeface.runtime.engine import Engine
from edgeface.runtime.plan import DevicePlan, ExecutionReport, default_plan
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
