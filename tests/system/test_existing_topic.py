"""Topics that were filled before a collection existed, by producers that know nothing of Headwater."""

from __future__ import annotations

import json
from collections.abc import Sequence
from concurrent.futures import Future

import pytest

from contracts.engines import Engines
from contracts.log import RecordPosition
from headwater.client import HeadwaterClient
from tests.system.accounts import scan
from tests.system.processes import command, done, running, until
from tests.system.sites import Site, unique
from tests.system.stream import SAMPLES, samples

PARTITIONS = 2
PICTURES = [SAMPLES / file for file, _ in samples()[:6]]
Row = tuple[int, bytes | None, bytes | None, list[tuple[str, bytes]]]


def fill(engines: Engines, topic: str, rows: Sequence[Row]) -> list[RecordPosition]:
    """Append (partition, key, value, headers); gives where each record is."""
    producer = engines.log.producer()
    futures: list[Future[RecordPosition]] = [
        producer.send(topic, partition=partition, key=key, value=value, headers=headers) for partition, key, value, headers in rows
    ]
    producer.flush(30)
    producer.close()
    return [future.result(30) for future in futures]


def keyed(partition: int, key: str, picture: int, sku: str) -> Row:
    """Key and JPEG bytes, no content type: it is told from the bytes."""
    return partition, key.encode(), PICTURES[picture].read_bytes(), [("sku", sku.encode())]


def event(partition: int, event_id: str, text: str, sku: str) -> Row:
    """A CloudEvent in binary mode without a key; its id is ``ce_id``."""
    headers = [
        ("ce_specversion", b"1.0"),
        ("ce_id", event_id.encode()),
        ("ce_source", b"/shop"),
        ("ce_type", b"item"),
        ("content-type", b"text/plain"),
    ]
    return partition, None, text.encode(), [*headers, ("sku", sku.encode())]


def nameless(partition: int, picture: int, sku: str) -> Row:
    """Neither key nor event: the id is where the record lies."""
    return partition, None, PICTURES[picture].read_bytes(), [("content-type", b"image/jpeg"), ("sku", sku.encode())]


OLD_ROWS: list[Row] = [
    keyed(0, "red", 0, "s-1"),
    keyed(1, "blue", 1, "s-2"),
    event(0, "event-7", "a wooden boat on a lake", "s-3"),
    nameless(0, 2, "s-4"),
    nameless(1, 3, "s-5"),
    keyed(0, "red", 4, "s-6"),
    keyed(1, "gone", 5, "s-7"),
    (1, b"gone", None, [("sku", b"s-7")]),
]
NEW_ROWS: list[Row] = [keyed(0, "late", 5, "s-8"), event(1, "event-8", "a green bicycle", "s-9")]


def places(topic: str, rows: Sequence[Row], positions: Sequence[RecordPosition]) -> set[str]:
    """Default ids of the rows that have neither key nor ``ce_id``."""
    return {
        f"{topic}/{at.partition}/{at.offset}/0"
        for (_, key, _, headers), at in zip(rows, positions, strict=True)
        if key is None and "ce_id" not in dict(headers)
    }


def ids_of(client: HeadwaterClient, collection: str) -> set[str]:
    found = scan(client, collection, page_size=3)
    assert set(found.values()) <= {1}
    assert client.count(collection) == len(found)
    return set(found)


@pytest.mark.slow
@pytest.mark.model
def test_a_topic_filled_before_the_collection_existed_is_indexed_from_earliest_and_only_what_comes_after_from_latest(site: Site) -> None:
    topic = site.new_topic(PARTITIONS)
    everything, by_header, later = unique("all"), unique("sku"), unique("later")
    with site.engines() as engines:
        old = fill(engines, topic, OLD_ROWS)
        made = json.loads(done(command(site, "collection", "create", everything, "--source-topic", topic, "--start", "earliest", "--json")))
        assert (made["partitions"], made["source_topic"], made["owns_source_topic"]) == (PARTITIONS, topic, False)
        done(command(site, "collection", "create", by_header, "--source-topic", topic, "--start", "earliest", "--id-from", "header:sku"))
        done(command(site, "collection", "create", later, "--source-topic", topic, "--start", "latest"))
        new = fill(engines, topic, NEW_ROWS)
        with running(site, "up") as processes, processes["up"].client() as client:
            ends = {partition: bounds.next_offset for partition, bounds in engines.log.bounds(topic).items()}
            for name in (everything, by_header, later):
                client.wait_for(name, ends, 200)
            wanted = {"red", "blue", "event-7", "late", "event-8"} | places(topic, OLD_ROWS + NEW_ROWS, old + new)
            assert ids_of(client, everything) == wanted
            assert ids_of(client, by_header) == {f"s-{number}" for number in range(1, 10)} - {"s-7"}
            assert ids_of(client, later) == {"late", "event-8"}
            assert client.search(everything, text="a wooden boat on a lake", using="text", limit=1).hits[0].id == "event-7"
            assert client.search(everything, image=PICTURES[4], using="image", limit=1).hits[0].id == "red"  # the newer of its two pictures
            check_committed(site, client, everything, ends, wanted)
        done(command(site, "collection", "delete", everything, "--yes"))
        assert engines.log.describe_topic(topic) is not None  # not ours to delete


def check_committed(site: Site, client: HeadwaterClient, collection: str, ends: dict[int, int], wanted: set[str]) -> None:
    """What `describe` says is committed reaches the topic's end, and the answer stays the same."""

    def is_committed() -> bool:
        described = json.loads(done(command(site, "collection", "describe", collection, "--json")))
        return {row["partition"]: row["committed_offset"] for row in described["partitions"]} == ends

    until(is_committed, 30, "the old records are committed", 0.5)
    assert ids_of(client, collection) == wanted


def test_a_source_topic_that_does_not_exist_is_refused_in_one_line(embedded_site: Site) -> None:
    answer = command(embedded_site, "collection", "create", "shop", "--source-topic", "nowhere", "--vector", "v:4")
    assert answer.returncode == 2
    assert answer.stderr.splitlines()[0] == "error: topic 'nowhere' does not exist"
    assert "Traceback" not in answer.stderr
