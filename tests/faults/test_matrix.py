"""The matrix is whole, and what judges it is not vacuous: the checker finds what is planted."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from backends.catalog.admin import CollectionRequest, create_collection
from contracts.collection import CollectionRecord
from contracts.engines import Engines
from ingest.producer import MediaProducer
from tests.faults.checker import Account, Found, check, compare, stored_rows
from tests.faults.crash_points import Points, parse_aim
from tests.faults.journal import Acknowledged, Journal, read_journals
from tests.faults.load import ATTRIBUTES, DIMENSION, FIELD, Load
from tests.faults.matrix import NAMES, SKIPPED, matrix
from tests.query.writer import own_field


def test_each_of_the_47_faults_is_run_or_says_why_not() -> None:
    faults = matrix()
    assert [fault.number for fault in faults] == list(range(1, 48)) == sorted(NAMES)
    assert not [fault.number for fault in faults if not fault.variants and not fault.reason]
    assert not [fault.number for fault in faults if fault.variants and fault.number in SKIPPED]
    assert sum(bool(fault.variants) for fault in faults) >= 40


def entry(op: str, item_id: str, seq: int, offset: int, partition: int = 0) -> Acknowledged:
    return Acknowledged(op, item_id, seq, partition, offset, 0, 0.0)


JOURNAL = Journal(
    [
        entry("upsert", "a", 1, 0),
        entry("upsert", "b", 2, 1),
        entry("patch", "a", 3, 2),
        entry("upsert", "c", 4, 0, 1),
        entry("delete", "b", 5, 3),
        entry("upsert", "c", 6, 1, 1),
    ]
)
WHOLE = (Found("a", 1, 3, (0, 2, 0)), Found("c", 6, None, (1, 1, 0)))


def test_a_state_that_agrees_is_whole() -> None:
    account = Account()
    compare(account, "stored", JOURNAL, WHOLE)
    assert account.is_whole


@pytest.mark.parametrize(
    ("found", "lost", "duplicated", "resurrected"),
    [
        (WHOLE[:1], 1, 0, 0),
        ((replace(WHOLE[0], note=None), WHOLE[1]), 1, 0, 0),
        ((WHOLE[0], replace(WHOLE[1], seq=4)), 1, 0, 0),
        ((WHOLE[0], replace(WHOLE[1], place=(1, 0, 0))), 1, 0, 0),
        ((WHOLE[0], replace(WHOLE[1], vector=(1.0,) + (0.0,) * (DIMENSION - 1))), 1, 0, 0),
        ((*WHOLE, WHOLE[1]), 0, 1, 0),
        ((*WHOLE, replace(WHOLE[1], place=(1, 0, 0))), 1, 1, 0),
        ((*WHOLE, Found("b", 2, None, (0, 1, 0))), 0, 0, 1),
    ],
    ids=["missing", "patch lost", "update lost", "older place", "another vector", "twice", "old and new", "deleted and back"],
)
def test_what_is_planted_in_a_scan_is_found(found: tuple[Found, ...], lost: int, duplicated: int, resurrected: int) -> None:
    account = Account()
    compare(account, "stored", JOURNAL, found)
    assert (account.lost, account.duplicated, account.resurrected) == (lost, duplicated, resurrected) and not account.is_whole


def test_a_row_that_was_never_acknowledged_is_told() -> None:
    account = Account()
    compare(account, "stored", JOURNAL, (*WHOLE, Found("x", 9, None, (0, 9, 0))))
    assert not account.is_whole and "never acknowledged" in account.sentences[0]


def test_records_that_an_operator_gave_up_are_not_expected() -> None:
    journal = Journal(list(JOURNAL.entries))
    journal.give_up({0: (2, 4)})
    live, deleted = journal.expected()
    assert live["a"].note is None and "b" in live and not deleted


# ---- on stored bytes ---------------------------------------------------------------------------------------------------


@pytest.fixture
def filled(
    engines: Engines, tmp_path_factory: pytest.TempPathFactory, settle: Callable[[CollectionRecord], None]
) -> tuple[CollectionRecord, Journal]:
    """A collection that a load has filled, committed; and the load's journal."""
    request = CollectionRequest("filled", [own_field(FIELD, dimension=DIMENSION)], 2, partitioner="murmur2", archive="off", attributes=ATTRIBUTES)
    record = create_collection(engines, request)
    path = tmp_path_factory.mktemp("load") / "journal.jsonl"
    with path.open("w") as file, MediaProducer(engines.log, record, engines.settings) as producer:
        load = Load(producer, file, 3, most_ids=40)
        for _ in range(30):
            load.send(load.choose(10))
            producer.flush()
        load.finish()
    settle(record)
    return record, read_journals([path])


def test_the_checker_agrees_with_what_a_load_left(engines: Engines, filled: tuple[CollectionRecord, Journal]) -> None:
    record, journal = filled
    assert {each.op for each in journal.entries} == {"upsert", "patch", "delete"} and journal.is_done
    account = check(engines.store, record, journal, None, None)
    assert account.is_whole and account.stored == account.live > 10, account


def test_the_checker_finds_what_is_planted_in_the_journal(engines: Engines, filled: tuple[CollectionRecord, Journal]) -> None:
    """As good as planting it in the store: one side says something else than the other."""
    record, journal = filled
    live, deleted = journal.expected()
    gone, back = sorted(live)[0], sorted(deleted)[0]
    place = live[gone].place
    lost = Journal([*journal.entries, entry("upsert", "never stored", 999, place[1] + 10_000)])
    assert check(engines.store, record, lost, None, None).lost == 1
    resurrected = Journal([*journal.entries, entry("delete", gone, 999, place[1] + 10_000, place[0])])
    assert check(engines.store, record, resurrected, None, None).resurrected == 1
    stale = Journal([*journal.entries, entry("upsert", gone, 999, place[1] + 10_000, place[0])])
    assert check(engines.store, record, stale, None, None).lost == 1
    undeleted = Journal([each for each in journal.entries if not (each.op == "delete" and each.id == back)])
    assert check(engines.store, record, undeleted, None, None).lost >= 1


def test_the_checker_reads_vectors(engines: Engines, filled: tuple[CollectionRecord, Journal]) -> None:
    record, journal = filled
    rows = stored_rows(engines.store, record, Account())
    assert all(row.vector is not None and np.isclose(np.linalg.norm(row.vector), 1.0, atol=1e-3) for row in rows)
    account = Account()
    compare(account, "stored", journal, [replace(rows[0], vector=rows[1].vector), *rows[1:]])
    assert account.lost == 1


# ---- crash points ------------------------------------------------------------------------------------------------------


def test_a_crash_point_is_due_at_its_nth_time_once() -> None:
    points = Points([parse_aim("put manifest:3=raise")])
    assert [points.is_due("put manifest") for _ in range(5)] == [False, False, True, False, False]
    assert not points.is_due("put rows")
    with pytest.raises(RuntimeError, match="planted at put manifest"):
        points.act("put manifest")


@pytest.mark.parametrize("text", ["put manifest:0", "put manifest=explode"])
def test_a_crash_point_that_means_nothing_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"POINT\[:N\]"):
        parse_aim(text)


def test_the_crash_point_in_words() -> None:
    aim = parse_aim("put manifest, answered:2=stop")
    assert (aim.point, aim.left, aim.action) == ("put manifest, answered", 2, "stop")


def test_a_journal_that_was_cut_is_not_complete(tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("journal") / "journal.jsonl"
    line = json.dumps({"op": "upsert", "id": "a", "seq": 1, "partition": 0, "offset": 0, "item": 0, "at": 1.0})
    path.write_text(line + "\n" + line[:20])
    journal = read_journals([path])
    assert len(journal.entries) == 1 and not journal.is_done
