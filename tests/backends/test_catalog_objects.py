"""Checked reads of a range, and the race of trainers."""

from __future__ import annotations

import threading
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ulid import ULID

from backends.catalog.generations import load_generation, newest_generations, publish_generation
from backends.catalog.objects import LARGE_BYTES, READ_ATTEMPTS, download, download_range, upload
from backends.memory_store import MemoryStore
from contracts.errors import CorruptError, SnapshotError
from contracts.footer_file import CHUNK_BYTES
from contracts.generation import Generation, encode_generation
from contracts.manifest import ObjectEntry
from contracts.object_keys import CollectionKeys
from contracts.store import StoredObject
from tests.contracts.format_samples import field

KEYS = CollectionKeys("feed", str(ULID())).index("main")
LARGE = np.random.default_rng(0).integers(0, 256, 3 * CHUNK_BYTES + 1000).astype(np.uint8).tobytes()


class CountingStore(MemoryStore):
    """Counts the bytes that were read."""

    read_bytes = 0

    def get_range(self, key: str, start: int, length: int) -> bytes | None:
        self.read_bytes += length
        return super().get_range(key, start, length)


def stored(data: bytes) -> tuple[CountingStore, ObjectEntry]:
    store = CountingStore()
    return store, upload(store, KEYS.partition(0).part("b", 1, str(ULID()), "rows"), data)


@pytest.mark.parametrize("size_bytes", [1000, LARGE_BYTES - 1, LARGE_BYTES, LARGE_BYTES + 1000])
def test_an_upload_tells_the_hashes_of_what_it_stored_whatever_its_size(size_bytes: int) -> None:
    data = (LARGE * 2)[:size_bytes]
    store, entry = stored(data)
    assert entry == ObjectEntry.of(entry.key, data)
    assert download(store, entry) == data
    with pytest.raises(CorruptError):
        upload(store, entry.key, data[:-1] + b"?!")


@settings(deadline=None)
@given(st.data(), st.booleans())
def test_a_range_is_what_lies_there_and_reads_only_the_chunks_that_cover_it(data: st.DataObject, small: bool) -> None:
    whole = LARGE[:5000] if small else LARGE
    store, entry = stored(whole)
    start = data.draw(st.integers(0, len(whole) - 1))
    length = data.draw(st.integers(1, len(whole) - start))
    assert bytes(download_range(store, entry, start, length)) == whole[start : start + length]
    assert store.read_bytes < length + 2 * CHUNK_BYTES


@pytest.mark.parametrize(("start", "length"), [(-1, 5), (0, 0), (0, len(LARGE) + 1), (len(LARGE), 1)])
def test_a_range_outside_the_object_is_refused(start: int, length: int) -> None:
    store, entry = stored(LARGE)
    with pytest.raises(ValueError):
        download_range(store, entry, start, length)


def test_a_damaged_chunk_is_found_by_every_range_that_touches_it_and_by_no_other() -> None:
    store, entry = stored(LARGE)
    damaged = bytearray(LARGE)
    damaged[CHUNK_BYTES + 5] ^= 1
    store.delete(entry.key)
    store.put_if_absent(entry.key, bytes(damaged))
    assert bytes(download_range(store, entry, 0, CHUNK_BYTES)) == LARGE[:CHUNK_BYTES]
    assert bytes(download_range(store, entry, 2 * CHUNK_BYTES, 100)) == LARGE[2 * CHUNK_BYTES : 2 * CHUNK_BYTES + 100]
    for start, length in ((CHUNK_BYTES, 1), (0, CHUNK_BYTES + 1), (2 * CHUNK_BYTES - 1, 2)):
        with pytest.raises(CorruptError):
            download_range(store, entry, start, length)


class SpoilingStore(MemoryStore):
    """Spoils as many answers as it is told to, on their way."""

    def __init__(self) -> None:
        super().__init__()
        self.left = 0

    def get(self, key: str) -> StoredObject | None:
        return self._spoilt(super().get(key))

    def get_range(self, key: str, start: int, length: int) -> bytes | None:
        found = self._spoilt(StoredObject(super().get_range(key, start, length) or b"", ""))
        return None if found is None else found.data

    def _spoilt(self, found: StoredObject | None) -> StoredObject | None:
        if found is None or self.left == 0:
            return found
        self.left -= 1
        return replace(found, data=found.data[: len(found.data) // 2])


def test_what_comes_damaged_is_read_again_before_it_is_believed() -> None:
    store = SpoilingStore()
    small, large = upload(store, "small", bytes(1000)), upload(store, "large", bytes(2 * CHUNK_BYTES))
    for read in (lambda: download(store, small), lambda: bytes(download_range(store, large, 10, 990))):
        store.left = READ_ATTEMPTS - 1
        assert not any(read()) and store.left == 0
        store.left = READ_ATTEMPTS
        with pytest.raises(CorruptError):
            read()


@pytest.mark.parametrize("data", [LARGE, LARGE[:5000]])
def test_a_range_of_an_object_that_is_gone_or_cut_short_is_told_apart(data: bytes) -> None:
    store, entry = stored(data)
    store.delete(entry.key)
    with pytest.raises(SnapshotError):
        download_range(store, entry, len(data) - 10, 10)
    store.put_if_absent(entry.key, data[:-1])
    with pytest.raises(CorruptError):
        download_range(store, entry, len(data) - 10, 10)


# ---- generations --------------------------------------------------------------------------------------------------------


def made(number: int, value: float) -> Generation:
    record = field("vec", 4)
    return Generation("vec", number, record.space_id, record.metric, "ivf_pq1x8+sq8", np.full((2, 4), value, np.float32), b"bytes", 100)


def test_of_many_trainers_at_once_all_code_in_the_first_ones_generation() -> None:
    store, record = MemoryStore(), field("vec", 4)
    found: list[float] = []
    barrier = threading.Barrier(8)

    def publish(value: float) -> None:
        barrier.wait()
        found.append(float(publish_generation(store, KEYS, record, made(1, value)).centroids[0, 0]))

    threads = [threading.Thread(target=publish, args=(float(n),)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert len(found) == 8 and len(set(found)) == 1
    stored_one = load_generation(store, KEYS, record, 1)
    assert stored_one is not None and float(stored_one.centroids[0, 0]) == found[0]


def test_the_newest_generation_of_each_field_is_found() -> None:
    store, record = MemoryStore(), field("vec", 4)
    assert newest_generations(store, KEYS) == {} and load_generation(store, KEYS, record, 1) is None
    for number in (1, 2, 11):
        publish_generation(store, KEYS, record, made(number, 1.0))
    publish_generation(store, KEYS, field("text", 4), replace(made(3, 1.0), field_name="text", space_id=field("text", 4).space_id))
    assert newest_generations(store, KEYS) == {"vec": 11, "text": 3}


@pytest.mark.parametrize("changes", [
    {"field_name": "other"}, {"number": 2}, {"space_id": "lite@0"}, {"metric": "dot"}, {"centroids": np.ones((2, 5), np.float32)},
])  # fmt: skip
def test_a_generation_of_another_field_or_space_is_refused(changes: dict[str, object]) -> None:
    store, record = MemoryStore(), field("vec", 4)
    store.put_if_absent(KEYS.generation(1, "vec"), encode_generation(replace(made(1, 1.0), **changes)))  # type: ignore[arg-type]
    with pytest.raises(CorruptError):
        load_generation(store, KEYS, record, 1)
    with pytest.raises(CorruptError):
        publish_generation(store, KEYS, record, made(1, 2.0))
