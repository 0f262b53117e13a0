"""A file whose bytes come in any order: nothing counts that was not compared, nothing is read twice, and nobody who is gone leaves a file behind."""

from __future__ import annotations

import gc
import os
import random
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from backends.memory_store import MemoryStore
from contracts.errors import CorruptError, HeadwaterError, SnapshotError, UnavailableError
from contracts.footer_file import CHUNK_BYTES
from contracts.manifest import ObjectEntry
from query.load_pool import LoadPool
from query.partial_file import PartialFile
from query.segment_cache import SegmentCache
from tests.examples import examples
from tests.query.conftest import wait_until

CHUNKS = 40
DATA = random.Random(5).randbytes(CHUNKS * CHUNK_BYTES - 12_345)
KEY = "c/things-01ARZ3NDEKTSV4RRFFQ69G5FAV/i/main/p00000/b0000000001/0000000000000000000000000A.rows"
ENTRY = ObjectEntry.of(KEY, DATA)


class Watched(MemoryStore):
    """Tells which chunks were asked for; may spoil one, be away, or hold requests back."""

    def __init__(self) -> None:
        super().__init__()
        self.put_if_absent(KEY, DATA)
        self.asked: list[int] = []
        self.spoilt: int | None = None
        self.away = False
        self.gate = threading.Event()
        self.gate.set()

    def blocks(self, key: str, block_bytes: int, start: int = 0, length: int | None = None) -> Iterator[bytes] | None:
        self.asked += range(start // CHUNK_BYTES, -(-(start + (length or 0)) // CHUNK_BYTES))
        assert self.gate.wait(10)
        if self.away:
            raise UnavailableError("away")
        found = super().blocks(key, block_bytes, start, length)
        return None if found is None else self._spoil(found, start)

    def _spoil(self, blocks: Iterator[bytes], at: int) -> Iterator[bytes]:
        for block in blocks:
            yield b"x" + block[1:] if self.spoilt is not None and at == self.spoilt * CHUNK_BYTES else block
            at += len(block)


@pytest.fixture
def store() -> Watched:
    return Watched()


@pytest.fixture
def pool() -> Iterator[LoadPool]:
    made = LoadPool(3)
    yield made
    made.close()


def partly(cache: SegmentCache) -> PartialFile:
    found = cache.open_partly(ENTRY)
    assert isinstance(found, PartialFile)
    return found


def parts_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("??/*"))


@settings(max_examples=examples(15), deadline=None)
@given(st.lists(st.sets(st.integers(0, CHUNKS - 1), min_size=1), min_size=1, max_size=6), st.randoms(use_true_random=False))
def test_whoever_asks_for_what_gets_checked_bytes_and_no_chunk_is_read_twice(
    tmp_path_factory: pytest.TempPathFactory, wanted: list[set[int]], order: random.Random
) -> None:
    store, pool = Watched(), LoadPool(3)
    file = partly(SegmentCache(tmp_path_factory.mktemp("cache"), store, 0))
    failures: list[BaseException] = []

    def ask(chunks: set[int]) -> None:
        try:
            if order.random() < 0.3:
                file.bring(min(chunks) * CHUNK_BYTES, min(len(DATA), max(chunks) * CHUNK_BYTES + 1))
            else:
                file.ask(np.array(sorted(chunks)), pool)()
            for chunk in chunks:
                at = slice(chunk * CHUNK_BYTES, (chunk + 1) * CHUNK_BYTES)
                assert file.view[at] == DATA[at]
        except BaseException as error:  # noqa: BLE001 - told below
            failures.append(error)

    threads = [threading.Thread(target=ask, args=(chunks,)) for chunks in wanted]
    for thread in threads:
        thread.start()
    file.fill(pool)
    for thread in threads:
        thread.join()
    assert not failures
    wait_until(lambda: file.is_whole)
    assert file.view == DATA and sorted(store.asked) == list(range(CHUNKS)) and not file.missing_bytes
    pool.close()


def test_a_file_that_is_whole_is_one_of_the_cache_like_all_others(store: Watched, tmp_path: Path, pool: LoadPool) -> None:
    cache = SegmentCache(tmp_path, store, 0)
    file = partly(cache)
    assert cache.size_bytes == 0 and not (tmp_path / ENTRY.sha256[:2] / ENTRY.sha256).exists()
    assert partly(cache) is file
    file.fill(pool)
    wait_until(lambda: cache.size_bytes == len(DATA))
    assert parts_in(tmp_path) == [ENTRY.sha256]
    assert cache.open_partly(ENTRY) == DATA
    assert SegmentCache(tmp_path, store, 0).open_partly(ENTRY) == DATA, "after a restart"
    assert sorted(store.asked) == list(range(CHUNKS))


def test_who_opens_it_whole_meanwhile_gets_it_whole(store: Watched, tmp_path: Path) -> None:
    cache = SegmentCache(tmp_path, store, 0)
    file = partly(cache)
    file.bring(3 * CHUNK_BYTES, 4 * CHUNK_BYTES)
    assert cache.open(ENTRY) == DATA and file.is_whole
    assert sorted(store.asked) == list(range(CHUNKS))


def test_wrong_bytes_in_a_range_are_refused_and_read_again_where_they_were_mended(store: Watched, tmp_path: Path, pool: LoadPool) -> None:
    file = partly(SegmentCache(tmp_path, store, 0))
    store.spoilt = 7
    with pytest.raises(CorruptError, match="chunk 7 differs"):
        file.ask(np.array([7]), pool)()
    assert not file.has(np.array([7])) and store.asked == [7, 7, 7], "what may have been spoilt on its way is read three times"
    file.fill(pool)
    wait_until(lambda: file.error is not None)
    assert "chunk 7 differs" in str(file.error) and not file.is_whole
    store.spoilt = None
    file.ask(np.array([7]), pool)()
    assert file.view[7 * CHUNK_BYTES : 8 * CHUNK_BYTES] == DATA[7 * CHUNK_BYTES : 8 * CHUNK_BYTES]


def test_a_store_that_is_away_is_told_and_asked_again(store: Watched, tmp_path: Path, pool: LoadPool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("query.partial_file.RETRY_SECONDS", 0.0)
    file = partly(SegmentCache(tmp_path, store, 0))
    file.bring(0, CHUNK_BYTES)
    store.away = True
    with pytest.raises(UnavailableError, match="away"):
        file.ask(np.array([0, 5]), pool)()
    file.fill(pool)
    wait_until(lambda: file.error is not None)
    store.away = False
    wait_until(lambda: file.fill(pool) or file.is_whole)
    assert file.view == DATA and file.error is None


def test_an_object_that_is_gone_or_shorter_is_told(store: Watched, tmp_path: Path) -> None:
    file = partly(SegmentCache(tmp_path, store, 0))
    store.delete(KEY)
    with pytest.raises(SnapshotError, match="gone"):
        file.bring(0, 1)
    store.put_if_absent(KEY, DATA[: 2 * CHUNK_BYTES])
    with pytest.raises(CorruptError, match="ends at byte"):
        file.bring(2 * CHUNK_BYTES, 3 * CHUNK_BYTES)


def test_who_waits_for_a_chunk_that_another_reads_does_not_ask_for_it_again(store: Watched, tmp_path: Path, pool: LoadPool) -> None:
    file = partly(SegmentCache(tmp_path, store, 0))
    store.gate.clear()
    file.fill(pool)
    wait_until(lambda: len(store.asked) >= 16)
    came: list[bool] = []
    asking = threading.Thread(target=lambda: came.append(file.ask(np.array([1, 2]), pool)() is None))
    asking.start()
    store.gate.set()
    asking.join(10)
    assert came == [True] and store.asked.count(1) == 1


def test_who_waits_for_another_that_fails_reads_by_himself(store: Watched, tmp_path: Path, pool: LoadPool) -> None:
    file = partly(SegmentCache(tmp_path, store, 0))
    store.gate.clear()
    store.away = True
    failed: list[HeadwaterError] = []

    def bring() -> None:
        try:
            file.bring(0, CHUNK_BYTES)
        except HeadwaterError as error:
            failed.append(error)

    first = threading.Thread(target=bring)
    first.start()
    wait_until(lambda: store.asked == [0])
    wait = file.ask(np.array([0]), pool)
    assert store.asked == [0]

    def mend() -> None:
        wait_until(lambda: bool(failed))
        store.away = False

    real = store.blocks

    def blocks(*about: object) -> Iterator[bytes] | None:
        wait_until(lambda: not store.away)
        return real(*about)  # type: ignore[arg-type]

    mending = threading.Thread(target=mend)
    mending.start()
    store.blocks = blocks  # type: ignore[method-assign]
    store.gate.set()
    wait()
    assert len(failed) == 1 and file.view[:CHUNK_BYTES] == DATA[:CHUNK_BYTES]
    first.join()
    mending.join()


def test_a_pool_that_closes_lets_go_of_who_waits(store: Watched, tmp_path: Path) -> None:
    file, pool = partly(SegmentCache(tmp_path, store, 0)), LoadPool(1)
    pool.close()
    with pytest.raises(UnavailableError, match="stops"):
        file.ask(np.array([1]), pool)()
    file.bring(0, len(DATA))
    assert file.view == DATA


def test_digests_that_do_not_fit_are_refused(store: Watched, tmp_path: Path) -> None:
    cache = SegmentCache(tmp_path, store, 0)
    for digests in (ENTRY.chunks_sha256[:-44], "?" + ENTRY.chunks_sha256[1:]):
        with pytest.raises(CorruptError, match="digests"):
            cache.open_partly(ENTRY.model_copy(update={"chunks_sha256": digests}))
    gc.collect()
    assert parts_in(tmp_path) == []


def test_a_file_that_nobody_needs_any_more_is_neither_filled_nor_kept(store: Watched, tmp_path: Path) -> None:
    file, pool = partly(SegmentCache(tmp_path, store, 0)), LoadPool(1)
    store.gate.clear()
    file.fill(pool)
    wait_until(lambda: len(store.asked) >= 16)
    assert len(parts_in(tmp_path)) == 1
    view = file.view
    del file
    store.gate.set()
    wait_until(lambda: gc.collect() >= 0 and parts_in(tmp_path) == [])
    wait_until(lambda: not pool._queue)
    assert len(store.asked) == 16 and len(view) == len(DATA)
    pool.close()


def test_room_is_made_of_others_while_a_file_is_filled(store: Watched, tmp_path: Path) -> None:
    cache = SegmentCache(tmp_path, store, 1000)
    file = partly(cache)
    small = [ObjectEntry.of(KEY.replace("0A", f"0{number}"), bytes([number]) * 800) for number in (1, 2)]
    for number, entry in enumerate(small, 1):
        store.put_if_absent(entry.key, bytes([number]) * 800)
        assert MemoryStore.get(store, entry.key) is not None
        cache.open(entry)
    file.bring(0, CHUNK_BYTES)
    assert len(parts_in(tmp_path)) == 2 and file.view[:100] == DATA[:100]
    file.bring(0, len(DATA))
    assert parts_in(tmp_path) == [ENTRY.sha256], "what is mapped stays, also above the limit"


FILLING = """
import sys, time
from pathlib import Path
from backends.memory_store import MemoryStore
from contracts.manifest import ObjectEntry
from query.segment_cache import SegmentCache
store, data = MemoryStore(), bytes(3 << 20)
store.put_if_absent("c/x/1", data)
file = SegmentCache(Path(sys.argv[1]), store, 0).open_partly(ObjectEntry.of("c/x/1", data))
file.bring(0, 1)
print("filling", flush=True)
time.sleep(600)
"""


def test_what_a_killed_process_was_filling_goes_at_the_next_start_and_what_a_living_one_fills_stays(store: Watched, tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", FILLING, str(tmp_path)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "filling\n"
        [name] = parts_in(tmp_path)
        [path] = tmp_path.glob("??/*")
        long_ago = time.time() - 600
        os.utime(path, (long_ago, long_ago))
        SegmentCache(tmp_path, store, 0)
        assert parts_in(tmp_path) == [name]
        process.kill()
        process.wait()
    SegmentCache(tmp_path, store, 0)
    assert parts_in(tmp_path) == []
