"""Garbage collection: what can still be named stays, everything else goes, and each rule that is left out loses something."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from ulid import ULID

from backends.catalog.admin import delete_collection
from backends.catalog.archive import archive_chain
from backends.catalog.collections import CollectionCatalog
from backends.catalog.indexes import add_index, drop_index
from backends.catalog.manifests import VersionChain
from backends.catalog.pins import CLOCK_SECONDS, pin_version, read_pins
from contracts.errors import FencedError, SnapshotError
from contracts.manifest import Manifest, ReadVersion, SegmentEntry
from contracts.object_keys import CollectionKeys
from indexer import garbage
from indexer.commit import Committer
from indexer.compactor import PartitionCompactor
from indexer.dead_collections import sweep_dead_collections
from indexer.dead_indexes import sweep_dead_indexes
from indexer.garbage import collect_archive
from indexer.partition_archiver import ensure_archive
from tests.indexer.conftest import make_collection
from tests.indexer.maintained import KEEP_SECONDS, Site, gone, random_items, up

IDS = [f"id-{n}" for n in range(10)]


@pytest.fixture
def site() -> Site:
    return Site()


def maintain(site: Site, compactor: PartitionCompactor) -> None:
    while compactor.compact() is not None:
        pass
    site.collect()


def orphan(site: Site, epoch: int | None = None, role: str = "b", ulid: str | None = None) -> str:
    """An object that nobody has committed."""
    epochs = site.builder.committer.epoch if epoch is None else epoch
    key = site.source.keys.part(role, epochs, ulid or site.builder.ulids.mint(), "rows")
    site.store.put_if_absent(key, b"left behind")
    return key


def test_at_rest_only_what_the_newest_manifest_names_is_left(site: Site) -> None:
    choice, compactor = random.Random(3), site.new_compactor()
    for number in range(40):
        site.commit(*random_items(choice, IDS, number))
        site.clock.advance(10)
        if number % 5 == 0:
            maintain(site, compactor)
            site.check()
    maintain(site, compactor)
    assert site.unreferenced() and len(site.versions()) > 1
    site.clock.advance(KEEP_SECONDS)
    done = site.collect()
    assert site.unreferenced() == set() and site.versions() == [site.check().manifest.version]
    assert done.waiting == 0 and done.deleted["part"] > 0 and done.deleted["manifest"] > 0
    assert done.vectors_offset == site.check().manifest.checkpoint.vectors_offset
    site.commit(*up("after"))
    site.check()


def test_what_was_just_replaced_is_kept_for_its_readers(site: Site) -> None:
    for n in range(4):
        site.commit(*up(f"a{n}"))
    before = site.chain.head()
    assert before is not None
    site.clock.advance(KEEP_SECONDS)
    maintain(site, site.new_compactor())
    named = garbage.named_by(before.manifest)
    assert all(site.store.get(key) is not None for key in named), "a node that loads the manifest before would fail"
    site.clock.advance(KEEP_SECONDS - 1)
    site.collect()
    assert all(site.store.get(key) is not None for key in named)
    site.clock.advance(1)
    site.collect()
    assert not any(site.store.get(key) is not None for key in named)


def test_orphans_of_fenced_claims_go_at_once_and_those_of_the_living_when_they_can_no_longer_be_named(site: Site) -> None:
    site.commit(*up("a"))
    fenced, of_compactor = orphan(site), orphan(site, 1, "m")
    site.builder = site.new_builder()
    site.new_compactor()
    site.new_compactor()
    forgotten, young = orphan(site), None
    site.commit(*up("b"))
    young = orphan(site)
    site.clock.advance(KEEP_SECONDS)
    site.collect()
    assert [site.store.get(key) is not None for key in (fenced, of_compactor, forgotten, young)] == [False, False, False, True]
    site.commit(*up("c"))
    site.clock.advance(KEEP_SECONDS)
    site.collect()
    assert site.store.get(young) is None


# ---- slow writers ---------------------------------------------------------------------------------------------------------


def slow_builder(site: Site) -> None:
    """A builder uploads its parts, sleeps for a week while everything is collected, and commits."""
    site.commit(*up("a"))
    site.feed(*up("slow"))
    slept: list[str] = []

    def sleep(key: str) -> None:
        if "/manifest/" in key and not slept:
            slept.append(key)
            site.clock.advance(7 * 86400)
            site.collect()

    site.store.before_put = sleep
    assert site.builder.commit() is not None and slept
    site.check()


def slow_compactor(site: Site) -> None:
    for n in range(4):
        site.commit(*up(f"a{n}"))
    compactor, slept = site.new_compactor(), []

    def sleep(key: str) -> None:
        if "/manifest/" in key and not slept:
            slept.append(key)
            site.commit(*gone("a2"), *up("b"))
            site.clock.advance(7 * 86400)
            site.collect()

    site.store.before_put = sleep
    assert compactor.compact() is not None
    site.check()


@pytest.mark.parametrize("slow", [slow_builder, slow_compactor])
def test_a_writer_that_sleeps_between_upload_and_commit_loses_nothing(site: Site, slow: Callable[[Site], None]) -> None:
    slow(site)
    site.clock.advance(KEEP_SECONDS)
    site.collect()
    site.check()


@pytest.mark.parametrize("slow", [slow_builder, slow_compactor])
def test_by_age_alone_it_would(site: Site, slow: Callable[[Site], None], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(garbage, "is_dead", lambda parsed, info, head, since: info.modified_seconds <= since)
    with pytest.raises(SnapshotError):
        slow(site)


def test_a_zombie_that_wakes_after_its_parts_were_collected_is_fenced(site: Site) -> None:
    site.commit(*up("a"))
    site.feed(*up("b"))
    zombie, woken = site.builder, []

    def replaced(key: str) -> None:
        if "/manifest/" in key and not woken:
            woken.append(key)
            site.builder = site.new_builder()
            record = site.engines.log.read_at(site.index.vectors_topic, 0, site.at)
            assert record is not None
            site.builder.feed(record)
            site.at += 1
            assert site.builder.commit() is not None
            site.clock.advance(KEEP_SECONDS)
            site.collect()

    site.store.before_put = replaced
    with pytest.raises(FencedError):
        zombie.commit()
    site.check()


def recreated(site: Site) -> None:
    """slatedb 352: the number of a collected manifest is created again by a compactor that slept."""
    for n in range(4):
        site.commit(*up(f"a{n}"))
    compactor, slept = site.new_compactor(), []

    def sleep(key: str) -> None:
        if "/manifest/" in key and not slept:
            slept.append(key)
            for n in range(3):
                site.commit(*gone(f"a{n}"))
            site.clock.advance(KEEP_SECONDS)
            site.collect()
            assert int(key[-25:-5]) not in site.versions()

    site.store.before_put = sleep
    read = compactor.compact()
    assert read is not None and read.manifest.version == site.check().manifest.version
    site.clock.advance(KEEP_SECONDS)
    site.collect()
    assert site.versions() == [read.manifest.version] and site.unreferenced() == set()


def test_a_collected_number_that_is_created_again_is_not_believed(site: Site) -> None:
    recreated(site)


def test_without_the_boundary_it_would_be(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("backends.catalog.manifests.VersionChain.boundary", lambda self: 0)
    with pytest.raises(AssertionError):
        recreated(site)


def test_with_the_boundary_read_before_the_put_it_would_be(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    create, boundary = VersionChain.create, VersionChain.boundary
    early: list[int] = []

    def read_before(chain: VersionChain[Any], manifest: Any) -> Any:
        early.append(boundary(chain))
        try:
            return create(chain, manifest)
        finally:
            early.pop()

    monkeypatch.setattr(VersionChain, "create", read_before)
    monkeypatch.setattr(
        VersionChain, "_above_boundary", lambda chain, manifest, data: ReadVersion(manifest, data) if manifest.version > early[-1] else None
    )
    with pytest.raises(AssertionError):
        recreated(site)


# ---- slow readers and pins ------------------------------------------------------------------------------------------------


def test_a_reader_that_slept_is_sent_to_the_newest_manifest(site: Site) -> None:
    site.commit(*up("a"))
    slow = site.chain.head()
    assert slow is not None
    for n in range(3):
        site.commit(*up(f"b{n}"))
    site.clock.advance(KEEP_SECONDS)
    site.collect()
    with pytest.raises(SnapshotError):
        site.chain.follow(slow)
    assert site.chain.head() is not None


def pinned(site: Site) -> list[SegmentEntry]:
    """A copy is made of one version while it is compacted away and collected; the objects that it still finds."""
    for n in range(4):
        site.commit(*up(f"a{n}"))
    read = site.chain.head()
    assert read is not None
    key = pin_version(site.chain, read.manifest.version, 10_000, site.clock)
    maintain(site, site.new_compactor())
    site.clock.advance(KEEP_SECONDS)
    site.collect()
    found: Manifest | None = None if (again := site.chain.read(read.manifest.version)) is None else again.manifest
    left = [segment for segment in read.manifest.segments if site.store.get(segment.parts["rows"].key) is not None]
    assert found == read.manifest and len(left) == 4
    site.store.delete(key)
    site.collect()
    assert site.unreferenced() == set() and len(site.versions()) == 1
    return left


def test_a_pinned_version_stays_whole_until_its_pin_is_gone(site: Site) -> None:
    pinned(site)


def test_a_collector_that_ignores_pins_is_caught(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(garbage, "read_pins", lambda store, keys, now: (set(), []))
    with pytest.raises(AssertionError):
        pinned(site)


def test_pins_listed_before_the_boundary_is_raised_would_miss_one(site: Site) -> None:
    """A pin put between the two is refused by its reader, or respected: never neither."""
    for n in range(3):
        site.commit(*up(f"a{n}"))
    read = site.chain.head()
    assert read is not None
    site.commit(*up("b"))
    site.clock.advance(KEEP_SECONDS)
    outcome: list[str] = []
    real = site.chain.__class__.advance_boundary

    def race(chain, version):  # type: ignore[no-untyped-def]
        site.chain.__class__.advance_boundary = real
        before = pin_version(site.chain, read.manifest.version, 1000, site.clock)  # sees the old boundary
        outcome.append(before)
        return real(chain, version)

    site.chain.__class__.advance_boundary = race
    try:
        site.collect()
    finally:
        site.chain.__class__.advance_boundary = real
    assert outcome and site.chain.read(read.manifest.version) is not None
    with pytest.raises(SnapshotError):
        pin_version(site.chain, read.manifest.version, 1000, site.clock)  # sees the new one


def test_the_pin_of_a_reader_that_died_ends(site: Site) -> None:
    site.commit(*up("a"))
    key = pin_version(site.chain, site.builder.manifest.version, 50, site.clock)
    site.clock.advance(50 + CLOCK_SECONDS)
    assert read_pins(site.store, site.source.keys, site.clock.now_seconds())[0] == {site.builder.manifest.version}
    site.clock.advance(1)
    site.collect()
    assert site.store.get(key) is None


# ---- collectors ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(6))
def test_builders_compactors_and_collectors_that_meet_anywhere_agree_with_a_dictionary(site: Site, seed: int) -> None:
    """Between any two requests of one, the others may do their whole work; claims change, time passes."""
    meeting = Meeting(site, random.Random(seed))
    for _ in range(60):
        meeting.act()
        with meeting.apart():
            site.check()
    with meeting.apart():
        site.commit(*up("last"))
        maintain(site, site.new_compactor())
        site.clock.advance(KEEP_SECONDS)
        site.collect()
        site.check()
        assert len(site.versions()) == 1
    of_the_living = f"/b{site.builder.committer.epoch:010d}/"
    assert not [key for key in site.unreferenced() if of_the_living not in key and "/m" not in key.removeprefix(site.source.keys.prefix)]


class Meeting:
    """Before any put or delete of one actor, another may do its whole work, once deep."""

    def __init__(self, site: Site, choice: random.Random) -> None:
        self.site, self.choice, self.is_inside = site, choice, False
        self.compactor = site.new_compactor()
        site.store.before_put = site.store.before_delete = self.step

    def step(self, key: str) -> None:
        if not self.is_inside and self.choice.random() < 0.15:
            with self.apart():
                self.act()

    @contextmanager
    def apart(self) -> Iterator[None]:
        self.is_inside = True
        yield
        self.is_inside = False

    def act(self) -> None:
        site, choice = self.site, self.choice
        site.clock.advance(choice.choice([0, 1, KEEP_SECONDS, 10 * KEEP_SECONDS]))
        what = choice.randrange(4)
        try:
            if what == 0 and site.builder.growing is None and not site.builder.is_committing:
                site.commit(*random_items(choice, IDS, choice.randrange(1000)))
            elif what == 1:
                self.compactor.compact()
            elif what == 2:
                site.collect()
            elif choice.random() < 0.3:
                self.compactor = site.new_compactor()
        except (SnapshotError, FencedError):
            pass


def test_a_collector_that_another_one_has_overtaken_says_so(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    for n in range(3):
        site.commit(*up(f"a{n}"))
    slow = site.collector()
    head = slow.chain.head

    def overtaken():  # type: ignore[no-untyped-def]
        read = head()
        site.commit(*up("b"))
        site.clock.advance(KEEP_SECONDS)
        site.collect()
        return read

    monkeypatch.setattr(slow.chain, "head", overtaken)
    with pytest.raises(SnapshotError):
        slow.collect()
    boundary = site.chain.boundary()
    assert boundary > 0 and site.chain.advance_boundary(1) == boundary, "the boundary never goes back"


def test_what_is_none_of_ours_is_left_alone(site: Site) -> None:
    site.commit(*up("a"))
    key = f"{site.source.keys.prefix}notes/{ULID()}.txt"
    site.store.put_if_absent(key, b"somebody's own")
    site.clock.advance(10 * KEEP_SECONDS)
    site.collect()
    assert site.store.get(key) is not None


# ---- archives and deleted collections --------------------------------------------------------------------------------------


def test_old_manifests_of_an_archive_go_and_its_newest_stays() -> None:
    site = Site()
    ensure_archive(site.engines, site.collection, 0)
    chain = archive_chain(site.store, site.collection, 0)
    archiver = Committer(chain, "archiver", "archiver-1", site.clock, lambda: None)
    for _ in range(4):
        archiver.claim()
        dead = chain.keys.tar("b", archiver.epoch, str(ULID()))
        site.store.put_if_absent(dead, b"never committed")
    site.clock.advance(KEEP_SECONDS)
    archiver.claim()
    assert collect_archive(chain, site.clock, KEEP_SECONDS) == {"archive_manifest": 4, "archive_tar": 4}
    read = chain.head()
    assert read is not None and read.manifest.epochs.archiver == 5
    assert archiver.look().manifest.version == archiver.claim().manifest.version - 1


def test_a_deleted_collection_goes_with_all_its_objects_and_its_namesake_stays(site: Site) -> None:
    site.commit(*up("a"))
    old, name = site.collection, site.collection.name
    prefix = CollectionKeys(name, old.incarnation).prefix
    assert sweep_dead_collections(site.store, site.clock, KEEP_SECONDS) == {}
    delete_collection(site.engines, name)
    new = make_collection(site.engines, name, partitions=1)
    assert sweep_dead_collections(site.store, site.clock, KEEP_SECONDS) == {}, "readers of the old one may still be at work"
    site.clock.advance(KEEP_SECONDS)
    objects = len(list(site.store.list(prefix)))
    assert objects > 3 and sweep_dead_collections(site.store, site.clock, KEEP_SECONDS) == {name: objects}
    assert list(site.store.list(prefix)) == [] and CollectionCatalog(site.store).get(name) == new
    site.store.put_if_absent(site.source.keys.part("b", 1, str(ULID()), "rows"), b"of a builder that does not know")
    assert sweep_dead_collections(site.store, site.clock, KEEP_SECONDS) == {name: 1}


def test_a_collection_that_has_no_name_yet_is_being_created(site: Site) -> None:
    keys = CollectionKeys("young", str(ULID()))
    site.store.put_if_absent(keys.version(1), site.collection.to_bytes())
    site.clock.advance(1000 * KEEP_SECONDS)
    assert sweep_dead_collections(site.store, site.clock, KEEP_SECONDS) == {} and site.store.get(keys.version(1)) is not None


def test_a_dropped_index_goes_with_all_its_objects_and_the_one_that_answers_stays(site: Site) -> None:
    site.commit(*up("a"))
    record = add_index(site.engines, site.collection, {0: 0})
    name, keys = record.name, CollectionKeys(record.name, record.incarnation)
    old, begun = (keys.index(index.name) for index in record.indexes)
    site.store.put_if_absent(keys.index("begun-now").partition(0).part("b", 1, str(ULID()), "rows"), b"of an index that the record will name")
    kept = [info.key for info in site.store.list(old.prefix)]

    def sweep() -> dict[str, int]:
        return sweep_dead_indexes(site.store, site.clock, KEEP_SECONDS)

    site.clock.advance(2 * KEEP_SECONDS)
    assert sweep() == {}, "it is in use"
    drop_index(site.engines, record, begun.index)
    assert sweep() == {}, "a query node may still load it"
    site.clock.advance(KEEP_SECONDS)
    objects = len(list(site.store.list(begun.prefix)))
    assert objects > 0 and sweep() == {name: objects} and list(site.store.list(begun.prefix)) == []
    site.store.put_if_absent(begun.partition(0).part("b", 1, str(ULID()), "rows"), b"of a builder that does not know")
    assert sweep() == {name: 1}
    assert [info.key for info in site.store.list(old.prefix)] == kept
    assert len(list(site.store.list(keys.index("begun-now").prefix))) == 1
