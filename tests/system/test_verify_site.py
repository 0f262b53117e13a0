"""`headwater verify` on real logs and stores: beside roles that are killed under a stream, with planted faults, on a truncated topic."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest

from contracts.collection import CollectionRecord
from contracts.engines import Engines
from tests.indexer.audited import chain, flip, head, overwrite, send_bad, tars
from tests.indexer.conftest import delete, produce
from tests.system.processes import Process, command, done, role, until
from tests.system.sites import Site, unique

PARTITIONS, ROUNDS = 2, 6
ARCHIVE = {"HEADWATER_ARCHIVE_SECONDS": "1", "HEADWATER_ARCHIVE_BYTES": "20000"}


def verified(site: Site, name: str, *options: str) -> tuple[int, dict[str, Any]]:
    """Exit code and document of ``headwater verify``."""
    ended = command(site, "verify", name, "--json", *options)
    assert ended.returncode in (0, 1, 6), ended.stderr
    document: dict[str, Any] = json.loads(ended.stdout)
    assert document["exit_code"] == ended.returncode
    return ended.returncode, document


def is_settled(engines: Engines, record: CollectionRecord) -> bool:
    ends = {p: bound.next_offset for p, bound in engines.log.bounds(record.source_topic).items()}
    archived = {p: read.manifest.checkpoint.media_offset if (read := tars(engines, record, p).head()) else -1 for p in ends}
    return all(head(engines, record, p).checkpoint.media_offset == end == archived[p] for p, end in ends.items())


def send_round(engines: Engines, record: CollectionRecord, turn: int) -> None:
    """New ids, updates of older ones, a delete and a record that is rejected, in both partitions."""
    for partition in range(PARTITIONS):
        for start in range(0, 60, 10):
            produce(engines, record, partition, [f"{partition}-{(turn * 23 + start + n) % 100}" for n in range(10)])
        delete(engines, record, partition, f"{partition}-{turn}")
        send_bad(engines, record, partition, f"bad-{turn}")


def faults_of(document: dict[str, Any]) -> list[tuple[str, int | None, str | None]]:
    return [(one["code"], one["partition"], one["object"]) for one in document["findings"] if one["level"] != "note"]


@pytest.mark.slow
def test_no_kill_leaves_a_fault_and_every_planted_one_is_named_on_this_log_and_store(site: Site) -> None:
    name = unique("verify")
    done(command(site, "collection", "create", name, "--vector", "vec:8:cosine:float32", "--partitions", str(PARTITIONS)))
    record = site.collection(name)
    roles = {kind: role(kind, site, name) for kind in ("embed", "index", "archive")}
    roles["archive"].arguments += ["--collection", name]
    roles["archive"].variables |= ARCHIVE
    with site.engines() as engines:
        try:
            _stream(site, name, engines, record, roles)
        finally:
            for process in roles.values():
                process.end()
        _plant(site, name, engines, record)
        engines.log.truncate(record.source_topic, {p: bound.next_offset for p, bound in engines.log.bounds(record.source_topic).items()})
    code, document = verified(site, name)
    assert code == 0 and all(one["log_start_offset"] == one["log_next_offset"] == one["checkpoint_offset"] for one in document["partitions"])


def _stream(site: Site, name: str, engines: Engines, record: CollectionRecord, roles: dict[str, Process]) -> None:
    for process in roles.values():
        process.start()
    for process in roles.values():
        process.wait_ready()
    for turn in range(ROUNDS):
        send_round(engines, record, turn)
        time.sleep(0.5)
        victim = list(roles.values())[turn % len(roles)]
        victim.kill()
        code, document = verified(site, name)
        assert code == 0, document["findings"]
        victim.start()
        victim.wait_ready()
    until(lambda: is_settled(engines, record), 120, "everything is committed and archived", 0.2, list(roles.values()))
    code, document = verified(site, name)
    assert code == 0, document["findings"]
    for one in document["partitions"]:
        # every round: 60 rows, a delete (superseded where a newer row of its id came before the seal), a reject
        assert sum(one["states"].values()) == ROUNDS * 62 and one["states"]["dead_lettered"] == ROUNDS and not one["unknown_rows"]
        assert one["checkpoint_offset"] == one["embedded_offset"] == one["log_next_offset"] == ROUNDS * 8


def _plant(site: Site, name: str, engines: Engines, record: CollectionRecord) -> None:
    """One fault after the other, each mended before the next."""
    manifest = head(engines, record, 1)
    segment, ledger = manifest.segments[0].parts["rows"].key, manifest.ledger[-1].object.key
    archive = tars(engines, record, 0).head()
    assert archive is not None
    tar, second = archive.manifest.tars[0].key, chain(engines, record, 0).keys.manifest(2)
    for key, partition, kind in ((segment, 1, "object_damaged"), (ledger, 1, "object_damaged"), (second, 0, "manifest_unreadable")):
        flip(engines, key, 0)
        code, document = verified(site, name)
        assert code == 6 and faults_of(document) == [(kind, partition, key)]
        flip(engines, key, 0)
    found = engines.store.get(tar)
    assert found is not None
    overwrite(engines, tar, found.data[:-600])
    code, document = verified(site, name, "--store-only")
    assert code == 6 and faults_of(document) == [("object_damaged", 0, tar)] and "cut short by 600" in document["findings"][0]["what"]
    overwrite(engines, tar, found.data)
    stored = engines.store.get(segment)
    assert stored is not None
    engines.store.delete(segment)
    code, document = verified(site, name)
    assert code == 6 and faults_of(document) == [("object_missing", 1, segment)]
    engines.store.put_if_absent(segment, stored.data)
    assert verified(site, name)[0] == 0
