"""The checks that make "nothing lost, nothing twice" true, and how to do without them: for a benchmark's process alone.

There is no setting that turns safety off. Here functions of a process are replaced by others that believe everything, while a context lasts; what
they give is of the same shape, so that all other code runs as it does. W12 divides the CPU of one by that of the other.

Left as they are, since they are no checks: put-if-absent (something has to store), looking for older rows of an id (updates), the recall that a seal
measures, and Kafka's and S3's own checksums. Nor is here what is done once, at a start (identity of cluster and topics, bounds of the media topic,
attempts, the sha256 of a generation), or what embedding and building do not pass: the sha256 of objects that query nodes and maintenance read.

Takes: nothing. Gives: `SWITCHES`, `switched`. Owns: what counts as a check. Never: is imported by anything but a benchmark.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from contracts import media_rows
from contracts.chain import AcceptedSpan, BatchSpan, Chain
from contracts.collection import CollectionRecord, FieldRecord
from contracts.log import Headers, LogRecord
from contracts.manifest import ObjectEntry, ReadVersion
from contracts.vectors_batch import batch_headers, conform
from indexer.commit import Committer
from indexer.partition_builder import PartitionBuilder
from indexer.partition_run import PartitionRun

NO_HASH = "0" * 64


class Switch(NamedTuple):
    """A function, ``module:name`` or ``module:Class.name``, what stands in for it, and what is checked where it is not replaced."""

    place: str
    stand_in: Any
    checks: str


def _batch_headers(span: BatchSpan, value: bytes) -> Headers:
    return (*batch_headers(span, b"")[:-1], ("hw_sha256", NO_HASH.encode()))


def _decode_batch(record: LogRecord, schema: pa.Schema) -> pa.RecordBatch:
    with pa.ipc.open_stream(pa.py_buffer(record.value or b"")) as reader:
        batch = reader.read_next_batch()
    return batch if batch.schema.equals(schema, check_metadata=True) else conform(batch, schema, "")


def _accept(chain: Chain, span: BatchSpan) -> AcceptedSpan:
    chain.expected = span.next_offset
    return AcceptedSpan(span.start_offset, span.next_offset)


def _entry(kind: type[ObjectEntry], key: str, data: bytes) -> ObjectEntry:
    return kind(key=key, size_bytes=len(data), sha256=NO_HASH)


def _read_version(read: ReadVersion[Any], manifest: Any, data: bytes) -> None:
    read.manifest, read.sha256 = manifest, NO_HASH


def _walk(committer: Committer[Any], commit_id: str) -> tuple[ReadVersion[Any], None]:
    return committer._base or committer._newest(), None


def _upload(builder: PartitionBuilder, ulid: str, part: str, data: bytes) -> ObjectEntry:
    key = builder.source.keys.part("b", builder.committer.epoch, ulid, part)
    if part == "ledger":
        return ObjectEntry.of(key, data)
    builder.engines.store.put_if_absent(key, data)
    return ObjectEntry.of(key, data)


def _table(made: Any, table: pa.Table, collection: CollectionRecord) -> None:
    made._collection = collection
    fields = [field for index in collection.indexes for field in index.fields if field.source == "vector"]
    made._columns = {field.name: media_rows._vectors(table, field) for field in fields}
    made._payload = {name: media_rows._values(table.column(name)) for name in media_rows._PAYLOAD if name in table.column_names}
    made._times = media_rows._times(table)


def _vectors(wide: NDArray[np.float64], field: FieldRecord, valid: NDArray[np.bool_], fits: NDArray[np.bool_]) -> Any:
    if field.metric == "cosine":
        wide = wide / np.linalg.norm(wide, axis=1)[:, None]
    return wide.astype(np.float32), np.zeros(len(wide), np.int8)


def _believe(_: Any, __: int, run: PartitionRun) -> None:
    """A look of the watchdog that takes what was sent for what is stored."""
    run.scan.chain.expected = run.checked_next = run.sent_next


def _first(value: Any, *_: Any, **__: Any) -> Any:
    return value


def _nothing(*_: Any, **__: Any) -> None:
    return None


SWITCHES: Sequence[Switch] = (
    Switch("contracts.media_rows:check_expansion", _nothing, "what an Arrow stream of a stranger would take in memory"),
    Switch("contracts.media_rows:_Table.__init__", _table, "Arrow buffers of strangers, their columns and cells"),
    Switch("contracts.media_rows:_checked", _vectors, "vectors: NaN, infinity, no direction, another length"),
    Switch("contracts.media_rows:check_id", _first, "ids"),
    Switch("indexer.publish:batch_headers", _batch_headers, "sha256 of a vectors batch, written"),
    Switch("indexer.partition_builder:decode_batch", _decode_batch, "sha256 of a vectors batch, read, and Arrow's lengths"),
    Switch("contracts.chain:Chain.accept", _accept, "the chain rule: incarnation, topic id, offsets"),
    Switch("indexer.watchdog:Watchdog._check", _believe, "the watchdog, which makes sure of what was written"),
    Switch("indexer.seal:ledger_runs", lambda *_: [], "the ledger: a verdict for each item"),
    Switch("indexer.partition_builder:encode_ledger", lambda _: b"", "the ledger's bytes"),
    Switch("indexer.partition_builder:PartitionBuilder._upload", _upload, "settled puts, and the ledger's object"),
    Switch("contracts.manifest:ObjectEntry.of", classmethod(_entry), "sha256 of objects and of their chunks, written"),
    Switch("contracts.manifest:ReadVersion.__init__", _read_version, "sha256 of manifests"),
    Switch("indexer.commit:Committer._walk", _walk, "a look at the chain before a commit: claims, checkpoint, own commit id"),
    Switch("backends.catalog.manifests:VersionChain.boundary", lambda _: 0, "the boundary of garbage collection"),
    Switch("backends.catalog.objects:validate_key", _first, "keys of objects"),
)


def found(place: str) -> tuple[Any, str, Any]:
    """Owner, name and present value of what a place names."""
    module, _, path = place.partition(":")
    *outer, name = path.split(".")
    owner: Any = importlib.import_module(module)
    for each in outer:
        owner = getattr(owner, each)
    return owner, name, vars(owner)[name]


@contextmanager
def switched(stand_ins: Mapping[str, Any]) -> Iterator[None]:
    """Put something else in the place of functions, by place; as they were when the context ends."""
    kept: list[tuple[Any, str, Any]] = []
    try:
        for place, stand_in in stand_ins.items():
            owner, name, value = found(place)
            kept.append((owner, name, value))
            setattr(owner, name, stand_in)
        yield
    finally:
        for owner, name, value in reversed(kept):
            setattr(owner, name, value)


def counting(place: str, count: Callable[[str], None]) -> Any:
    """What a place names, with a call of `count` before each call."""
    _, _, value = found(place)
    function = value.__func__ if isinstance(value, classmethod) else value

    def counted(*arguments: Any, **named: Any) -> Any:
        count(place)
        return function(*arguments, **named)

    return classmethod(counted) if isinstance(value, classmethod) else counted
