"""Training of an index from the committed rows of one partition.

    look for a generation -> else sample the segments -> train -> put-if-absent -> the generation that counts

Takes: a manifest. Gives: generations, this partition's own or those of a faster one. Owns: the sample.
Never: stalls a seal: it runs in a background thread, on half of the cores, with one part and the sample in memory.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from backends.catalog.generations import FIRST_GENERATION, load_generation, newest_generations, publish_generation
from backends.catalog.objects import download
from contracts.collection import CollectionRecord, FieldRecord
from contracts.engines import Engines
from contracts.generation import Generation
from contracts.manifest import Manifest
from contracts.segment import FIELD_PART_PREFIX, FieldPart, read_field_part
from indexer.index_codecs import IndexCodecs
from indexer.row_sample import RowSample
from indexer.train_policy import next_look
from vectors.nlist import choose_nlist
from vectors.train import TrainingStopped, train, use_threads

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Trained:
    """What a look or a training found: generations by field, and for fields with too few vectors the rows at which to look again."""

    generations: Mapping[str, Generation]
    look_again: Mapping[str, int] = field(default_factory=dict)


def find_generations(codecs: IndexCodecs, names: set[str]) -> dict[str, Generation]:
    """Newest stored generation of each named field that has one.

    Raises
    ------
    UnavailableError
        The store does not answer.
    CorruptError
        A generation is damaged.
    """
    newest = newest_generations(codecs.store, codecs.keys)
    found = {record.name: newest[record.name] for record in codecs.index.fields if record.name in names & newest.keys()}
    records = {record.name: record for record in codecs.index.fields}
    loaded = {name: load_generation(codecs.store, codecs.keys, records[name], number) for name, number in found.items()}
    return {name: generation for name, generation in loaded.items() if generation is not None}


class IndexTrainer:
    """Trains the fields of one index.

    Parameters
    ----------
    engines : Engines
        Store, settings, metrics.
    collection : CollectionRecord
        Its number of partitions says how large the index is when one partition is as large as this.
    codecs : IndexCodecs
        Of the index.
    """

    def __init__(self, engines: Engines, collection: CollectionRecord, codecs: IndexCodecs) -> None:
        self.engines, self.collection, self.codecs = engines, collection, codecs

    def run(self, manifest: Manifest, names: set[str], stop: threading.Event) -> Trained:
        """Generations of the named fields, trained on a partition's segments where no one was faster.

        Raises
        ------
        SnapshotError
            A segment was compacted away; take the newest manifest.
        UnavailableError
            The store does not answer.
        TrainingStopped
            `stop` was set.
        """
        use_threads(self.engines.settings.train_threads)
        found = find_generations(self.codecs, names)
        again: dict[str, int] = {}
        train_rows = self.engines.settings.train_rows
        for record in self.codecs.index.fields:
            if record.name not in names - found.keys():
                continue
            sample = self._sample(manifest, record, stop)
            if sample.seen < train_rows:
                again[record.name] = next_look(manifest.rows, sample.seen, train_rows)
                continue
            with self.engines.metrics.stage.labels("train").time():
                trained = self._train(record, sample.rows(), manifest.rows, stop)
            found[record.name] = publish_generation(self.engines.store, self.codecs.keys, record, trained)
            logger.info("trained generation %d of field %s: %d lists", trained.number, record.name, len(trained.centroids))
        return Trained(found, again)

    def _train(self, record: FieldRecord, sample: NDArray[np.float32], rows: int, stop: threading.Event) -> Generation:
        nlist = choose_nlist(rows * self.collection.partitions, len(sample))
        return train(record, sample, nlist, self.codecs.index.codec, FIRST_GENERATION, FIRST_GENERATION, stop)

    def _sample(self, manifest: Manifest, record: FieldRecord, stop: threading.Event) -> RowSample:
        """Sample of the field's vectors in all segments of a partition."""
        sample = RowSample(self.engines.settings.train_rows, FIRST_GENERATION)
        for segment in manifest.segments:
            if stop.is_set():
                raise TrainingStopped
            entry = segment.parts.get(FIELD_PART_PREFIX + record.name)
            part = None if entry is None else read_field_part(download(self.engines.store, entry), record, entry.key)
            if isinstance(part, FieldPart):
                sample.add(part.matrix)
        return sample
