"""Claim checks through the indexer: media that lies in the store is found, checked, kept apart from other collections', and read back."""

import base64
import hashlib
import json
import threading
from collections.abc import Callable
from typing import Any

import pytest
from ulid import ULID

from backends.catalog.admin import CollectionRequest, create_collection
from contracts.collection import CollectionRecord
from contracts.engines import Engines
from contracts.errors import UnavailableError
from contracts.media_record import PARTS_TYPE
from contracts.object_keys import CollectionKeys
from contracts.payload_ref import PayloadRef, encode_payload_ref
from contracts.settings import Settings
from indexer.build_worker import BuildWorker
from indexer.embed_worker import EmbedWorker
from tests.encoders import ColourEncoder, colour_fields
from tests.indexer.conftest import eventually, running
from tests.indexer.stored import StoredPartition, read_partition
from tests.indexer.test_picture_path import jpeg

RED = jpeg((250, 10, 10))


@pytest.fixture
def pictures(engines: Engines) -> CollectionRecord:
    return create_collection(engines, CollectionRequest("pictures", colour_fields(), 1))


def store_payload(engines: Engines, collection: CollectionRecord, data: bytes, **wrong: Any) -> dict[str, Any]:
    """Put data under the collection's claims; returns the reference as a JSON object, with some of it replaced."""
    digest = hashlib.sha256(data)
    key = CollectionKeys(collection.name, collection.incarnation).claim(digest.hexdigest())
    engines.store.put_if_absent(key, data)
    return json.loads(encode_payload_ref(PayloadRef(key, len(data), digest.digest()))) | wrong


def send(engines: Engines, collection: CollectionRecord, key: bytes | None, value: bytes, **headers: str | bytes) -> None:
    producer = engines.log.producer()
    named = [(name.replace("content_type", "content-type"), text if isinstance(text, bytes) else text.encode()) for name, text in headers.items()]
    producer.send(collection.source_topic, partition=0, key=key, value=value, headers=named)
    producer.flush(5)
    producer.close()


def index_all(engines: Engines, collection: CollectionRecord, records: int) -> StoredPartition:
    index = collection.index()
    with running(EmbedWorker(engines, collection, index, ColourEncoder()).run, BuildWorker(engines, collection, index).run):
        eventually(lambda: read_partition(engines, collection, 0).manifest.checkpoint.media_offset == records)
    return read_partition(engines, collection, 0)


def test_a_picture_behind_each_form_of_claim_check_is_indexed_as_if_it_came_in_the_record(engines: Engines, pictures: CollectionRecord) -> None:
    ref = store_payload(engines, pictures, RED)
    event = {"specversion": "1.0", "id": "structured", "source": "s", "type": "t", "datacontenttype": "image/jpeg", "hwpayloadref": ref}
    parts = {"id": "parts", "parts": [{"text": "a red"}, {"ref": ref, "content_type": "image/jpeg"}, {"text": "card"}]}
    text = store_payload(engines, pictures, b"a text in the store")
    send(engines, pictures, b"inline", RED, content_type="image/jpeg")
    send(engines, pictures, b"plain", b"", content_type="image/jpeg", hw_payload_ref=json.dumps(ref))
    send(engines, pictures, b"sniffed", b"", hw_payload_ref=json.dumps(ref))
    send(engines, pictures, None, b"", content_type="image/jpeg", ce_specversion="1.0", ce_id="binary", ce_hwpayloadref=json.dumps(ref))
    send(engines, pictures, None, json.dumps(event).encode(), content_type="application/cloudevents+json")
    send(engines, pictures, None, json.dumps(parts).encode(), content_type=PARTS_TYPE)
    send(engines, pictures, b"text", b"", content_type="text/plain", hw_payload_ref=json.dumps(text), hw_caption="title")
    stored = index_all(engines, pictures, 7)
    assert set(stored.live) == {"inline", "plain", "sniffed", "binary", "structured", "parts", "text"}
    assert all(stored.vectors[name] == stored.vectors["inline"] for name in ("plain", "sniffed", "binary", "structured"))
    assert stored.texts["parts"] == "a red\ncard" and stored.texts["text"] == "title\na text in the store"


def test_bad_text_beside_a_claim_that_is_a_picture_leaves_the_picture(engines: Engines, pictures: CollectionRecord) -> None:
    ref, text = store_payload(engines, pictures, RED), store_payload(engines, pictures, b"\xff")
    send(engines, pictures, b"named", b"", content_type="image/jpeg", hw_payload_ref=json.dumps(ref), hw_caption=b"\xff")
    send(engines, pictures, b"sniffed", b"", hw_payload_ref=json.dumps(ref), hw_caption=b"\xff")
    send(
        engines,
        pictures,
        None,
        json.dumps({"id": "two", "parts": [{"ref": ref}, {"ref": text, "content_type": "text/plain"}]}).encode(),
        content_type=PARTS_TYPE,
    )
    send(engines, pictures, b"text", b"", content_type="text/plain", hw_payload_ref=json.dumps(text), hw_caption="title")
    stored = index_all(engines, pictures, 4)
    assert stored.texts == {"named": None, "sniffed": None, "two": None}
    assert {(run.verdict, run.reason, run.partial) for run in stored.ledger} == {("row", "bad_text", True), ("reject", "bad_text", False)}


WRONG: list[tuple[str, str, Callable[[dict[str, Any]], Any]]] = [
    ("a missing object", "payload_missing", lambda ref: ref | {"key": ref["key"][:-64] + "0" * 64}),
    ("a key outside of the bucket", "bad_envelope", lambda ref: ref | {"key": "../x"}),
    ("a path within the prefix", "bad_envelope", lambda ref: ref | {"key": ref["key"].rpartition("/")[0] + "/../../x"}),
    (
        "another object of the collection",
        "bad_envelope",
        lambda ref: ref | {"key": ref["key"].partition("/claim/")[0] + f"/collection/{1:020d}.json"},
    ),
    ("another collection's claim", "bad_envelope", lambda ref: ref | {"key": ref["key"].replace("pictures", "secrets")}),
    ("another incarnation's claim", "bad_envelope", lambda ref: ref | {"key": f"c/pictures-{ULID()}/claim/{ref['sha256']}"}),
    ("a wrong hash", "payload_mismatch", lambda ref: ref | {"sha256": "0" * 64}),
    ("a size too small", "payload_mismatch", lambda ref: ref | {"size": ref["size"] - 1}),
    ("a size too large", "payload_mismatch", lambda ref: ref | {"size": ref["size"] + 1}),
    ("a size over the cap", "too_large", lambda ref: ref | {"size": 33 * 1024 * 1024}),
    ("a size that is none", "bad_envelope", lambda ref: ref | {"size": -1}),
    ("a size that is huge", "bad_envelope", lambda ref: ref | {"size": 10**30}),
    ("a size that is true", "bad_envelope", lambda ref: ref | {"size": True}),
    ("no size", "bad_envelope", lambda ref: {"key": ref["key"], "sha256": ref["sha256"]}),
    ("a number for a key", "bad_envelope", lambda ref: ref | {"key": 5}),
    ("upper case hex", "bad_envelope", lambda ref: ref | {"sha256": "A" * 64}),
    ("a list", "bad_envelope", lambda ref: [ref]),
]


def test_a_claim_check_that_cannot_be_honoured_is_rejected_with_its_reason_and_its_neighbours_are_indexed(
    engines: Engines, pictures: CollectionRecord
) -> None:
    ref = store_payload(engines, pictures, RED)
    for name, _, change in WRONG:
        send(engines, pictures, name.encode(), b"", content_type="image/jpeg", hw_payload_ref=json.dumps(change(ref)))
    send(engines, pictures, b"both", RED, content_type="image/jpeg", hw_payload_ref=json.dumps(ref))
    send(engines, pictures, b"no json", b"", content_type="image/jpeg", hw_payload_ref="{")
    send(engines, pictures, b"rows", b"", content_type="application/vnd.apache.arrow.stream", hw_payload_ref=json.dumps(ref))
    send(engines, pictures, b"long text", b"", content_type="text/plain", hw_payload_ref=json.dumps(ref | {"size": 2 * 1024 * 1024}))
    send(engines, pictures, b"good", b"", content_type="image/jpeg", hw_payload_ref=json.dumps(ref))
    stored = index_all(engines, pictures, len(WRONG) + 5)
    assert set(stored.live) == {"good"} and stored.is_tiled()
    found = [engines.log.read_at(pictures.dead_letter_topic, 0, offset) for offset in range(len(WRONG) + 4)]
    reasons = [dict(letter.headers)["hw_reason"].decode() for letter in found if letter is not None]
    expected = [reason for _, reason, _ in WRONG] + ["bad_envelope", "bad_envelope", "unsupported_content_type", "bad_text"]
    assert reasons == expected
    assert found[0] is not None and found[0].value == b"" and found[0].header("hw_payload_ref") == json.dumps(WRONG[0][2](ref)).encode()


def test_a_good_caption_is_kept_where_the_payload_is_gone(engines: Engines, pictures: CollectionRecord) -> None:
    gone = store_payload(engines, pictures, RED)
    engines.store.delete(gone["key"])
    send(engines, pictures, b"half", b"", content_type="image/jpeg", hw_payload_ref=json.dumps(gone), hw_caption="a red card")
    picture = {"data_base64": base64.b64encode(RED).decode()}
    send(
        engines,
        pictures,
        b"other half",
        json.dumps({"parts": [picture, {"ref": gone, "content_type": "text/plain"}]}).encode(),
        content_type=PARTS_TYPE,
    )
    stored = index_all(engines, pictures, 2)
    assert stored.texts == {"half": "a red card", "other half": None}
    assert [(run.verdict, run.reason, run.partial) for run in stored.ledger] == [("row", "payload_missing", True)]


class AwayStore:
    """A store whose payloads cannot be reached while `away` is set; everything else passes through."""

    def __init__(self, store: Any) -> None:
        self.store, self.away, self.asked = store, threading.Event(), threading.Event()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.store, name)

    def get_range(self, key: str, start: int, length: int) -> bytes | None:
        if "/claim/" in key and self.away.is_set():
            self.asked.set()
            raise UnavailableError("the store does not answer")
        return self.store.get_range(key, start, length)  # type: ignore[no-any-return]


@pytest.mark.parametrize("sources", [("image", "text", "fused"), ("text",)])
def test_while_the_store_is_away_nothing_is_rejected_and_afterwards_everything_is_indexed(engines: Engines, sources: tuple[str, ...]) -> None:
    fields = [field for field in colour_fields() if field.name in sources]
    collection = create_collection(engines, CollectionRequest("away", fields, 1))
    store = AwayStore(engines.store)
    store.away.set()
    ref = store_payload(engines, collection, RED)
    send(engines, collection, b"before", RED, content_type="image/jpeg", hw_caption="red")
    send(engines, collection, b"claimed", b"", content_type="image/jpeg", hw_payload_ref=json.dumps(ref), hw_caption="red")
    send(engines, collection, b"after", RED, content_type="image/jpeg", hw_caption="red")
    settings: Settings = engines.settings
    away = Engines(settings, engines.log, store, engines.metrics, engines.clock)  # type: ignore[arg-type]
    index = collection.index()
    with running(EmbedWorker(away, collection, index, ColourEncoder()).run, BuildWorker(engines, collection, index).run):
        assert store.asked.wait(15)
        store.away.clear()
        eventually(lambda: read_partition(engines, collection, 0).manifest.checkpoint.media_offset == 3)
    stored = read_partition(engines, collection, 0)
    assert set(stored.live) == {"before", "claimed", "after"}
    assert engines.log.bounds(collection.dead_letter_topic)[0].next_offset == 0
