"""Compaction against a dictionary: what is live stays findable, what is dead goes and is accounted for, whoever else commits meanwhile."""

from __future__ import annotations

import random
import threading
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from pyroaring import BitMap
from ulid import ULID

from backends.catalog.objects import download
from contracts.errors import FencedError, SnapshotError, UnavailableError
from contracts.manifest import ReadManifest
from contracts.segment import read_rows_part
from contracts.store import PutOutcome
from contracts.vectors_batch import BatchItem
from indexer import compacted_deletes
from indexer.compactor import IDLE_SECONDS, PartitionCompactor
from indexer.id_sections import read_ids
from indexer.recode import PartPlace, recode_part, upload_again
from indexer.train_index import IndexTrainer
from tests.indexer.maintained import Site, gone, random_items, unit, up

IDS = [f"id-{n}" for n in range(40)]
DAY = 86400


@pytest.fixture
def site() -> Site:
    return Site()


def run_all(compactor: PartitionCompactor) -> list[ReadManifest]:
    done = []
    while (read := compactor.compact()) is not None:
        done.append(read)
        assert len(done) < 100, "compaction does not come to an end"
    return done


def verdicts(site: Site) -> Counter[str]:
    return Counter({verdict: sum(run.items for run in site.read().ledger if run.verdict == verdict) for verdict in ("row", "superseded", "deleted")})


def test_many_small_commits_become_few_pieces_and_nothing_else_changes(site: Site) -> None:
    choice = random.Random(1)
    for number in range(60):
        site.commit(*random_items(choice, IDS, number))
    before = site.check()
    assert len(before.manifest.segments) > 40 and len(before.manifest.ledger) == 60
    assert run_all(site.new_compactor())
    after = site.check()
    assert len(after.manifest.segments) <= 4 and len(after.manifest.ledger) <= 4 and len(after.manifest.deletes) <= 1
    assert after.live == before.live and after.vectors.keys() == before.vectors.keys()
    same = ("checkpoint", "origin_offset", "schema_version", "generation")
    assert [getattr(after.manifest, name) for name in same] == [getattr(before.manifest, name) for name in same]
    changed = {place: (before.verdicts()[place], found) for place, found in after.verdicts().items() if found != before.verdicts()[place]}
    assert changed and set(changed.values()) <= {("row", "superseded"), ("row", "deleted")}


def test_rows_that_died_are_counted_as_what_took_them(site: Site) -> None:
    site.commit(*up("kept", "updated", "deleted", "deleted and back"))
    site.commit(*up("updated", text="new"))
    site.commit(*gone("deleted", "deleted and back"))
    site.commit(*up("deleted and back", text="again"))
    run_all(site.new_compactor())
    found = site.check().verdicts()
    assert [found[offset, 0] for offset in range(8)] == ["row", "superseded", "deleted", "deleted", "row", "delete", "delete", "row"]


@pytest.mark.parametrize("seed", range(8))
def test_a_builder_that_commits_while_a_compaction_is_under_way_loses_nothing(site: Site, seed: int) -> None:
    choice = random.Random(seed)
    for number in range(12):
        site.commit(*random_items(choice, IDS[:12], number))
    compactor, commits = site.new_compactor(), [0]

    def meanwhile(key: str) -> None:
        """Between any two puts of the compactor, its manifest's included, the builder may commit."""
        if "/m" in key and commits[0] < 30 and choice.random() < 0.5:
            commits[0] += 1
            before, site.store.before_put = site.store.before_put, lambda other: None
            site.commit(*random_items(choice, IDS[:12], 100 + commits[0]))
            site.store.before_put = before

    for turn in range(8):
        for number in range(4):
            site.commit(*random_items(choice, IDS[:12], 10 * turn + number))
        site.store.before_put = meanwhile
        compactor.compact()
        site.store.before_put = lambda key: None
        site.check()
    run_all(compactor)
    assert commits[0] > 5 and len(site.check().manifest.segments) <= 5


def deleted_meanwhile(site: Site) -> None:
    for n in range(4):
        site.commit(*up(f"a{n}", f"b{n}"))
    done: list[str] = []

    def delete_one(key: str) -> None:
        if "/manifest/" in key and not done:
            done.append(key)
            site.commit(*gone("a1"), *up("b2", text="newer"))

    compactor = site.new_compactor()
    site.store.before_put = delete_one
    assert compactor.compact() is not None and done
    site.check()


def test_a_row_deleted_between_reading_and_committing_stays_deleted(site: Site) -> None:
    deleted_meanwhile(site)
    run_all(site.new_compactor())
    assert "a1" not in site.check().live


def test_without_looking_at_the_deletes_anew_it_would_come_back(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compacted_deletes, "_meanwhile", lambda deletes, inputs: BitMap())
    with pytest.raises(AssertionError):
        deleted_meanwhile(site)


def test_a_zombie_compactor_commits_nothing(site: Site) -> None:
    for n in range(8):
        site.commit(*up(f"a{n}"))
    zombie = site.new_compactor()
    woken: list[str] = []

    def replace_it(key: str) -> None:
        if "/manifest/" in key and not woken:
            woken.append(key)
            run_all(site.new_compactor())

    site.store.before_put = replace_it
    with pytest.raises(FencedError):
        zombie.compact()
    with pytest.raises(FencedError):
        zombie.committer.commit(None, lambda manifest: {}, str(ULID()))
    assert len(site.check().manifest.segments) <= 2


def test_inputs_that_went_away_make_it_begin_again(site: Site) -> None:
    """One claim, two threads of work: what the first left behind is refused by name, not by epoch."""
    for n in range(4):
        site.commit(*up(f"a{n}"))
    compactor, rival, done = site.new_compactor(), site.new_compactor(), []
    compactor.committer.epoch = rival.committer.epoch

    def overtake(key: str) -> None:
        if "/manifest/" in key and not done:
            done.append(key)
            run_all(rival)

    site.store.before_put = overtake
    with pytest.raises(SnapshotError):
        compactor.compact()
    assert compactor.compact() is None and len(site.check().manifest.segments) == 1


@pytest.mark.parametrize("stored", [True, False])
def test_after_an_unknown_outcome_either_manifest_is_good(site: Site, stored: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("backends.catalog.manifests.time.sleep", lambda seconds: None)
    for n in range(4):
        site.commit(*up(f"a{n}"))
    compactor = site.new_compactor()
    site.store.script = [(stored, PutOutcome.UNKNOWN)] * 10
    if stored:
        assert compactor.compact() is not None
    else:
        with pytest.raises(UnavailableError):
            compactor.compact()
    site.store.script = []
    site.check()
    run_all(compactor)
    site.commit(*gone("a1"))
    assert len(site.check().manifest.segments) == 1


# ---- time -----------------------------------------------------------------------------------------------------------------


def at(site: Site, seconds: float) -> dict[str, Any]:
    return {"event_time_us": int((site.clock.now_seconds() + seconds) * 1e6)}


def test_expired_rows_go_and_are_counted_as_expired() -> None:
    site = Site(retention=10 * DAY)
    site.commit(*up("old", **at(site, -9 * DAY)), *up("new", **at(site, 0)))
    site.commit(*up("older", **at(site, -12 * DAY)))
    compactor = site.new_compactor()
    run_all(compactor)
    assert site.read().live.keys() == {"old", "new"} and site.read().verdicts()[2, 0] == "expired"
    site.clock.advance(1 * DAY - 1)
    assert run_all(compactor) == []
    site.clock.advance(3 * DAY)  # a piece is rewritten once its oldest rows expired a window ago, not for every row
    run_all(compactor)
    del site.live["old"], site.live["older"]
    assert site.check().verdicts() == {(0, 0): "expired", (1, 0): "row", (2, 0): "expired"}


def test_tombstones_outlive_compaction_for_31_days_and_no_longer() -> None:
    site = Site()
    site.commit(*up("a"))
    site.commit(*gone("a"))
    compactor = site.new_compactor()

    def tombstones() -> int:
        compactor.deletes.load(compactor.committer.look().manifest)
        return sum(len(delta.tombstones) for delta in compactor.deletes.deltas)

    for days in (0, 30, 2):
        site.clock.advance(days * DAY)
        for n in range(4):
            site.commit(*up(f"more-{days}-{n}"))
        run_all(compactor)
        assert tombstones() == (0 if days == 2 else 1)
    assert site.check().manifest.deletes == ()


def test_a_replayed_record_loses_to_a_delete_also_after_compaction(site: Site) -> None:
    site.commit(BatchItem(0, 0, "reject", reason="decode_failed"))
    site.commit(*up("a"))
    site.commit(*gone("a"))
    site.commit(*up("b"))
    run_all(site.new_compactor())
    site.commit(BatchItem(0, 0, "upsert", "a", vectors={"vec": unit("a")}, text="replayed", origin_offset=0, origin_item=0))
    site.live.pop("a")
    assert site.check().verdicts()[4, 0] == "superseded"


# ---- codes ----------------------------------------------------------------------------------------------------------------


def train(site: Site) -> None:
    found = IndexTrainer(site.engines, site.collection, site.codecs).run(site.builder.manifest, {"vec"}, threading.Event())
    site.codecs.adopt(found.quantizers["vec"])


def test_flat_and_coded_segments_become_one_in_codes_that_are_moved_not_made_anew() -> None:
    site = Site(train_rows=300)
    for start in (0, 100, 200):
        site.commit(*up(*(f"first-{n}" for n in range(start, start + 100))))
    train(site)
    site.commit(*up(*(f"second-{n}" for n in range(100))), BatchItem(0, 0, "upsert", "bare", text="no vector"))
    site.commit(*up(*(f"third-{n}" for n in range(100))))
    site.commit(*gone("first-7", "second-7"), *up("first-8", text="newer"))
    before = site.read()
    assert before.layouts == ["flat"] * 3 + ["ivf"] * 3
    run_all(site.new_compactor())
    after = site.check()
    assert after.layouts == ["ivf"] and "bare" not in after.vectors and after.manifest.rows == len(site.live)
    coded = [name for name in after.vectors if not name.startswith("first-")]
    assert coded and all(after.vectors[name] == before.vectors[name] for name in coded), "codes were made anew"


def test_a_part_that_a_builder_re_encodes_meanwhile_does_not_stop_a_compaction() -> None:
    site = Site(train_rows=300)
    for n in range(4):
        site.commit(*up(*(f"{n}-{m}" for m in range(100))))
    train(site)
    compactor, done = site.new_compactor(), []

    def recode(key: str) -> None:
        if "/manifest/" in key and not done:
            done.append(key)
            field = site.index.fields[0]
            place = PartPlace(site.store, site.source.keys, site.builder.committer.epoch, site.builder.ulids)
            part = recode_part(place, site.builder.manifest.segments[0], field, site.codecs.quantizer(field, 1), 1)
            assert part is not None and site.builder.replace_part(part) is not None

    site.store.before_put = recode
    assert compactor.compact() is not None and done
    assert len(site.check().manifest.segments) == 1


def test_a_part_uploaded_under_an_older_claim_is_uploaded_again() -> None:
    site = Site(train_rows=300)
    site.commit(*up(*(f"{m}" for m in range(300))))
    train(site)
    field = site.index.fields[0]
    place = PartPlace(site.store, site.source.keys, site.builder.committer.epoch, site.builder.ulids)
    part = recode_part(place, site.builder.manifest.segments[0], field, site.codecs.quantizer(field, 1), 1)
    site.builder = site.new_builder()
    assert part is not None and site.builder.replace_part(part) is None
    place = PartPlace(site.store, site.source.keys, site.builder.committer.epoch, site.builder.ulids)
    assert site.builder.replace_part(upload_again(place, part)) is not None


def test_patched_rows_keep_their_place_of_media_and_a_patch_finds_its_row_in_a_compacted_segment(site: Site) -> None:
    site.commit(*up("a", "b"))
    site.commit(BatchItem(0, 0, "patch", "a", patch='{"n": 1}'))
    site.commit(*up("c"))
    site.commit(*up("d"))
    run_all(site.new_compactor())
    site.commit(BatchItem(0, 0, "patch", "a", patch='{"m": 2}'))
    stored = site.check()
    assert stored.live["a"] == (5, 0) and np.allclose(stored.vectors["a"], unit("a"), atol=0.05)


def test_a_large_rows_part_is_asked_for_its_ids_alone(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    text = "".join(random.Random(1).choices("abcdefgh", k=9000))
    site.commit(*up(*(f"id-{n}" for n in range(300)), text=text))
    entry = site.builder.manifest.segments[0].parts["rows"]
    assert entry.size_bytes > 2 * 1024 * 1024
    read: list[int] = []
    real: Callable[..., Any] = site.store.get_range
    monkeypatch.setattr(site.store, "get_range", lambda key, start, length: read.append(length) or real(key, start, length))
    found = read_ids(site.store, entry)
    whole = read_rows_part(download(site.store, entry), entry.key).ids
    assert (found.hashes == whole.hashes).all() and (found.rows == whole.rows).all() and sum(read) < 3 * 1024 * 1024


def test_a_look_at_a_partition_at_rest_costs_two_requests_and_no_listing(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    for n in range(6):
        site.commit(*up(f"a{n}"))
    compactor = site.new_compactor()
    run_all(compactor)
    asked: list[str] = []
    for name in ("get", "list", "get_range", "head"):
        real: Callable[..., Any] = getattr(site.store, name)
        monkeypatch.setattr(site.store, name, lambda *args, real=real, name=name: asked.append(name) or real(*args))
    assert compactor.compact() is None and asked == ["get", "get"]
    site.clock.advance(IDLE_SECONDS)
    assert compactor.compact() is None and asked[2:] == ["get", "get", "list"]
