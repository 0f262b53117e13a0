"""The claim check from the producer's side: large media goes through the store, once, and never before it is there."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

import pytest

from contracts.collection import CollectionRecord
from contracts.engines import Engines
from contracts.errors import RecordError, UnavailableError
from contracts.log import LogRecord
from contracts.media_record import MediaItem, RecordLimits, read_media_record
from contracts.object_keys import CollectionKeys
from contracts.settings import load_settings
from contracts.store import PutOutcome
from ingest.producer import MediaProducer
from ingest.records import Annotations, cloudevent_record

SMALL, LARGE = b"\xff\xd8\xff" + b"s" * 997, b"\xff\xd8\xff" + b"l" * 2000
Read = Callable[[CollectionRecord], list[LogRecord]]


def producer_of(engines: Engines, collection: CollectionRecord, store: Any = None, **settings: Any) -> MediaProducer:
    found = load_settings(log_url="memory://", store_url="memory://", **({"claim_check_bytes": 1000, "max_picture_bytes": 5000} | settings))
    return MediaProducer(engines.log, collection, found, store=store or engines.store)


def claim(collection: CollectionRecord, data: bytes) -> str:
    return CollectionKeys(collection.name, collection.incarnation).claim(hashlib.sha256(data).hexdigest())


def item(record: LogRecord, collection: CollectionRecord) -> MediaItem:
    [found] = read_media_record(record, collection, RecordLimits())
    assert isinstance(found, MediaItem), found
    return found


def test_media_above_the_size_is_stored_and_named_and_smaller_media_travels_in_its_record(
    engines: Engines, collection: CollectionRecord, stored: Read
) -> None:
    with producer_of(engines, collection) as producer:
        producer.send_picture("small", SMALL, "image/jpeg")
        producer.send_picture("large", LARGE, "image/jpeg", caption="a large one", attributes={"year": 2026})
        producer.send_picture("again", LARGE, "image/jpeg")
        producer.send(cloudevent_record("event", LARGE, "image/jpeg", Annotations(caption="c")), "event")
        producer.delete("gone")
    found = {item(record, collection).id: record for record in stored(collection)}
    assert found["small"].value == SMALL and found["gone"].value is None
    for name in ("large", "again", "event"):
        read = item(found[name], collection)
        assert found[name].value == b"" and len(read.parts) > 0
        [ref] = [part.ref for part in read.parts if part.ref is not None]
        assert (ref.key, ref.size_bytes, ref.sha256) == (claim(collection, LARGE), len(LARGE), hashlib.sha256(LARGE).digest())
    assert item(found["large"], collection).text == "a large one"
    held = engines.store.get(claim(collection, LARGE))
    assert held is not None and held.data == LARGE
    assert [info.key for info in engines.store.list(CollectionKeys(collection.name, collection.incarnation).prefix + "claim/")] == [
        claim(collection, LARGE)
    ]


def test_media_that_the_topic_would_refuse_is_stored_whatever_the_setting(engines: Engines, collection: CollectionRecord, stored: Read) -> None:
    data = b"\xff\xd8\xff" + bytes(1_100_000)  # the topic takes 1,000,000 bytes
    with producer_of(engines, collection, claim_check_bytes=2_000_000, max_picture_bytes=2_000_000) as producer:
        producer.send_picture("a", data, "image/jpeg")
    assert item(stored(collection)[0], collection).parts[0].ref is not None


def test_media_that_no_worker_would_take_is_refused_and_not_stored(engines: Engines, collection: CollectionRecord, stored: Read) -> None:
    with producer_of(engines, collection) as producer, pytest.raises(RecordError, match="max_picture_bytes"):
        producer.send_picture("a", bytes(5001), "image/jpeg")
    assert stored(collection) == [] and engines.store.head(claim(collection, bytes(5001))) is None


class UnclearStore:
    """A store whose puts end without an answer; `lands` says whether they are stored nevertheless."""

    def __init__(self, store: Any, lands: bool) -> None:
        self.store, self.lands, self.puts = store, lands, 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.store, name)

    def put_if_absent(self, key: str, data: bytes) -> PutOutcome:
        self.puts += 1
        if self.lands:
            self.store.put_if_absent(key, data)
        return PutOutcome.UNKNOWN


def test_an_unknown_outcome_is_looked_at_and_a_reference_is_sent_only_to_what_is_there(
    engines: Engines, collection: CollectionRecord, stored: Read
) -> None:
    landed, lost = UnclearStore(engines.store, lands=True), UnclearStore(engines.store, lands=False)
    with producer_of(engines, collection, landed) as producer:
        producer.send_picture("a", LARGE, "image/jpeg")
    assert landed.puts == 1 and len(stored(collection)) == 1
    with producer_of(engines, collection, lost) as producer, pytest.raises(UnavailableError, match="could not be stored"):
        producer.send_picture("b", LARGE + b"!", "image/jpeg")
    assert lost.puts > 1 and len(stored(collection)) == 1
