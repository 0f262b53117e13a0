"""One set of promises, kept by the memory, the folder and the S3 store alike (contracts/store.py).

The S3 store runs against the MinIO of `make stack`; without it those cases are skipped and say so.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from store_fixtures import stack_settings

from backends.folder_store import FolderStore
from backends.memory_store import MemoryStore
from backends.open_store import open_store
from backends.store_rules import MeteredStore
from contracts.errors import SettingsError
from contracts.metrics import Metrics
from contracts.store import ObjectStore, PutOutcome

STORES = ["memory", "folder", pytest.param("s3", marks=pytest.mark.minio)]


@pytest.fixture(params=STORES)
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[ObjectStore]:
    made: ObjectStore
    if request.param == "memory":
        made = MemoryStore()
    elif request.param == "folder":
        made = FolderStore(tmp_path / "store")
    else:
        made = open_store(stack_settings())
    yield made
    made.close()


@pytest.fixture
def base(store: ObjectStore) -> Iterator[str]:
    """A prefix of this test's own, emptied afterwards: the bucket is shared."""
    prefix = f"test/{secrets.token_hex(8)}"
    yield prefix
    for info in list(store.list(prefix)):
        store.delete(info.key)


def test_what_is_put_is_read_back_byte_for_byte(store: ObjectStore, base: str) -> None:
    for name, data in (("empty", b""), ("one", b"\x00"), ("some", secrets.token_bytes(70_000))):
        assert store.put_if_absent(f"{base}/{name}", data) is PutOutcome.CREATED
        found = store.get(f"{base}/{name}")
        assert found is not None
        assert found.data == data


def test_an_object_that_is_not_there_reads_as_none(store: ObjectStore, base: str) -> None:
    assert store.get(f"{base}/nothing") is None
    assert store.get_range(f"{base}/nothing", 0, 10) is None
    assert store.get_range(f"{base}/nothing", 0, 0) is None
    assert store.head(f"{base}/nothing") is None


def test_a_second_put_finds_the_first_and_changes_nothing(store: ObjectStore, base: str) -> None:
    assert store.put_if_absent(f"{base}/a", b"first") is PutOutcome.CREATED
    assert store.put_if_absent(f"{base}/a", b"second") is PutOutcome.EXISTS
    found = store.get(f"{base}/a")
    assert found is not None
    assert found.data == b"first"


def test_exactly_one_of_sixteen_concurrent_puts_creates(store: ObjectStore, base: str) -> None:
    for round_number in range(3):
        key = f"{base}/race{round_number}"
        with ThreadPoolExecutor(16) as pool:
            outcomes = list(pool.map(lambda number, key=key: store.put_if_absent(key, b"%d" % number), range(16)))
        assert sorted(outcome.value for outcome in outcomes) == ["created"] + ["exists"] * 15
        found = store.get(key)
        assert found is not None
        assert outcomes[int(found.data)] is PutOutcome.CREATED


def test_a_swap_replaces_only_the_version_that_was_read(store: ObjectStore, base: str) -> None:
    key = f"{base}/boundary"
    assert store.compare_and_swap(key, b"1", None) is PutOutcome.CREATED
    assert store.compare_and_swap(key, b"2", None) is PutOutcome.EXISTS
    first = store.get(key)
    assert first is not None
    assert store.compare_and_swap(key, b"2", first.etag) is PutOutcome.CREATED
    assert store.compare_and_swap(key, b"3", first.etag) is PutOutcome.EXISTS
    second = store.get(key)
    assert second is not None
    assert second.data == b"2"


def test_a_swap_of_a_missing_object_fails_its_condition_and_creates_nothing(store: ObjectStore, base: str) -> None:
    store.put_if_absent(f"{base}/other", b"x")
    other = store.get(f"{base}/other")
    assert other is not None
    assert store.compare_and_swap(f"{base}/missing", b"y", other.etag) is PutOutcome.EXISTS
    assert store.get(f"{base}/missing") is None


def test_concurrent_swaps_count_without_losing_one(store: ObjectStore, base: str) -> None:
    key = f"{base}/counter"
    store.put_if_absent(key, b"0")

    def add(_: int) -> None:
        while True:
            found = store.get(key)
            assert found is not None
            if store.compare_and_swap(key, b"%d" % (int(found.data) + 1), found.etag) is PutOutcome.CREATED:
                return

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(add, range(24)))
    found = store.get(key)
    assert found is not None
    assert found.data == b"24"


def test_a_range_is_cut_at_the_objects_end(store: ObjectStore, base: str) -> None:
    key = f"{base}/ranges"
    store.put_if_absent(key, b"0123456789")
    assert store.get_range(key, 0, 4) == b"0123"
    assert store.get_range(key, 7, 3) == b"789"
    assert store.get_range(key, 7, 100) == b"789"
    assert store.get_range(key, 10, 1) == b""
    assert store.get_range(key, 50, 5) == b""
    assert store.get_range(key, 3, 0) == b""
    for start, length in ((-1, 3), (0, -3)):
        with pytest.raises(SettingsError):
            store.get_range(key, start, length)


def test_an_object_comes_in_blocks_of_the_size_that_is_asked_for(store: ObjectStore, base: str) -> None:
    data = secrets.token_bytes(100_000)
    store.put_if_absent(f"{base}/some", data)
    store.put_if_absent(f"{base}/empty", b"")
    for block_bytes in (999, 40_000, 50_000, 100_000, 10**6):
        blocks = list(store.blocks(f"{base}/some", block_bytes) or ())
        assert b"".join(blocks) == data
        assert [len(block) for block in blocks[:-1]] == [block_bytes] * (len(blocks) - 1)
    found = store.blocks(f"{base}/empty", 10)
    assert found is not None and list(found) == []
    assert store.blocks(f"{base}/nothing", 10) is None
    with pytest.raises(SettingsError):
        store.blocks("../x", 10)


def test_blocks_of_a_stretch_end_with_it_or_with_the_object(store: ObjectStore, base: str) -> None:
    data = secrets.token_bytes(1000)
    store.put_if_absent(f"{base}/some", data)
    for start, length in ((0, 10), (300, 500), (990, 50), (0, 1000), (7, None), (10, 0), (1000, 5), (2000, 5)):
        found = store.blocks(f"{base}/some", 64, start, length)
        assert found is not None and b"".join(found) == data[start : None if length is None else start + length], (start, length)
    assert store.blocks(f"{base}/nothing", 64, 5, 5) is None and store.blocks(f"{base}/nothing", 64, 5, 0) is None
    for wrong in ((-1, 5), (0, -1)):
        with pytest.raises(SettingsError):
            store.blocks(f"{base}/some", 64, *wrong)


def test_head_tells_size_tag_and_time_as_the_listing_does(store: ObjectStore, base: str) -> None:
    key = f"{base}/sized"
    store.put_if_absent(key, b"x" * 1234)
    info = store.head(key)
    found = store.get(key)
    [listed] = store.list(base)
    assert info is not None
    assert found is not None
    assert (info.key, info.size_bytes, info.etag) == (key, 1234, found.etag) == (listed.key, listed.size_bytes, listed.etag)
    assert abs(info.modified_seconds - listed.modified_seconds) < 1.0  # HTTP's date has whole seconds
    assert info.modified_seconds > 1.6e9


def test_a_listing_is_in_key_order_and_begins_after_the_key_that_is_named(store: ObjectStore, base: str) -> None:
    names = ["a-b/x", "a.b", "a/b", "a/c/d", "a0", "b/1", "b/2", "c"]
    for name in reversed(names):
        store.put_if_absent(f"{base}/{name}", b"")
    keys = [f"{base}/{name}" for name in names]
    assert keys == sorted(keys)
    assert [info.key for info in store.list(base)] == keys
    assert [info.key for info in store.list(f"{base}/")] == keys
    assert [info.key for info in store.list(f"{base}/a")] == keys[:5]
    assert [info.key for info in store.list(f"{base}/a/")] == keys[2:4]
    assert [info.key for info in store.list(f"{base}/b/2")] == keys[6:7]
    assert [info.key for info in store.list(f"{base}/nothing")] == []
    for position, key in enumerate(keys):
        assert [info.key for info in store.list(base, start_after=key)] == keys[position + 1 :]
    assert [info.key for info in store.list(base, start_after=f"{base}/b")] == keys[5:]


@pytest.mark.slow
def test_a_listing_longer_than_one_page_is_whole(store: ObjectStore, base: str) -> None:
    keys = [f"{base}/{number:05d}" for number in range(1203)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda key: store.put_if_absent(key, b"x"), keys))
    assert [info.key for info in store.list(base)] == keys


def test_a_deleted_object_is_gone_and_deleting_twice_is_no_error(store: ObjectStore, base: str) -> None:
    key = f"{base}/deep/er/object"
    store.put_if_absent(key, b"x")
    store.delete(key)
    store.delete(key)
    assert store.get(key) is None
    assert list(store.list(base)) == []
    assert store.put_if_absent(key, b"again") is PutOutcome.CREATED


@pytest.mark.parametrize(
    "key", ["", "/a", "a/", "a//b", "../x", "a/../b", ".", "a/./b", "a\x00b", "a b", "%2e%2e/x", "a\\b", "ü", "x" * 1025, "~lock"]
)
def test_a_key_that_could_leave_the_store_is_refused_by_every_method(store: ObjectStore, key: str) -> None:
    for call in (
        lambda: store.put_if_absent(key, b""),
        lambda: store.compare_and_swap(key, b"", None),
        lambda: store.compare_and_swap(key, b"", "tag"),
        lambda: store.get(key),
        lambda: store.get_range(key, 0, 1),
        lambda: store.head(key),
        lambda: store.delete(key),
    ):
        with pytest.raises(SettingsError) as refused:
            call()
        assert refused.value.error_code == "invalid_key"
    if key not in ("", "a/"):  # as prefixes these two are well-formed
        with pytest.raises(SettingsError):
            store.list(key)
        with pytest.raises(SettingsError):
            store.list("", start_after=key)


def test_the_probe_accepts_the_store_and_leaves_nothing_behind(store: ObjectStore, base: str) -> None:
    store.put_if_absent(f"{base}/bystander", b"x")
    store.probe(base)
    assert [info.key for info in store.list(base)] == [f"{base}/bystander"]


def test_every_call_is_counted_by_operation_and_outcome(store: ObjectStore, base: str) -> None:
    metrics = Metrics()
    counted = MeteredStore(store, metrics)
    counted.put_if_absent(f"{base}/a", b"1")
    counted.put_if_absent(f"{base}/a", b"1")
    counted.get(f"{base}/a")
    counted.get(f"{base}/b")
    list(counted.list(base))
    counted.delete(f"{base}/a")
    with pytest.raises(SettingsError):
        counted.head("../x")
    with pytest.raises(SettingsError):
        counted.list("../x")

    def count(op: str, outcome: str) -> float | None:
        return metrics.registry.get_sample_value("headwater_store_requests_total", {"op": op, "outcome": outcome})

    expected = [
        ("put", "created"),
        ("put", "exists"),
        ("get", "ok"),
        ("get", "missing"),
        ("list", "ok"),
        ("delete", "ok"),
        ("head", "refused"),
        ("list", "refused"),
    ]
    assert {pair: count(*pair) for pair in expected} == dict.fromkeys(expected, 1.0)


def test_a_folder_has_no_buckets_of_others(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="HEADWATER_STORE_URL"):
        FolderStore(tmp_path / "store").get_from_bucket("drop", "a", None, 10)
