"""The quantizers of one index in this process: each generation is read once, and new segments are coded in the one that counts.

Takes: generation numbers. Gives: open quantizers. Owns: which generation new segments get. Never: trains one, or drops one that stored codes need.
"""

from __future__ import annotations

import threading

from backends.catalog.generations import load_generation
from contracts.collection import CollectionRecord, FieldRecord, IndexRecord
from contracts.errors import CorruptError
from contracts.generation import Generation
from contracts.manifest import Manifest
from contracts.object_keys import CollectionKeys
from contracts.store import ObjectStore
from vectors.quantizer import Quantizer


class IndexCodecs:
    """Open quantizers of one index, by field and generation (thread-safe).

    Parameters
    ----------
    store : ObjectStore
        Where generations lie.
    collection, index
        Whose they are.
    """

    def __init__(self, store: ObjectStore, collection: CollectionRecord, index: IndexRecord) -> None:
        self.store, self.index = store, index
        self.keys = CollectionKeys(collection.name, collection.incarnation).index(index.name)
        self._lock = threading.Lock()
        self._open: dict[tuple[str, int], Quantizer] = {}
        self._adopted: dict[str, int] = {}

    def quantizer(self, field: FieldRecord, number: int) -> Quantizer:
        """The quantizer of a generation that stored bytes name.

        Raises
        ------
        CorruptError
            It is not there, or damaged.
        """
        with self._lock:
            found = self._open.get((field.name, number))
        if found is not None:
            return found
        generation = load_generation(self.store, self.keys, field, number)
        if generation is None:
            key = self.keys.generation(number, field.name)
            raise CorruptError(f"generation {key} is named by a manifest or segment and is not there", hint="restore the object from a backup")
        return self.add(generation)

    def add(self, generation: Generation) -> Quantizer:
        """Open a generation that was just read or stored; its number is known from now on."""
        opened = Quantizer.open(generation, self.keys.generation(generation.number, generation.field_name))
        with self._lock:
            return self._open.setdefault((generation.field_name, generation.number), opened)

    def adopt(self, quantizer: Quantizer) -> None:
        """Code new segments with it, in all partitions whose manifest names no generation of the field."""
        with self._lock:
            self._adopted[quantizer.field_name] = quantizer.number

    def load(self, manifest: Manifest) -> None:
        """Open what a manifest names, so that no seal has to wait for it; raises as `quantizer`."""
        for field in self.index.fields:
            if field.name in manifest.generation:
                self.adopt(self.quantizer(field, manifest.generation[field.name]))

    def chosen(self, field: FieldRecord, manifest: Manifest) -> Quantizer | None:
        """What new segments of this partition are coded with; None where they are flat."""
        number = manifest.generation.get(field.name, self._adopted.get(field.name))
        return None if number is None else self.quantizer(field, number)
