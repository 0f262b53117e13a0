"""Reads an index back from stored bytes alone, the slow and plain way, to compare with what should be there."""

from dataclasses import dataclass, field

import numpy as np

from backends.catalog.manifests import ManifestChain
from backends.catalog.objects import download
from contracts.collection import CollectionRecord, FieldRecord
from contracts.deletes import decode_delete_delta
from contracts.engines import Engines
from contracts.ledger import LedgerRun, decode_ledger, untiled
from contracts.manifest import Manifest
from contracts.object_keys import CollectionKeys
from contracts.segment import CodedPart, FieldPart, read_field_part, read_rows_part
from indexer.field_parts import check_quantizer
from indexer.index_codecs import IndexCodecs
from vectors.inverted_lists import read_lists


@dataclass
class StoredPartition:
    manifest: Manifest
    live: dict[str, tuple[int, int]] = field(default_factory=dict)  # id -> (offset, item)
    texts: dict[str, str | None] = field(default_factory=dict)
    vectors: dict[str, list[float]] = field(default_factory=dict)
    ledger: list[LedgerRun] = field(default_factory=list)
    live_rows: int = 0
    layouts: list[str] = field(default_factory=list)  # of each segment's field parts

    def verdicts(self) -> dict[tuple[int, int], str]:
        return {(o, i): r.verdict for r in self.ledger for o in range(r.start_offset, r.next_offset) for i in range(r.start_item, r.next_item)}

    def is_tiled(self) -> bool:
        return untiled(self.ledger, self.manifest.origin_offset, self.manifest.checkpoint.media_offset) == []


def matrix_of(codecs: IndexCodecs, field: FieldRecord, part: FieldPart | CodedPart) -> np.ndarray:
    """Vectors of a part; a coded one's lists are checked against the rows that it names."""
    if isinstance(part, FieldPart):
        return part.matrix
    quantizer = codecs.quantizer(field, part.generation)
    check_quantizer(part, quantizer, field.name)
    assert read_lists(part.lists, quantizer, part.rows, field.name).ntotal == len(part.rows)
    return quantizer.decode(part.refine)


def read_partition(engines: Engines, collection: CollectionRecord, partition: int) -> StoredPartition:
    index = collection.index()
    chain = ManifestChain(engines.store, CollectionKeys(collection.name, collection.incarnation).index(index.name).partition(partition))
    read = chain.head()
    assert read is not None
    out = StoredPartition(read.manifest)
    codecs = IndexCodecs(engines.store, collection, index)
    deleted: dict[str, set[int]] = {}
    for entry in read.manifest.deletes:
        for segment_id, bitmap in decode_delete_delta(download(engines.store, entry), entry.key).bitmaps.items():
            deleted.setdefault(segment_id, set()).update(bitmap)
    for segment in read.manifest.segments:
        rows = read_rows_part(download(engines.store, segment.parts["rows"]), segment.segment_id).batch.to_pylist()
        parts = {f.name: read_field_part(download(engines.store, segment.parts[f"field.{f.name}"]), f, f.name) for f in index.fields}
        matrices = {f.name: matrix_of(codecs, f, parts[f.name]) for f in index.fields}
        out.layouts.append("ivf" if any(isinstance(part, CodedPart) for part in parts.values()) else "flat")
        for number, row in enumerate(rows):
            if number in deleted.get(segment.segment_id, ()):
                continue
            assert row["id"] not in out.live, f"id {row['id']} is live twice"
            out.live_rows += 1
            out.live[row["id"]] = (row["offset"], row["item"])
            out.texts[row["id"]] = row["text"]
            for name, part in parts.items():
                if number in part.rows:
                    out.vectors[row["id"]] = matrices[name][list(part.rows).index(number)].tolist()
    for entry in read.manifest.ledger:
        out.ledger += decode_ledger(download(engines.store, entry.object), entry.object.key)
    return out
