"""One flat part that becomes coded: what may happen between its upload and its commit, and what patches make of coded rows."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import pytest
from ulid import ULID

from backends.catalog.generations import newest_generations
from backends.catalog.manifests import ManifestChain
from backends.memory_log import MemoryLog
from backends.memory_store import MemoryStore
from contracts.chain import BatchSpan
from contracts.clock import ManualClock
from contracts.collection import FieldRecord, own_vector_space
from contracts.engines import Engines
from contracts.errors import CorruptError, FencedError, SnapshotError, UnavailableError
from contracts.settings import load_settings
from contracts.store import PutOutcome
from contracts.vectors_batch import BatchItem, batch_headers, batch_schema, build_batch, encode_batch
from indexer.build_worker import BuildWorker
from indexer.coding import IndexCoding
from indexer.commit import Committer
from indexer.index_codecs import IndexCodecs
from indexer.partition_builder import PartitionBuilder
from indexer.partition_source import PartitionSource
from indexer.recode import PartPlace, RecodedPart, is_flat, recode_part, upload_again
from indexer.row_sample import RowSample
from indexer.train_index import IndexTrainer
from indexer.train_policy import next_look
from indexer.ulids import UlidSource
from tests.indexer.conftest import DIMENSION, eventually, make_collection, running, vector_of
from tests.indexer.stored import StoredPartition, read_partition

ROWS = 400


class Faulty(MemoryStore):
    """Does not say what becomes of a manifest while `mute`; stores it or not."""

    mute = False
    stores = False

    def put_if_absent(self, key: str, data: bytes) -> PutOutcome:
        if self.mute and "/manifest/" in key:
            if self.stores:
                super().put_if_absent(key, data)
            return PutOutcome.UNKNOWN
        return super().put_if_absent(key, data)


class Site:
    """A partition whose vectors topic is written by hand."""

    def __init__(self, metric: str = "cosine", dtype: str = "float32") -> None:
        self.store = Faulty()
        self.engines = Engines(load_settings(log_url="memory://", store_url="memory://", train_rows=ROWS, seal_seconds=0.1), MemoryLog(), self.store)
        self.collection = make_collection(self.engines, "feed", partitions=1, fields=[vec(metric, dtype)])
        self.index = self.collection.index()
        self.codecs = IndexCodecs(self.store, self.collection, self.index)
        self.next_offset = 0
        self.builder = self.new_builder()

    def new_builder(self) -> PartitionBuilder:
        source = PartitionSource(self.engines, self.collection, self.index, 0)
        builder = PartitionBuilder(source, f"builder-{ULID()}", UlidSource(), self.codecs)
        self.at = builder.start()
        return builder

    def send(self, items: Sequence[BatchItem]) -> None:
        """Append a batch, one media record an item."""
        numbered = [replace(item, offset=self.next_offset + n) for n, item in enumerate(items)]
        data = encode_batch(build_batch(numbered, batch_schema(self.index, self.collection.attributes)))
        span = BatchSpan(self.collection.incarnation, self.collection.source_topic_id, self.next_offset, self.next_offset + len(items))
        producer = self.engines.log.producer()
        producer.send(self.index.vectors_topic, partition=0, value=data, headers=batch_headers(span, data))
        producer.flush(10)
        producer.close()
        self.next_offset += len(items)

    def feed(self, *items: BatchItem) -> None:
        self.send(items)
        record = self.engines.log.read_at(self.index.vectors_topic, 0, self.at)
        assert record is not None
        self.builder.feed(record)
        self.at += 1

    def commit(self, *items: BatchItem) -> None:
        self.feed(*items)
        assert self.builder.commit() is not None

    def train(self) -> None:
        found = IndexTrainer(self.engines, self.collection, self.codecs).run(self.builder.manifest, {"vec"}, threading.Event())
        self.codecs.adopt(self.codecs.add(found.generations["vec"]))

    @property
    def place(self) -> PartPlace:
        return PartPlace(self.store, self.builder.source.keys, self.builder.committer.epoch, self.builder.ulids)

    def recode(self, segment: int = 0) -> RecodedPart:
        field = self.index.fields[0]
        part = recode_part(self.place, self.builder.manifest.segments[segment], field, self.codecs.quantizer(field, 1), 1)
        assert part is not None
        return part

    def read(self) -> StoredPartition:
        return read_partition(self.engines, self.collection, 0)

    def finish(self) -> StoredPartition:
        """Another process takes over and does what is left."""
        with running(BuildWorker(self.engines, self.collection, self.index).run):
            eventually(lambda: self.read().manifest.checkpoint.media_offset == self.next_offset and "flat" not in self.read().layouts, 30)
        return self.read()


def vec(metric: str, dtype: str) -> FieldRecord:
    space_id = own_vector_space("vec", DIMENSION, metric)
    return FieldRecord.model_validate(
        {"name": "vec", "source": "vector", "encoder": None, "space_id": space_id, "dimension": DIMENSION, "metric": metric, "dtype": dtype}
    )


def unit(item_id: str) -> np.ndarray:
    vector = vector_of(item_id)
    return vector / np.linalg.norm(vector)


def up(*ids: str) -> list[BatchItem]:
    return [BatchItem(0, 0, "upsert", item_id, vectors={"vec": unit(item_id)}) for item_id in ids]


def bare(item_id: str) -> BatchItem:
    return BatchItem(0, 0, "upsert", item_id, text="a text alone")


def names(start: int, end: int) -> list[str]:
    return [f"id-{n}" for n in range(start, end)]


@pytest.fixture(params=["cosine-float32", "dot-float16", "euclid-float32"])
def any_site(request: pytest.FixtureRequest) -> Iterator[Site]:
    made = Site(*request.param.split("-"))
    made.commit(*up(*names(0, ROWS)))
    made.commit(*up(*names(ROWS, ROWS + 20)), bare("bare"))
    made.train()
    yield made
    made.engines.log.close()


@pytest.fixture
def site() -> Iterator[Site]:
    made = Site()
    made.commit(*up(*names(0, ROWS)))
    made.commit(*up(*names(ROWS, ROWS + 20)), bare("bare"))
    made.train()
    yield made
    made.engines.log.close()


def test_only_one_entry_of_one_segment_and_the_generation_change(any_site: Site) -> None:
    site = any_site
    before, read = site.builder.manifest, site.builder.replace_part(site.recode(1))
    assert read is not None
    after = read.manifest
    old, new = before.segments[1], after.segments[1]
    assert after.segments[0] == before.segments[0] and new == old.model_copy(update={"parts": {**old.parts, "field.vec": new.parts["field.vec"]}})
    same = ("checkpoint", "deletes", "ledger", "epochs", "origin_offset", "schema_version")
    assert [getattr(after, name) for name in same] == [getattr(before, name) for name in same] and after.generation == {"vec": 1}
    stored = site.read()
    assert set(stored.live) == {*names(0, ROWS + 20), "bare"} and stored.layouts == ["flat", "ivf"] and "bare" not in stored.vectors
    assert all(np.abs(np.array(stored.vectors[name]) - unit(name)).max() < 0.1 for name in names(ROWS, ROWS + 20))
    assert not is_flat(site.store, new.parts["field.vec"]) and is_flat(site.store, old.parts["field.vec"])
    assert recode_part(site.place, new, site.index.fields[0], site.codecs.quantizer(site.index.fields[0], 1), 1) is None


def test_deletes_and_newer_rows_that_are_committed_meanwhile_hold(site: Site) -> None:
    part = site.recode()
    site.commit(BatchItem(0, 0, "delete", "id-3"), *up("id-4", "new"))
    assert site.builder.replace_part(part) is None, "a newer ULID was published: garbage collection could take the part away"
    again = upload_again(site.place, part)
    assert again.ulid > part.ulid and site.builder.replace_part(again) is not None
    stored = site.finish()
    assert set(stored.live) == {*names(0, ROWS + 20), "bare", "new"} - {"id-3"} and stored.live["id-4"] == (ROWS + 22, 0)


def test_a_fenced_builder_replaces_nothing(site: Site) -> None:
    part = site.recode()
    site.new_builder()
    with pytest.raises(FencedError):
        site.builder.replace_part(part)
    assert site.read().layouts == ["flat", "flat"]


def test_a_builder_that_dies_between_upload_and_commit_leaves_the_work_to_the_next_one(site: Site) -> None:
    site.recode()
    site.send(up("after"))
    stored = site.finish()
    assert set(stored.live) == {*names(0, ROWS + 20), "bare", "after"} and set(stored.layouts) == {"ivf"}
    assert newest_generations(site.store, site.codecs.keys) == {"vec": 1}


@pytest.mark.parametrize("stores", [True, False])
def test_after_an_unknown_outcome_either_manifest_goes_on(site: Site, stores: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("backends.catalog.manifests.time.sleep", lambda seconds: None)
    part = site.recode()
    site.store.mute, site.store.stores = True, stores
    monkeypatch.setattr(ManifestChain, "_landed", lambda self, key, manifest: False)  # it cannot be read back either
    with pytest.raises(UnavailableError):
        site.builder.replace_part(part)
    site.store.mute = False
    monkeypatch.undo()
    site.commit(*up("later"))
    if stores:
        with pytest.raises(SnapshotError):
            site.builder.replace_part(replace(part, ulid=str(ULID.from_int(2**127))))
    stored = site.finish()
    assert set(stored.live) == {*names(0, ROWS + 20), "bare", "later"}


def test_a_part_of_a_segment_that_was_compacted_away_is_dropped(site: Site) -> None:
    part = site.recode()
    compactor = Committer(site.builder.source.chain, "compactor", "compactor", ManualClock(), lambda: None)
    compactor.claim()
    renamed = [s.model_copy(update={"segment_id": str(ULID())}) if n == 0 else s for n, s in enumerate(site.builder.manifest.segments)]
    compacted = compactor.commit(None, lambda manifest: {"segments": tuple(renamed)}, str(ULID())).manifest
    with pytest.raises(SnapshotError):
        site.builder.replace_part(part)
    assert site.builder.manifest == compacted and site.read().layouts == ["flat", "flat"]
    assert set(site.finish().layouts) == {"ivf"}


def test_a_part_waits_while_the_outcome_of_a_seal_is_unknown(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("backends.catalog.manifests.time.sleep", lambda seconds: None)
    coding = IndexCoding(site.engines, site.collection, site.codecs, site.builder.ulids)
    builders = {0: site.builder}
    site.feed(*up("later"))
    site.store.mute = True
    with pytest.raises(UnavailableError):
        site.builder.commit()
    eventually(lambda: coding.turn(builders) is not None or coding._ready is not None)
    assert coding.turn(builders) is None and site.builder.pending is not None
    site.store.mute = False
    assert site.builder.commit() is not None
    part = coding.turn(builders)
    assert part is not None and site.builder.replace_part(part) is not None
    coding.close()


def test_a_part_that_a_seal_has_overtaken_is_stored_again_and_handed_out_again(site: Site) -> None:
    coding = IndexCoding(site.engines, site.collection, site.codecs, site.builder.ulids)
    handed_out: list[RecodedPart | None] = [None]

    def is_handed_out() -> bool:
        handed_out.append(coding.turn({0: site.builder}))
        return handed_out[-1] is not None

    eventually(is_handed_out)
    first = handed_out[-1]
    site.commit(*up("later"))
    assert first is not None and site.builder.replace_part(first) is None
    coding.upload_again(first, site.builder)
    eventually(is_handed_out)
    second = handed_out[-1]
    assert second is not None and second.entry.key != first.entry.key and second.entry.sha256 == first.entry.sha256
    assert site.builder.replace_part(second) is not None and site.read().layouts == ["ivf", "flat", "ivf"]
    coding.close()


def test_a_damaged_flat_part_stays_as_it_is_and_everything_else_goes_on(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    key = site.builder.manifest.segments[0].parts["field.vec"].key
    found = site.store.get(key)
    assert found is not None
    site.store.delete(key)
    site.store.put_if_absent(key, found.data[:-20] + b"\0" * 20)
    with pytest.raises(CorruptError):
        site.recode()
    worker = BuildWorker(site.engines, site.collection, site.index)
    chain = ManifestChain(site.store, site.builder.source.keys)

    def keys() -> list[str]:
        read = chain.head()
        return [] if read is None else [segment.parts["field.vec"].key for segment in read.manifest.segments]

    before = keys()
    with running(worker.run):
        eventually(lambda: keys()[1:2] != before[1:2], 30, "the other segment is coded")
        site.send(up("later"))
        eventually(lambda: len(keys()) == 3, 30, "sealing goes on")
    assert keys()[0] == key and caplog.text.count("is given up") == 1


# ---- patches of coded rows ----------------------------------------------------------------------------------------------


def patch(item_id: str, number: int) -> BatchItem:
    return BatchItem(0, 0, "patch", item_id, patch=f'{{"n":{number}}}')


def test_a_patched_coded_row_keeps_its_refine_code_however_often_it_is_patched(any_site: Site) -> None:
    site = any_site
    while any(layout == "flat" for layout in site.read().layouts):
        assert site.builder.replace_part(site.recode(site.read().layouts.index("flat"))) is not None
    before = site.read().vectors["id-5"]
    assert np.abs(np.array(before) - unit("id-5")).max() < 0.1
    for number in range(4):
        site.commit(patch("id-5", number), patch("bare", number))
    stored = site.read()
    assert stored.vectors["id-5"] == before and stored.live["id-5"] == (site.next_offset - 2, 0) and "bare" not in stored.vectors
    assert set(stored.live) == {*names(0, ROWS + 20), "bare"} and stored.layouts[-1] == "ivf"


# ---- policies -----------------------------------------------------------------------------------------------------------


def test_a_field_with_few_vectors_is_looked_at_again_when_the_rows_promise_enough() -> None:
    assert next_look(1000, 0, 1000) == 2000 and next_look(1000, 250, 1000) == 4000 and next_look(1000, 999, 1000) == 1002
    assert next_look(1000, 1000, 1000) == 1001


@pytest.mark.parametrize("sizes", [[], [10], [50], [400, 3, 900], [70] * 40])
def test_a_sample_is_spread_over_all_parts_and_stays_small(sizes: list[int]) -> None:
    sample = RowSample(100, 1)
    for number, size in enumerate(sizes):
        sample.add(np.full((size, 2), number, np.float16))
        assert sum(map(len, sample._kept)) <= 200
    rows = sample.rows()
    assert sample.seen == sum(sizes) and len(rows) == min(100, sum(sizes)) and rows.dtype == np.float32
    if sum(sizes) > 1000:
        shares = np.bincount(rows[:, 0].astype(int), minlength=len(sizes)) / len(rows)
        assert np.abs(shares - np.array(sizes) / sum(sizes)).max() < 0.15
