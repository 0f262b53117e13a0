"""The logical indexes of a collection on this node: one per vector field and generation that something here is coded with.

Takes: generation objects. Gives: logical indexes. Owns: that there is one of each. Never: opens a quantizer of another space or metric.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping

from backends.catalog.generations import load_generation
from contracts.collection import CollectionRecord, IndexRecord
from contracts.errors import CorruptError, SnapshotError
from contracts.object_keys import CollectionKeys
from contracts.store import ObjectStore
from vectors.logical_index import LogicalIndex
from vectors.quantizer import Quantizer
from vectors.tiers import Tiers


class FieldIndexes:
    """Logical indexes by field and generation; thread-safe.

    Parameters
    ----------
    store : ObjectStore
        Holds the generations.
    record, index
        The collection and the index that is served.
    """

    def __init__(self, store: ObjectStore, record: CollectionRecord, index: IndexRecord) -> None:
        self._store, self._index = store, index
        self._keys = CollectionKeys(record.name, record.incarnation).index(index.name)
        self._lock = threading.Lock()
        self._made: dict[tuple[str, int], LogicalIndex] = {}

    def get(self, field_name: str, generation: int) -> LogicalIndex:
        """The logical index of a field in a generation, made at the first call.

        Raises
        ------
        SnapshotError
            The generation is gone.
        CorruptError
            It is damaged, or was trained for another space.
        """
        with self._lock:  # also while a generation is read: two callers must not make two
            found = self._made.get((field_name, generation))
            if found is None:
                found = self._made[field_name, generation] = LogicalIndex(self._quantizer(field_name, generation))
            return found

    def prepare(self, field_name: str, generation: int) -> None:
        """The same, for later, unless somebody is at it: then there is nothing to wait for. Raises as `get`."""
        if not self._lock.locked():
            self.get(field_name, generation)

    def _quantizer(self, field_name: str, generation: int) -> Quantizer:
        field, key = self._index.field(field_name), self._keys.generation(generation, field_name)
        if field is None:
            raise CorruptError(f"{key}: the index has no field {field_name!r}")
        read = load_generation(self._store, self._keys, field, generation)
        if read is None:
            raise SnapshotError(f"generation {key} is gone", hint="reload the manifest")
        return Quantizer.open(read, key)

    def __len__(self) -> int:
        """How many there are."""
        return len(self._made)

    def all(self) -> Mapping[tuple[str, int], LogicalIndex]:
        """Every index so far, by field and generation."""
        with self._lock:
            return dict(self._made)

    def tiers(self) -> dict[LogicalIndex, Tiers]:
        """What each index searches now."""
        return {index: index.tiers for index in self._made.copy().values()}
