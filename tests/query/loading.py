"""A partition's loader for tests that need no collection view."""

from __future__ import annotations

from contracts.collection import CollectionRecord, IndexRecord
from contracts.engines import Engines
from query.field_indexes import FieldIndexes
from query.hot_load import PartitionLoader
from query.load_pool import LoadPool
from query.memory_budget import MemoryBudget
from query.node import Node
from query.segment_cache import SegmentCache
from query.segments import SegmentLoader
from tests.query.writer import cache_folder


def node_of(engines: Engines) -> Node:
    """Cache, memory and threads for one test; the cache's folder is that of all tests of the process."""
    return Node(SegmentCache(cache_folder(), engines.store, 0), MemoryBudget(0), LoadPool(2))


def partition_loader(engines: Engines, record: CollectionRecord, index: IndexRecord, number: int = 0) -> PartitionLoader:
    """A loader of one partition, with a node and logical indexes of its own."""
    node = node_of(engines)
    segments = SegmentLoader(node, index, record.attributes, FieldIndexes(engines.store, record, index))
    return PartitionLoader(engines.store, record, index, number, segments, node.pool)
