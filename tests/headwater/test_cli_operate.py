"""`headwater pause`, `resume`, `skip` on an SQLite log: what they say, what they ask, what they leave behind."""

from __future__ import annotations

import json
import threading

import pytest

from backends.catalog.archive import archive_chain
from backends.catalog.collections import CollectionCatalog
from contracts.settings import load_settings
from headwater.wiring import open_engines
from indexer.archive_worker import ArchiveWorker
from indexer.embed_role import run_embed
from tests.headwater.conftest import Headwater
from tests.indexer.conftest import eventually, produce, running


@pytest.fixture
def feed(headwater: Headwater) -> Headwater:
    assert headwater("collection", "create", "feed", "--vector", "vec:8:cosine:float32", "--partitions", "3").code == 0
    return headwater


def fill(count: int, partition: int = 0) -> None:
    with open_engines(load_settings()) as engines:
        record = CollectionCatalog(engines.store).get("feed")
        for number in range(count):
            produce(engines, record, partition, [f"{partition}-{number}"])


def paused() -> tuple[int, ...]:
    with open_engines(load_settings()) as engines:
        return CollectionCatalog(engines.store).get("feed").paused_partitions


def test_pause_and_resume_name_what_is_paused_and_repeat_without_harm(feed: Headwater) -> None:
    assert "paused partitions: 1" in feed("pause", "feed", "--partition", "1").out and paused() == (1,)
    told = json.loads(feed("pause", "feed", "-p", "1", "--json").out)
    assert told == {"collection": "feed", "version": 2, "paused_partitions": [1]}, "a second one changes nothing"
    assert "all 3 partitions are paused; `headwater resume feed` goes on" in feed("pause", "feed").out and paused() == (0, 1, 2)
    assert "paused partitions: 0, 2" in feed("resume", "feed", "--partition", "1").out and paused() == (0, 2)
    assert "no partition is paused" in feed("resume", "feed").out and paused() == ()
    ended = feed("pause", "feed", "--partition", "3")
    assert ended.code == 2 and "its partitions are 0 to 2" in ended.err
    assert feed("pause", "nothing").code == 2


def test_describe_shows_how_far_is_embedded_and_what_is_paused(feed: Headwater) -> None:
    fill(2)
    feed("pause", "feed", "--partition", "0")
    feed("skip", "feed", "--partition", "0", "--to", "1", "--yes")
    ended = feed("collection", "describe", "feed")
    assert "paused partitions: 0" in ended.out
    rows = json.loads(feed("collection", "describe", "feed", "--json").out)["partitions"]
    assert [(row["embedded_offset"], row["paused"]) for row in rows] == [(1, True), (0, False), (0, False)]


def test_a_skip_asks_tells_what_is_lost_and_does_it_once(feed: Headwater) -> None:
    fill(5)
    refused = feed("skip", "feed", "--partition", "0", "--to", "3")
    assert refused.code == 2 and "this needs a yes" in refused.err and "0..3" in refused.out
    done = json.loads(feed("skip", "feed", "--partition", "0", "--to", "3", "--yes", "--json").out)["skipped"]
    assert done == [{"index": "main", "partition": 0, "start_offset": 0, "next_offset": 3, "in_log": 3, "count": 3}]
    assert "nothing to give up" in feed("skip", "feed", "--partition", "0", "--to", "3", "--yes").out
    ended = feed("skip", "feed", "--to", "latest", "--yes")
    assert ended.code == 0 and "feed: 2 offsets are lost; embedding goes on behind them" in ended.out


def test_times_choose_offsets_and_a_bare_offset_needs_its_partition(feed: Headwater) -> None:
    fill(2)
    assert "nothing to give up" in feed("skip", "feed", "--to", "2020-01-01T00:00:00Z", "--yes").out
    done = json.loads(feed("skip", "feed", "--to", "2100-01-01T00:00:00Z", "--yes", "--json").out)["skipped"]
    assert [(one["partition"], one["count"]) for one in done] == [(0, 2)]
    for wrong, said in (("2", "add --partition"), ("soon", "write an offset, an RFC 3339 time"), ("2020-01-01T00:00:00", "zone")):
        ended = feed("skip", "feed", "--to", wrong, "--yes")
        assert ended.code == 2 and said in ended.err, wrong
    ended = feed("skip", "feed", "--partition", "0", "--to", "9", "--yes")
    assert ended.code == 2 and "beyond the end" in ended.err


def test_a_reset_begins_another_index_and_switch_refuses_it_until_it_has_caught_up(feed: Headwater) -> None:
    fill(3)
    feed("skip", "feed", "--to", "latest", "--yes")  # as if the records had been embedded wrongly
    refused = feed("reset", "feed", "--to", "earliest")
    assert refused.code == 2 and "this needs a yes" in refused.err and "to embed again" in refused.out
    begun = json.loads(feed("reset", "feed", "--to", "earliest", "--no-wait", "--yes", "--json").out)
    name = begun["index"]
    assert begun["active_index"] == "main" and begun["partitions"][0] == {
        "partition": 0, "origin_offset": 0, "embedded_offset": 3, "left_out_rows": 0, "archived_offsets": 0,
    }  # fmt: skip
    assert f"index {name}, which does not answer: 0 of 3 offsets embedded" in feed("collection", "describe", "feed").out
    ended = feed("collection", "switch", "feed", name)
    assert ended.code == 2 and f"index {name} has embedded 0 of 3 offsets" in ended.err
    assert f"index {name} answers" in feed("collection", "switch", "feed", name, "--anyway").out
    assert feed("collection", "drop-index", "feed", "main").code == 2
    assert "index main is dropped" in feed("collection", "drop-index", "feed", "main", "--yes").out
    assert feed("collection", "switch", "feed", "main").code == 2


def test_a_reset_from_the_archive_begins_where_the_topic_no_longer_does(feed: Headwater) -> None:
    fill(3)
    feed("skip", "feed", "--to", "latest", "--yes")
    with open_engines(load_settings(archive_seconds=0.1)) as engines:
        record = CollectionCatalog(engines.store).get("feed")
        with running(ArchiveWorker(engines, record).run):
            eventually(lambda: (found := archive_chain(engines.store, record, 0).head()) is not None and found.manifest.checkpoint.media_offset == 3)
        engines.log.truncate(record.source_topic, {0: 2})
    refused = feed("reset", "feed", "--partition", "0", "--to", "0", "--yes")
    assert refused.code == 2 and "the topic begins at 2, what is archived at 0" in refused.err and "--from-archive" in refused.err
    shown = feed("reset", "feed", "--to", "earliest", "--from-archive")
    assert shown.code == 2 and "of them archived" in shown.out and "this needs a yes" in shown.err
    begun = json.loads(feed("reset", "feed", "--to", "earliest", "--from-archive", "--no-wait", "--yes", "--json").out)
    assert begun["partitions"][0] == {
        "partition": 0, "origin_offset": 0, "embedded_offset": 3, "left_out_rows": 0, "archived_offsets": 2,
    }  # fmt: skip


def test_a_reset_waits_for_the_workers_and_then_switches(feed: Headwater) -> None:
    fill(3)
    stop = threading.Event()
    with open_engines(load_settings(embed_watchdog_seconds=0.2)) as engines:
        thread = threading.Thread(target=run_embed, args=(engines, None, stop))
        thread.start()
        try:
            ended = feed("reset", "feed", "--to", "earliest", "--yes")
        finally:
            stop.set()
            thread.join()
        record = CollectionCatalog(engines.store).get("feed")
    assert ended.code == 0 and f"index {record.active_index} answers now" in ended.out
    assert record.active_index != "main" and [index.name for index in record.indexes] == ["main", record.active_index]
