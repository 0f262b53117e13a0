"""`verify` beside the log: a stream that goes on, a topic that was truncated, records that are not committed, an id in two partitions."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest
from ulid import ULID

from backends.folder_store import FolderStore
from contracts.store import StoredObject
from indexer.maintain_worker import MaintainWorker
from indexer.verify.audit import Audit, AuditReport
from tests.indexer.audited import all_roles, audit, chain, head, make_feed, only, opened, send_bad, settle, told
from tests.indexer.conftest import delete, make_collection, produce, running


def test_a_collection_without_anything_is_whole(tmp_path: Path) -> None:
    engines = opened(f"memory://{ULID()}", tmp_path / "store")
    collection = make_collection(engines, "empty")
    assert not audit(engines, collection, tmp_path / "room").findings.kept


def test_a_truncated_media_topic_is_whole_ledger_and_origin_account_for_it(tmp_path: Path) -> None:
    engines = opened(f"memory://{ULID()}", tmp_path / "store")
    collection = make_feed(engines)
    engines.log.truncate(collection.source_topic, {0: 14, 1: 9})
    engines.log.truncate(collection.index().vectors_topic, {p: head(engines, collection, p).checkpoint.vectors_offset for p in (0, 1)})
    report = audit(engines, collection, tmp_path / "room")
    assert not report.findings.kept
    assert [report.positions["main", p].start_offset for p in (0, 1)] == [14, 9]
    assert {sum(one.states.values()) for one in report.partitions} == {40 + 1 + 5 + 1 + 6 + 2 + 1 + 1 + 3}


def test_what_is_not_committed_yet_is_no_fault_but_what_the_log_has_forgotten_before_is(tmp_path: Path) -> None:
    engines = opened(f"memory://{ULID()}", tmp_path / "store")
    collection = make_feed(engines)
    for _ in range(3):
        produce(engines, collection, 0, ["later"])
    report = audit(engines, collection, tmp_path / "room")
    assert not report.findings.kept and report.positions["main", 0].next_offset == 17
    engines.log.truncate(collection.source_topic, {0: 16})
    found = only(audit(engines, collection, tmp_path / "room"))
    assert (found.kind, found.index, found.partition, found.start_offset, found.next_offset) == ("offsets_forgotten", "main", 0, 14, 16)


@pytest.mark.slow
def test_an_audit_while_roles_write_tells_no_false_faults(tmp_path: Path) -> None:
    engines = opened(f"memory://{ULID()}", tmp_path / "store", seal_rows=20)
    collection = make_collection(engines, "busy")
    stop, audits = threading.Event(), []

    def feed(ended: threading.Event) -> None:
        number = 0
        while not stop.is_set() and not ended.is_set():
            for partition in (0, 1):
                produce(engines, collection, partition, [f"{partition}-{(number + n) % 60}" for n in range(10)])
            number += 7

    with running(feed, *all_roles(engines, collection)):
        versions: set[int] = set()
        while len(audits) < 12 or len(versions) < 4 and len(audits) < 200:
            audits.append(audit(engines, collection, tmp_path / "room"))
            versions |= {one.manifest.version for one in audits[-1].partitions[:1] if one.manifest}
        stop.set()
        settle(engines, collection)
    assert [told(report) for report in audits] == [[]] * len(audits) and len(versions) > 3
    assert not told(audit(engines, collection, tmp_path / "room"))


class Slow(FolderStore):
    """Takes its time to give an object, so that compaction and collection overtake whoever reads."""

    def get(self, key: str) -> StoredObject | None:
        time.sleep(0.02)
        return super().get(key)


def was_overtaken(audits: list[AuditReport]) -> bool:
    return any(one.attempts > 1 for report in audits for one in report.partitions)


@pytest.mark.slow
def test_audits_beside_compaction_and_garbage_collection_tell_no_false_faults(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("indexer.maintain_worker.COLLECT_SECONDS", 0.05)
    monkeypatch.setattr("indexer.maintain_worker.POLL_SECONDS", 0.05)
    engines = opened(f"memory://{ULID()}", tmp_path / "store", seal_rows=20, gc_seconds=0.1, maintain_seconds=0.05, compact_fan_in=2)
    collection = make_collection(engines, "busy")
    audits: list[AuditReport] = []

    def feed(ended: threading.Event) -> None:
        number = 0
        while not ended.wait(0.05):
            for partition in (0, 1):
                produce(engines, collection, partition, [f"{partition}-{(number + n) % 60}" for n in range(10)])
                delete(engines, collection, partition, f"{partition}-{number % 60}")
                send_bad(engines, collection, partition, "bad")
            number += 7

    with running(*all_roles(engines, collection), MaintainWorker(engines, collection).run), running(feed):
        began = time.monotonic()
        while (
            (spent := time.monotonic() - began) < 20 or spent < 90 and not (was_overtaken(audits) and chain(engines, collection, 0).boundary() > 10)
        ):
            store = Slow(tmp_path / "store")
            audits.append(Audit(store, engines.log, collection, tmp_path / "room", engines.clock.now_seconds()).run())
    assert [told(report) for report in audits] == [[]] * len(audits)
    assert was_overtaken(audits), "nothing was ever compacted away under an audit"
    assert head(engines, collection, 0).epochs.compactor and chain(engines, collection, 0).boundary() > 10
    assert not told(audit(engines, collection, tmp_path / "room"))


def test_an_id_in_two_partitions_is_a_warning_that_names_both_places(tmp_path: Path) -> None:
    engines = opened(f"memory://{ULID()}", tmp_path / "store")
    collection = make_collection(engines, "feed")
    with running(*all_roles(engines, collection)):
        produce(engines, collection, 0, ["here", "both"])
        produce(engines, collection, 1, ["there", "x", "both"])
        settle(engines, collection)
    report = audit(engines, collection, tmp_path / "room")
    found = only(report)
    assert (found.kind, found.id, found.code.level, report.findings.exit_code) == ("id_in_two_partitions", "both", "warning", 1)
    assert found.what == "live at 0/0/1 and at 1/0/2" and found.object == head(engines, collection, 1).segments[0].parts["rows"].key
