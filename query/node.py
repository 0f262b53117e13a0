"""What all collections of a query node share: the cache on disk, the memory that may be used, the threads that load.

Takes: engines. Gives: one value to pass. Owns: nothing of a collection. Never: is global.
"""

from __future__ import annotations

from dataclasses import dataclass

from contracts.engines import Engines
from query.load_pool import LoadPool
from query.memory_budget import MemoryBudget
from query.segment_cache import SegmentCache

SEGMENTS_FOLDER = "segments"


@dataclass(frozen=True, slots=True)
class Node:
    """Cache, memory and threads of one query node."""

    cache: SegmentCache
    memory: MemoryBudget
    pool: LoadPool

    @classmethod
    def of(cls, engines: Engines) -> Node:
        """As the settings say."""
        settings = engines.settings
        cache = SegmentCache(settings.cache_dir / SEGMENTS_FOLDER, engines.store, settings.cache_bytes, settings.cache_seconds)
        return cls(cache, MemoryBudget(settings.memory_bytes), LoadPool(settings.load_threads))
