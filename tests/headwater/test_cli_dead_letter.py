"""`headwater dead-letter`: what is listed, what is still dead, the bytes, and the way back."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from backends.catalog.collections import CollectionCatalog
from contracts.engines import Engines
from contracts.log import TopicSpec
from contracts.media_record import ARROW_TYPE
from contracts.settings import load_settings
from headwater.wiring import open_engines
from indexer.build_worker import BuildWorker
from indexer.dead_letter import dead_letter_record
from indexer.embed_worker import EmbedWorker
from indexer.slices import Rejection
from tests.headwater.conftest import Headwater
from tests.indexer.conftest import arrow_rows, running, short_pauses
from tests.indexer.stored import StoredPartition, read_partition

pytestmark = pytest.mark.usefixtures(short_pauses.__name__)

SHORT, LONG = "short", "a text that is longer than the limit"


@dataclass
class Feed:
    """A collection of own vectors with workers that are started and stopped; texts above `limit` bytes are rejected."""

    engines: Engines
    limit: int = 20

    def __post_init__(self) -> None:
        self.record = CollectionCatalog(self.engines.store).get("feed")

    def put(self, item_id: str, text: str, key: bytes | None = None) -> int:
        headers = [("content-type", ARROW_TYPE.encode()), ("own", b"\xff"), ("own", b"")]
        return self._send(key, arrow_rows([item_id], [text]), headers)

    def put_rows(self, ids: list[str], texts: list[str]) -> int:
        return self._send(None, arrow_rows(ids, texts), [("content-type", ARROW_TYPE.encode())])

    def remove(self, item_id: str) -> int:
        return self._send(item_id.encode(), None, [])

    def _send(self, key: bytes | None, value: bytes | None, headers: list[tuple[str, bytes]]) -> int:
        producer = self.engines.log.producer()
        offset = producer.send(self.record.source_topic, partition=0, key=key, value=value, headers=headers).result(10).offset
        producer.close()
        return offset

    def index(self, limit: int | None = None, build: bool = True) -> StoredPartition:
        """Work until all is committed (or, without `build`, embedded)."""
        settings = self.engines.settings.model_copy(update={"max_text_bytes": limit or self.limit, "seal_seconds": 0.1})
        engines = Engines(settings, self.engines.log, self.engines.store)
        end = self.engines.log.bounds(self.record.source_topic)[0].next_offset
        targets = [EmbedWorker(engines, self.record, self.record.index(), None).run]
        if build:
            targets.append(BuildWorker(engines, self.record, self.record.index()).run)
        with running(*targets):
            wait(lambda: (self.stored().manifest.checkpoint.media_offset if build else self.embedded()) == end)
        return self.stored()

    def stored(self) -> StoredPartition:
        return read_partition(self.engines, self.record, 0)

    def embedded(self) -> int:
        topic = self.record.index().vectors_topic
        records = [self.engines.log.read_at(topic, 0, at) for at in range(self.engines.log.bounds(topic)[0].next_offset)]
        return max([int(found) for record in records if record and (found := record.header("hw_next_offset"))], default=0)


def wait(check: Callable[[], bool]) -> None:
    end = time.monotonic() + 20
    while not check():
        assert time.monotonic() < end
        time.sleep(0.02)


@contextmanager
def opened() -> Iterator[Engines]:
    with open_engines(load_settings(embed_watchdog_seconds=0.2)) as engines:
        yield engines


@pytest.fixture
def feed(headwater: Headwater, monkeypatch: pytest.MonkeyPatch) -> Iterator[Feed]:
    monkeypatch.setenv("HEADWATER_DEAD_LETTER_RETENTION_SECONDS", "-1")  # age is judged by the tool, not by retention
    assert headwater("collection", "create", "feed", "--vector", "vec:8", "--partitions", "1").code == 0
    with opened() as engines:
        yield Feed(engines)


def listed(headwater: Headwater, *arguments: str) -> dict[str, Any]:
    ended = headwater("dead-letter", "list", "feed", "--json", *arguments)
    assert ended.code == 0, ended.err
    found: dict[str, Any] = json.loads(ended.out)
    return found


def states(headwater: Headwater, *arguments: str) -> dict[int, str]:
    return {one["offset"]: one["state"] for one in listed(headwater, *arguments)["dead_letters"]}


@pytest.mark.parametrize("build", [True, False], ids=["committed", "in the vectors topic"])
def test_a_dead_letter_whose_id_was_updated_or_deleted_since_is_superseded(headwater: Headwater, feed: Feed, build: bool) -> None:
    for item_id in ("updated", "deleted", "dead"):
        feed.put(item_id, LONG)
    feed.put("updated", SHORT)
    feed.remove("deleted")
    feed.index(build=build)
    assert states(headwater) == {0: "superseded", 1: "superseded", 2: "dead"}
    assert listed(headwater)["reasons"] == {"bad_text": {"dead": 1, "superseded": 2}}


def test_replay_brings_back_what_is_still_dead_and_nothing_else(headwater: Headwater, feed: Feed) -> None:
    for item_id in ("updated", "deleted", "dead", "alive"):
        feed.put(item_id, SHORT if item_id == "alive" else LONG)
    feed.put("updated", SHORT)
    feed.remove("deleted")
    feed.index()
    planned = headwater("dead-letter", "replay", "feed", "--dry-run")
    assert planned.code == 0 and "1 records to replay" in planned.out and "left out, superseded: 2" in planned.out
    assert feed.engines.log.bounds(feed.record.source_topic)[0].next_offset == 6
    refused = headwater("dead-letter", "replay", "feed")
    assert refused.code == 2 and "needs a yes" in refused.err
    done = headwater("dead-letter", "replay", "feed", "--yes")
    assert done.code == 0 and "1 records replayed" in done.out
    again, original = (feed.engines.log.read_at(feed.record.source_topic, 0, offset) for offset in (6, 2))
    assert again is not None and original is not None
    assert (again.key, again.value) == (original.key, original.value)
    timestamp = ("hw_timestamp_ms", str(original.timestamp_ms).encode())
    assert again.headers == (*original.headers, ("hw_origin", b"0/2"), timestamp)
    stored = feed.index(limit=1000)
    assert stored.live == {"alive": (3, 0), "updated": (4, 0), "dead": (6, 0)}
    assert states(headwater) == {0: "superseded", 1: "superseded", 2: "replayed"}
    assert "0 records to replay" in headwater("dead-letter", "replay", "feed", "--yes").out


def test_records_that_are_named_are_replayed_and_still_lose_to_what_is_newer(headwater: Headwater, feed: Feed) -> None:
    feed.put("updated", LONG)
    feed.put("deleted", LONG)
    feed.put("updated", SHORT)
    feed.remove("deleted")
    feed.index()
    assert headwater("dead-letter", "replay", "feed", "0/0", "0/1", "--yes").code == 0
    stored = feed.index(limit=1000)
    assert stored.live == {"updated": (2, 0)}
    assert [stored.verdicts()[offset, 0] for offset in (4, 5)] == ["superseded", "superseded"]


def test_only_the_rejected_rows_of_a_record_are_replayed(headwater: Headwater, feed: Feed) -> None:
    feed.put_rows(["a", "b", "c", "d"], [SHORT, LONG, SHORT, LONG])
    feed.put("d", SHORT)
    feed.index()
    (one,) = listed(headwater)["dead_letters"]
    assert one["items"] == {"1": "dead", "3": "superseded"} and one["state"] == "dead"
    assert headwater("dead-letter", "replay", "feed", "--yes").code == 0
    again = feed.engines.log.read_at(feed.record.source_topic, 0, 2)
    assert again is not None and again.header("hw_items") == b"1"
    stored = feed.index(limit=1000)
    assert stored.live == {"a": (0, 0), "b": (2, 1), "c": (0, 2), "d": (1, 0)}


def test_a_replay_that_is_rejected_again_keeps_the_first_origin(headwater: Headwater, feed: Feed) -> None:
    feed.put("x", LONG)
    feed.index()
    assert headwater("dead-letter", "replay", "feed", "--yes").code == 0
    feed.index()  # nothing was mended
    assert states(headwater) == {0: "replayed", 1: "dead"}
    assert headwater("dead-letter", "replay", "feed", "--yes").code == 0
    again = feed.engines.log.read_at(feed.record.source_topic, 0, 2)
    assert again is not None and again.header("hw_origin") == b"0/0" and [name for name, _ in again.headers].count("hw_origin") == 1
    assert feed.index(limit=1000).live == {"x": (2, 0)}
    assert states(headwater) == {0: "replayed", 1: "replayed"}


def test_a_dead_letter_older_than_thirty_days_cannot_be_replayed(headwater: Headwater, feed: Feed) -> None:
    feed.put("old", LONG)
    feed.put("young", LONG)
    feed.index()
    replace_with_old_copy(feed)
    assert {one["offset"]: one["is_too_old"] for one in listed(headwater)["dead_letters"]} == {0: True, 1: False}
    refused = headwater("dead-letter", "replay", "feed", "0/0", "--yes")
    assert refused.code == 2 and "older than 30 days" in refused.err and "hint:" in refused.err
    planned = headwater("dead-letter", "replay", "feed", "--dry-run")
    assert "1 records to replay" in planned.out and "left out, too old: 1" in planned.out
    assert feed.engines.log.bounds(feed.record.source_topic)[0].next_offset == 2


def replace_with_old_copy(feed: Feed) -> None:
    """Truncate the topic and write both letters again, the first as it would lie there after 31 days."""
    log, topic = feed.engines.log, feed.record.dead_letter_topic
    letters = [log.read_at(topic, 0, offset) for offset in range(2)]
    log.truncate(topic, {0: 2})
    producer = log.producer()
    for letter, age_days in zip(letters, (31, 1), strict=True):
        assert letter is not None
        headers = [(name, value or b"") for name, value in letter.headers]
        timestamp_ms = letter.timestamp_ms - age_days * 86_400_000
        producer.send(topic, partition=0, key=letter.key, value=letter.value, headers=headers, timestamp_ms=timestamp_ms).result(10)
    producer.close()


def test_a_copy_of_a_crash_is_listed_once_and_one_that_no_batch_rejects_is_not_dead(headwater: Headwater, feed: Feed) -> None:
    feed.put("twice", LONG)
    feed.put("fine", SHORT)
    feed.index()
    log, topic = feed.engines.log, feed.record.dead_letter_topic
    first, fine = log.read_at(topic, 0, 0), log.read_at(feed.record.source_topic, 0, 1)
    assert first is not None and fine is not None
    producer = log.producer()
    producer.send(topic, partition=0, key=first.key, value=first.value, headers=[(n, v or b"") for n, v in first.headers])
    zombie = dead_letter_record(feed.record, "main", [Rejection(fine, 0, "decode_failed", "a worker with another rule")])
    producer.send(topic, partition=0, key=zombie.key, value=zombie.value, headers=zombie.headers).result(10)
    producer.close()
    found = listed(headwater)["dead_letters"]
    assert {one["offset"]: (one["state"], one["copies"]) for one in found} == {0: ("dead", 2), 1: ("accepted", 1)}
    assert "1 records to replay" in headwater("dead-letter", "replay", "feed", "--dry-run").out


def test_filters_choose_by_reason_id_partition_and_time(headwater: Headwater, feed: Feed) -> None:
    feed.put("x", LONG)
    feed._send(b"pdf", b"%PDF-1.7", [("content-type", b"application/pdf")])
    feed.index()
    assert set(states(headwater, "--reason", "bad_text")) == {0}
    assert set(states(headwater, "--reason", "bad_text", "--reason", "unsupported_content_type")) == {0, 1}
    assert set(states(headwater, "--id", "pdf")) == {1}
    assert set(states(headwater, "--partition", "0")) == {0, 1} and states(headwater, "--partition", "3") == {}
    assert set(states(headwater, "--since", "1h")) == {0, 1} and states(headwater, "--since", "2999-01-01T00:00:00Z") == {}
    one = listed(headwater, "--limit", "1")
    assert one["count"] == 2 and len(one["dead_letters"]) == 1
    assert headwater("dead-letter", "list", "feed", "--since", "soon").code == 2


def test_the_list_is_a_table_with_counts_by_reason(headwater: Headwater, feed: Feed) -> None:
    assert "no dead letters" in headwater("dead-letter", "list", "feed").out
    feed.put("x\x1b[31m", LONG)
    feed.index()
    shown = headwater("dead-letter", "list", "feed")
    assert shown.code == 0 and "bad_text" in shown.out and "0/0" in shown.out and "\x1b[31m" not in shown.out
    described = headwater("collection", "describe", "feed")
    assert "rejected items so far: bad_text 1" in described.out
    assert json.loads(headwater("collection", "describe", "feed", "--json").out)["rejected_items"] == {"bad_text": 1}


def test_show_tells_everything_and_writes_the_original_bytes(headwater: Headwater, feed: Feed, workplace: Path) -> None:
    value = bytes(range(256)) * 3
    feed._send(b"k", value, [("content-type", b"application/pdf"), ("note", b"\x1b[31mred")])
    feed.index()
    out = workplace / "original.bin"
    shown = headwater("dead-letter", "show", "feed", "0/0", "--out", str(out))
    assert shown.code == 0 and out.read_bytes() == value
    for part in ("unsupported_content_type", "state: dead", "768 bytes, sha256", "header content-type: application/pdf", "00 01 02"):
        assert part in shown.out, part
    assert "\x1b" not in shown.out
    assert headwater("dead-letter", "show", "feed", "0/0", "--out", str(out)).code == 2 and out.read_bytes() == value
    as_json = json.loads(headwater("dead-letter", "show", "feed", "0/0", "--json").out)
    assert as_json["key"] == "k" and as_json["value_head_hex"].startswith("000102") and as_json["size_bytes"] > 768


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("show", "feed", "0/7"), "no dead letter of 0/7"),
        (("show", "feed", "seven"), "is no record of the media topic"),
        (("replay", "feed", "0/7", "--yes"), "no dead letter of 0/7"),
        (("list", "feed", "--index", "other"), "has no index 'other'"),
        (("list", "nothing"), "does not exist"),
    ],
)
def test_a_wrong_request_is_one_line_and_exit_code_2(headwater: Headwater, feed: Feed, arguments: tuple[str, ...], says: str) -> None:
    ended = headwater("dead-letter", *arguments)
    assert ended.code == 2 and says in ended.err and "Traceback" not in ended.err


def test_a_rejected_update_that_removed_its_row_is_dead_until_it_is_replayed(headwater: Headwater) -> None:
    assert headwater("collection", "create", "feed", "--vector", "vec:8", "--partitions", "1", "--on-reject", "remove").code == 0
    with opened() as engines:
        feed = Feed(engines)
        feed.put("x", SHORT)
        feed.put("x", LONG)
        assert feed.index().live == {}
        assert states(headwater) == {1: "dead"}
        assert "rejected items so far: bad_text 1" in headwater("collection", "describe", "feed").out
        assert headwater("dead-letter", "replay", "feed", "--yes").code == 0
        assert feed.index(limit=1000).live == {"x": (2, 0)}
        assert states(headwater) == {1: "replayed"}


def test_a_dead_letter_whose_batch_is_not_written_yet_is_pending_and_not_replayed(headwater: Headwater, feed: Feed) -> None:
    feed.put("x", LONG)
    record = feed.engines.log.read_at(feed.record.source_topic, 0, 0)
    assert record is not None
    letter = dead_letter_record(feed.record, "main", [Rejection(record, 0, "bad_text", "too long")])
    producer = feed.engines.log.producer()
    producer.send(feed.record.dead_letter_topic, partition=0, key=letter.key, value=letter.value, headers=letter.headers).result(10)
    producer.close()
    assert states(headwater) == {0: "pending"}
    for arguments in ((), ("0/0",)):
        ended = headwater("dead-letter", "replay", "feed", *arguments, "--yes")
        assert "0 records to replay" in ended.out and "left out, pending: 1" in ended.out
    feed.index()
    assert states(headwater) == {0: "dead"} and listed(headwater)["dead_letters"][0]["copies"] == 2


def test_a_record_whose_bytes_were_left_out_is_replayed_from_the_media_topic(headwater: Headwater, feed: Feed) -> None:
    topic = feed.record.dead_letter_topic
    feed.engines.log.delete_topic(topic)
    feed.engines.log.create_topic(TopicSpec(topic, 1, retention_ms=-1, max_record_bytes=1_000))
    feed.put("x", LONG * 50)
    feed.index()
    assert states(headwater) == {0: "dead"}
    assert listed(headwater)["dead_letters"][0]["ids"] == {"0": "x"} and "value: " in headwater("dead-letter", "show", "feed", "0/0").out
    assert headwater("dead-letter", "replay", "feed", "--yes").code == 0
    assert feed.index(limit=100_000).live == {"x": (1, 0)}


def test_a_record_whose_bytes_are_gone_everywhere_is_said_to_be_and_the_others_are_replayed(headwater: Headwater, feed: Feed) -> None:
    topic = feed.record.dead_letter_topic
    feed.engines.log.delete_topic(topic)
    feed.engines.log.create_topic(TopicSpec(topic, 1, retention_ms=-1, max_record_bytes=2_500))
    feed.put("gone", LONG * 100)
    feed.put("y", LONG)
    feed.index()
    feed.engines.log.truncate(feed.record.source_topic, {0: 1})
    ended = headwater("dead-letter", "replay", "feed", "--yes")
    assert ended.code == 1 and "not replayed 0/0" in ended.err and "1 records replayed" in ended.out
    assert feed.index(limit=100_000).live == {"y": (2, 0)}


def test_a_record_of_the_largest_size_can_be_replayed_as_often_as_it_takes(headwater: Headwater, monkeypatch: pytest.MonkeyPatch) -> None:
    largest, pdf = 1_000_000, [("content-type", b"application/pdf")]
    monkeypatch.setenv("HEADWATER_MAX_RECORD_BYTES", str(largest))
    assert headwater("collection", "create", "feed", "--vector", "vec:8", "--partitions", "1").code == 0
    with opened() as engines:
        feed = Feed(engines)
        feed._send(b"x", bytes(largest - 1 - sum(len(name) + len(value) for name, value in pdf)), pdf)
        for replays in (1, 2):
            feed.index()
            ended = headwater("dead-letter", "replay", "feed", "--yes")
            assert (ended.code, "1 records replayed" in ended.out) == (0, True), ended.err
            again = engines.log.read_at(feed.record.source_topic, 0, replays)
            assert again is not None and again.size_bytes > largest and again.header("hw_origin") == b"0/0"
