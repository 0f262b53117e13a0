"""`headwater verify` on an SQLite log and a folder store: exit codes, table, JSON, repair."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest
from ulid import ULID

from backends.catalog.collections import CollectionCatalog
from contracts.collection import CollectionRecord
from contracts.engines import Engines
from contracts.settings import load_settings
from headwater.wiring import open_engines
from indexer.dead_letter import read_dead_letter
from indexer.verify.findings import CODES
from indexer.verify.ledger_check import STATES
from tests.headwater.conftest import Headwater
from tests.indexer.audited import all_roles, chain, flip, head, make_feed, settle
from tests.indexer.conftest import produce, running

ROOT = Path(__file__).parents[2]


def tuned() -> Engines:
    settings = load_settings(seal_seconds=0.3, embed_watchdog_seconds=0.5, archive_seconds=0.3)
    return open_engines(settings)  # type: ignore[return-value]


@pytest.fixture
def feed(workplace: Path) -> CollectionRecord:
    with tuned() as engines:  # type: ignore[attr-defined]
        return make_feed(engines)


def forget_letters(engines: Engines, collection: CollectionRecord, partition: int, keep_last: int = 0) -> None:
    """A dead-letter topic that was made again and holds only the last letters of one partition, so that nothing looks like retention."""
    topic = collection.dead_letter_topic
    bounds = engines.log.bounds(topic)
    letters = {p: [engines.log.read_at(topic, p, at) for at in range(bound.start_offset, bound.next_offset)] for p, bound in bounds.items()}
    letters[partition] = letters[partition][len(letters[partition]) - keep_last :]
    info = engines.log.describe_topic(topic)
    assert info is not None
    engines.log.delete_topic(topic)
    from contracts.log import TopicSpec

    engines.log.create_topic(TopicSpec(topic, info.partitions, -1))
    producer = engines.log.producer()
    for p, records in letters.items():
        for record in records:
            assert record is not None
            headers = [(name, value or b"") for name, value in record.headers]
            producer.send(topic, partition=p, key=record.key, value=record.value, headers=headers)
    producer.flush(10)
    producer.close()


def test_a_healthy_collection_is_ok_in_words_and_in_json(headwater: Headwater, feed: CollectionRecord) -> None:
    ended = headwater("verify", "feed")
    assert ended.code == 0 and ended.out.splitlines()[-1].startswith("ok: every item is in exactly one state")
    assert "findings" not in ended.out
    document = json.loads(headwater("verify", "feed", "--json").out)
    assert (document["ok"], document["exit_code"], document["findings"], document["repair"]) == (True, 0, [], None)
    assert list(document["partitions"][0]["states"]) == list(STATES)
    assert [(one["checkpoint_offset"], one["log_next_offset"], one["states"]["indexed"]) for one in document["partitions"]] == [(14, 14, 49)] * 2
    assert [one["records"] for one in document["archive"]] == [14, 14]


def test_a_fault_ends_with_exit_code_6_and_says_where_and_what_to_do(headwater: Headwater, feed: CollectionRecord) -> None:
    with open_engines(load_settings()) as engines:
        entry = head(engines, feed, 1).segments[0].parts["rows"]
        flip(engines, entry.key)
    ended = headwater("verify", "feed")
    text = "".join(ended.out.split())
    assert ended.code == 6 and ended.out.splitlines()[-1].startswith("FAULTS: 1; warnings: 0;")
    for said in ("object_damaged", "main partition 1", entry.key, "offsets 0 to 1", "restore the object", "unknown"):
        assert "".join(said.split()).lower() in text.lower(), said
    document = json.loads(headwater("verify", "feed", "--json", "--store-only").out)
    assert (document["exit_code"], document["counts"], document["checked"]["log"]) == (6, {"not_checked": 1, "object_damaged": 1}, False)
    first = document["findings"][0]
    assert (first["object"], first["partition"], first["start_offset"], first["id"]) == (entry.key, 1, 0, None) and first["hint"]


def test_a_warning_ends_with_exit_code_1(headwater: Headwater, feed: CollectionRecord) -> None:
    with tuned() as engines, running(*all_roles(engines, feed)):  # type: ignore[attr-defined]
        produce(engines, feed, 1, ["0-3"])
        settle(engines, feed)
    ended = headwater("verify", "feed")
    assert ended.code == 1 and "id_in_two_partitions" in ended.out and "0-3" in ended.out
    assert ended.out.splitlines()[-1].startswith("warnings: 1; no faults")


@pytest.mark.parametrize("source", ["media topic", "archive"])
def test_missing_dead_letters_are_named_and_sent_again_from_where_the_record_still_is(
    headwater: Headwater, feed: CollectionRecord, source: str
) -> None:
    with open_engines(load_settings()) as engines:
        before = engines.log.read_at(feed.dead_letter_topic, 0, 0)
        forget_letters(engines, feed, 0)
        if source == "archive":
            engines.log.truncate(feed.source_topic, {0: 14})
    broken = json.loads(headwater("verify", "feed", "--json").out)
    assert broken["exit_code"] == 6 and broken["counts"] == {"dead_letter_missing": 2}
    assert [(one["index"], one["partition"], one["start_offset"], one["start_item"]) for one in broken["findings"]] == [
        ("main", 0, 1, 0),
        ("main", 0, 12, 0),
    ]
    looked = headwater("verify", "feed", "--repair", "--dry-run")
    assert looked.code == 6 and f"send the dead letter of 0/1 (index main) again, from the {source}" in looked.out
    refused = headwater("verify", "feed", "--repair")
    assert refused.code == 2 and "needs a yes" in refused.err
    done = headwater("verify", "feed", "--repair", "--yes")
    assert done.code == 0 and "2 dead letters sent" in done.out and done.out.splitlines()[-1].startswith("ok:")
    assert headwater("verify", "feed").code == 0
    with open_engines(load_settings()) as engines:
        again = engines.log.read_at(feed.dead_letter_topic, 0, 0)
    assert before is not None and again is not None
    old, new = read_dead_letter(before), read_dead_letter(again)
    assert old is not None and new is not None
    assert (new.place, new.reasons, new.items, new.original) == (old.place, old.reasons, old.items, old.original)


def test_letters_that_retention_took_are_no_fault_and_those_it_did_not_take_are(headwater: Headwater, feed: CollectionRecord) -> None:
    with open_engines(load_settings()) as engines:
        engines.log.truncate(feed.dead_letter_topic, {0: 1})
    document = json.loads(headwater("verify", "feed", "--json").out)
    assert (document["exit_code"], document["counts"]) == (0, {"dead_letter_expired": 1})
    assert (document["findings"][0]["partition"], document["findings"][0]["start_offset"]) == (0, 1)


def orphan(engines: Engines, record: CollectionRecord, epoch: int, age_days: float, workplace: Path) -> str:
    key = chain(engines, record, 0).keys.part("b", epoch, str(ULID()), "rows")
    engines.store.put_if_absent(key, b"left by a writer that died")
    then = time.time() - age_days * 86_400
    os.utime(workplace / "store" / key, (then, then))
    return key


def test_only_dead_orphans_are_deleted_and_none_beside_a_fault(headwater: Headwater, feed: CollectionRecord, workplace: Path) -> None:
    with open_engines(load_settings()) as engines:
        record = CollectionCatalog(engines.store).get("feed")
        current = head(engines, record, 0).epochs.builder
        dead = orphan(engines, record, current - 1, 2, workplace)
        young, living = orphan(engines, record, current - 1, 0.1, workplace), orphan(engines, record, current, 2, workplace)
        damaged = head(engines, record, 1).segments[0].parts["rows"]
    document = json.loads(headwater("verify", "feed", "--json").out)
    assert document["exit_code"] == 0 and document["counts"] == {"orphan": 3}
    assert {one["object"] for one in document["findings"]} == {dead, young, living}
    with open_engines(load_settings()) as engines:
        flip(engines, damaged.key)
    kept = headwater("verify", "feed", "--repair", "--yes")
    assert kept.code == 6 and "1 dead objects stay until the faults are mended (object_damaged)" in kept.out
    with open_engines(load_settings()) as engines:
        flip(engines, damaged.key)
    done = json.loads(headwater("verify", "feed", "--repair", "--yes", "--json").out)
    assert done["repair"]["done"]["orphans"] == [dead]
    with open_engines(load_settings()) as engines:
        assert [engines.store.head(key) is not None for key in (dead, young, living)] == [False, True, True]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("nothing",), "does not exist"),
        (("feed", "--repair", "--store-only"), "a repair needs the log"),
        (("feed", "--yes"), "belong to --repair"),
    ],
)
def test_what_cannot_be_is_one_line(headwater: Headwater, arguments: tuple[str, ...], says: str) -> None:
    assert headwater("collection", "create", "feed", "--vector", "v:4").code == 0
    ended = headwater("verify", *arguments)
    assert ended.code == 2 and says in ended.err


def test_every_code_is_on_the_page_with_its_level_and_meaning() -> None:
    text = (ROOT / "docs" / "verify.md").read_text()
    assert not [kind for kind, code in CODES.items() if f"| `{kind}` | {code.level} | {code.meaning} | {code.hint} |" not in text]
