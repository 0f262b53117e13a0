"""The cache gives only bytes that were checked, mends what is damaged, and keeps its size without taking away what is used."""

from __future__ import annotations

import os
import resource
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from backends.memory_store import MemoryStore
from contracts.errors import CorruptError, SnapshotError, UnavailableError
from contracts.manifest import ObjectEntry
from query import segment_cache
from query.segment_cache import SegmentCache


class Counted(MemoryStore):
    """A store that counts what is read from it."""

    def __init__(self) -> None:
        super().__init__()
        self.reads = 0
        self.block_bytes: list[int] = []

    def blocks(self, key: str, block_bytes: int, start: int = 0, length: int | None = None) -> Iterator[bytes] | None:
        blocks = super().blocks(key, block_bytes, start, length)
        return None if blocks is None else (self.block_bytes.append(len(block)) or block for block in blocks)  # type: ignore[func-returns-value]

    def get(self, key: str):  # type: ignore[no-untyped-def]
        self.reads += 1
        return super().get(key)


@pytest.fixture
def store() -> Counted:
    return Counted()


def put(store: MemoryStore, name: str, data: bytes) -> ObjectEntry:
    key = f"c/things-01ARZ3NDEKTSV4RRFFQ69G5FAV/i/main/p00000/b0000000001/{name:0>26}.rows"
    store.put_if_absent(key, data)
    return ObjectEntry.of(key, data)


def path_of(folder: Path, entry: ObjectEntry) -> Path:
    return folder / entry.sha256[:2] / entry.sha256


def test_an_object_is_downloaded_once_also_for_another_process(store: Counted, tmp_path: Path) -> None:
    entry = put(store, "A", b"content")
    for _ in range(2):
        cache = SegmentCache(tmp_path, store, 0)
        assert cache.open(entry) == b"content" and cache.open(entry) == b"content"
        assert cache.size_bytes == 7
    assert store.reads == 1


def test_large_objects_come_in_pieces_and_are_checked_as_a_whole(store: Counted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(segment_cache, "BLOCK_BYTES", 1000)
    data = os.urandom(4321)
    assert SegmentCache(tmp_path, store, 0).open(put(store, "A", data)) == data
    assert store.block_bytes == [1000, 1000, 1000, 1000, 321]


@pytest.mark.parametrize("damage", [b"content!", b"c0ntent", b""])
def test_a_file_that_was_damaged_since_is_downloaded_anew(store: Counted, tmp_path: Path, damage: bytes) -> None:
    entry = put(store, "A", b"content")
    SegmentCache(tmp_path, store, 0).open(entry)
    path_of(tmp_path, entry).write_bytes(damage)
    cache = SegmentCache(tmp_path, store, 0)
    assert cache.open(entry) == b"content" and store.reads == 2
    assert path_of(tmp_path, entry).read_bytes() == b"content" and cache.size_bytes == 7


def test_bytes_that_are_not_the_manifests_are_never_given_out_or_kept(store: Counted, tmp_path: Path) -> None:
    for other in (b"c0ntent", b"content and more"):
        entry = put(store, str(len(other)), other).model_copy(update={"sha256": ObjectEntry.of("n/x/0", b"content").sha256})
        with pytest.raises(CorruptError, match="differs"):
            SegmentCache(tmp_path, store, 0).open(entry)
        assert list(tmp_path.glob("??/*")) == []


def test_a_disk_with_room_for_a_part_of_a_file_is_full_and_nothing_is_damaged(store: Counted, tmp_path: Path) -> None:
    entry, cache = put(store, "A", bytes(5000)), SegmentCache(tmp_path, store, 0)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))  # the first write takes 1,000 bytes, and says so; the next one fails
    try:
        with pytest.raises(UnavailableError) as refused:
            cache.open(entry)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert refused.value.error_code == "cache_unwritable" and list(tmp_path.glob("??/*")) == []
    assert cache.open(entry) == bytes(5000)


def test_an_object_that_was_compacted_away_is_a_matter_of_the_snapshot(store: Counted, tmp_path: Path) -> None:
    entry = put(store, "A", b"content")
    store.delete(entry.key)
    with pytest.raises(SnapshotError):
        SegmentCache(tmp_path, store, 0).open(entry)


def test_beyond_the_limit_the_least_recently_used_files_go_but_none_that_is_mapped(store: Counted, tmp_path: Path) -> None:
    cache = SegmentCache(tmp_path, store, 250)
    entries = [put(store, str(number), bytes([number]) * 100) for number in range(5)]
    held = cache.open(entries[0])
    for age, entry in enumerate(entries[1:3]):
        cache.open(entry)
        os.utime(path_of(tmp_path, entry), (1000 - age, 1000 - age))  # the second was used before the first
    os.utime(path_of(tmp_path, entries[0]), (1, 1))
    cache.open(entries[3])
    kept = [path_of(tmp_path, entry).exists() for entry in entries]
    assert kept == [True, False, False, True, False] and cache.size_bytes == 200
    del held
    cache.open(entries[4])
    assert not path_of(tmp_path, entries[0]).exists()


def test_what_a_killed_process_left_behind_goes_after_a_day_and_never_counts(store: Counted, tmp_path: Path) -> None:
    old, young = tmp_path / "ab" / "abc.1.0.part", tmp_path / "ab" / "abd.1.0.part"
    old.parent.mkdir()
    for path in (old, young):
        path.write_bytes(b"half")
    os.utime(old, (1, 1))
    assert SegmentCache(tmp_path, store, 0).size_bytes == 0
    assert not old.exists() and young.exists()


def test_a_folder_that_cannot_be_written_to_says_so(store: Counted, tmp_path: Path) -> None:
    (tmp_path / "cache").write_bytes(b"a file, not a folder")
    with pytest.raises(UnavailableError) as raised:
        SegmentCache(tmp_path / "cache", store, 0).open(put(store, "A", b"content"))
    assert raised.value.error_code == "cache_unwritable" and "HEADWATER_CACHE_DIR" in raised.value.hint


def test_many_threads_download_an_object_once(store: Counted, tmp_path: Path) -> None:
    cache, entry, found = SegmentCache(tmp_path, store, 0), put(store, "A", b"x" * 100_000), []
    threads = [threading.Thread(target=lambda: found.append(cache.open(entry))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8 and all(view == b"x" * 100_000 for view in found) and store.reads == 1


def test_what_nobody_uses_any_more_goes_some_time_later_and_what_is_mapped_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, now = MemoryStore(), [0.0]
    monkeypatch.setattr("query.segment_cache.time.monotonic", lambda: now[0])
    served, replaced = put(store, "A", b"a" * 100), put(store, "B", b"b" * 100)
    cache = SegmentCache(tmp_path, store, 0, unused_seconds=1000.0)
    view = cache.open(served)
    cache.open(replaced)
    for path in tmp_path.glob("??/*"):
        os.utime(path, (time.time() - 2000, time.time() - 2000))

    def files() -> set[str]:
        return {path.name for path in tmp_path.glob("??/*")}

    cache.open(put(store, "C", b"c" * 100))
    assert replaced.sha256 in files(), "a start may not have opened it yet"
    now[0] = 1000.0
    cache.open(put(store, "D", b"d" * 100))
    assert replaced.sha256 not in files() and served.sha256 in files() and bytes(view) == b"a" * 100
