"""The catalog: what it keeps is never older than the store, and a look that finds nothing new is one listing and a request a collection."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import pytest
from ulid import ULID

from backends.catalog.collections import CollectionCatalog
from backends.memory_store import MemoryStore
from contracts.collection import CollectionRecord, NameRecord
from contracts.errors import CorruptError, NotFoundError
from contracts.object_keys import name_key
from contracts.store import ObjectInfo, StoredObject
from tests.contracts.format_samples import collection, field


class CountingStore(MemoryStore):
    """Counts listings and reads."""

    def __init__(self) -> None:
        super().__init__()
        self.requests: Counter[str] = Counter()

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        self.requests["list"] += 1
        return iter(list(super().list(prefix)))

    def get(self, key: str) -> StoredObject | None:
        self.requests["get"] += 1
        return super().get(key)


def record(name: str) -> CollectionRecord:
    made = collection(field("image", 4, "float32"))
    return CollectionRecord.model_validate({**dict(made), "name": name, "incarnation": str(ULID()), "version": 1})


@pytest.fixture
def store() -> CountingStore:
    return CountingStore()


def test_a_look_that_finds_nothing_new_is_one_listing_and_one_read_a_collection(store: CountingStore) -> None:
    writer, reader = CollectionCatalog(store), CollectionCatalog(store)
    made = [writer.create(record(name)) for name in ("a", "b", "c")]
    assert reader.list() == made
    store.requests.clear()
    assert reader.list() == made and store.requests == {"list": 1, "get": 3}
    store.requests.clear()
    assert reader.get("b") == made[1] and store.requests == {"list": 1, "get": 1}


def test_what_others_change_is_seen_at_the_next_look(store: CountingStore) -> None:
    writer, reader = CollectionCatalog(store), CollectionCatalog(store)
    first = writer.create(record("a"))
    assert reader.list() == [first]
    changed = writer.update(writer.update(first, paused_partitions=(0,)), paused_partitions=())
    assert reader.list() == [changed] == [reader.get("a")] and changed.version == 3
    writer.delete("a")
    assert reader.list() == [] and reader.find("a") is None
    second = writer.create(record("a"))
    assert reader.list() == [second] and second.incarnation != first.incarnation
    with pytest.raises(NotFoundError):
        reader.get("other")


def test_an_alias_means_the_newest_version_of_its_collection_once(store: CountingStore) -> None:
    writer, reader = CollectionCatalog(store), CollectionCatalog(store)
    made = writer.create(record("a"))
    store.put_if_absent(name_key("b", 1), NameRecord(version=1, name="b", incarnation=None, alias="a").to_bytes())
    assert reader.list() == [made] and reader.get("b") == made
    changed = writer.update(made, paused_partitions=(0,))
    assert reader.list() == [changed] and reader.get("b") == changed
    writer.delete("a")
    assert reader.list() == [] and reader.find("b") is None


def test_a_name_without_a_record_is_damage_at_every_look(store: CountingStore) -> None:
    store.put_if_absent(name_key("a", 1), NameRecord(version=1, name="a", incarnation=str(ULID())).to_bytes())
    catalog = CollectionCatalog(store)
    for _ in range(2):
        with pytest.raises(CorruptError, match="no collection record"):
            catalog.list()
