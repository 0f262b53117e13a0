"""`headwater purge`, and what `collection describe` says of the archive, on an SQLite log and a folder store."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from backends.catalog.collections import CollectionCatalog
from contracts.settings import load_settings
from headwater.cli_purge import _what_stays
from headwater.wiring import open_engines
from indexer.archive_worker import ArchiveWorker
from tests.headwater.conftest import Headwater
from tests.indexer.archived import all_bytes, archived, media, send
from tests.indexer.conftest import eventually, running
from tests.indexer.test_archive import caught_up


def fill(headwater: Headwater) -> None:
    assert headwater("collection", "create", "feed", "--vector", "v:4", "--partitions", "2").code == 0
    with open_engines(load_settings(archive_seconds=0.2)) as engines:
        record = CollectionCatalog(engines.store).get("feed")
        for partition in (0, 1):
            send(engines, record, partition, [f"{partition}-{n}" for n in range(5)])
        with running(ArchiveWorker(engines, record).run):
            eventually(lambda: caught_up(engines, record), what="archived")


def in_tars(workplace: Path) -> bytes:
    with open_engines(load_settings()) as engines:
        return all_bytes(engines, "c/feed")


def test_describe_shows_where_the_archive_stands(headwater: Headwater) -> None:
    assert headwater("collection", "create", "empty", "--vector", "v:4", "--archive", "off").code == 0
    assert "nothing is archived" in headwater("collection", "describe", "empty").out
    assert json.loads(headwater("collection", "describe", "empty", "--json").out)["collection"]["archive"] == "off"
    assert headwater("collection", "create", "wrong", "--vector", "v:4", "--archive", "maybe").code == 2
    fill(headwater)
    rows = json.loads(headwater("collection", "describe", "feed", "--json").out)["archive"]
    assert [(row["archived_offset"], row["behind"], row["records"], row["lost"]) for row in rows] == [(5, 0, 5, 0)] * 2
    assert all(row["tars"] >= 1 and row["bytes"] > 5 * 500 for row in rows)
    assert "archived to" in headwater("collection", "describe", "feed").out


def test_purge_says_what_it_found_what_it_did_and_what_stays(headwater: Headwater, workplace: Path) -> None:
    fill(headwater)
    looked = json.loads(headwater("purge", "feed", "0-1", "1-2", "nobody", "--dry-run", "--json").out)
    assert (looked["found"]["archived_records"], looked["found"]["tars"], looked["done"]) == (2, 2, None)
    assert media("0-1") in in_tars(workplace)
    refused = headwater("purge", "feed", "0-1")
    assert refused.code == 2 and "cannot be undone" in refused.err
    ended = headwater("purge", "feed", "0-1", "1-2", "nobody", "--yes")
    assert ended.code == 0 and "2 tars rewritten" in ended.out and "2 records removed" in ended.out
    stays = [line for line in ended.out.splitlines() if line.startswith("stays: ")]
    assert len(stays) == 3 and "headwater.feed.media keeps the records until its retention ends (7 days)" in stays[0]
    assert "dead-letter" in stays[1] and "compacted" in stays[2]
    assert media("0-1") not in in_tars(workplace) and media("1-2") not in in_tars(workplace) and media("0-2") in in_tars(workplace)
    with open_engines(load_settings()) as engines:
        record = CollectionCatalog(engines.store).get("feed")
        assert [set(archived(engines, record, p)) for p in (0, 1)] == [{0, 2, 3, 4}, {0, 1, 3, 4}]
    assert json.loads(headwater("purge", "feed", "0-1", "--dry-run", "--json").out)["found"]["archived_records"] == 0


def test_on_a_topic_of_others_a_purge_warns_of_its_deletes_and_names_the_bucket_that_keeps_objects(headwater: Headwater) -> None:
    assert headwater("collection", "create", "own", "--vector", "v:4", "--partitions", "3").code == 0
    assert "warning" not in headwater("purge", "own", "x", "--yes").err
    shared = ("--vector", "v:4", "--source-topic", "headwater.own.media", "--start", "earliest")
    assert headwater("collection", "create", "plain", *shared).code == 0
    looked = headwater("purge", "plain", "x", "y", "--dry-run")
    assert "topic headwater.own.media is not Headwater's own: 2 ids are deleted there" in looked.err and "each of its 3 partitions" in looked.err
    assert "bucket" not in looked.out
    assert headwater("collection", "create", "named", *shared, "--partitioner", "murmur2").code == 0
    assert "in the id's partition, which other readers" in headwater("purge", "named", "x", "--yes").err
    with open_engines(load_settings()) as engines:
        dropped = CollectionCatalog(engines.store).get("plain").model_copy(update={"notifications": True})  # needs a store with buckets
        stays = _what_stays(engines.log, dropped, None)
    assert len(stays) == 4 and "the objects in notified buckets" in stays[3]


@pytest.mark.parametrize(("arguments", "says"), [(("nothing", "x"), "does not exist"), (("feed", ""), "the id has 0 bytes")])
def test_a_purge_of_what_cannot_be_is_one_line(headwater: Headwater, arguments: tuple[str, str], says: str) -> None:
    assert headwater("collection", "create", "feed", "--vector", "v:4").code == 0
    ended = headwater("purge", *arguments, "--yes")
    assert ended.code == 2 and says in ended.err
