"""Every form of media record through the real embed worker: one picture by each is found; bad ones are explained, byte for byte."""

import base64
import json

import pytest

from backends.catalog.admin import CollectionRequest, create_collection
from contracts.collection import CollectionRecord
from contracts.engines import Engines
from contracts.log import Headers, LogRecord, TopicSpec
from contracts.media_record import ARROW_TYPE, CLOUDEVENT_TYPE, PARTS_TYPE
from tests.encoders import colour_fields
from tests.indexer.conftest import arrow_rows
from tests.indexer.test_claim_check_path import index_all, store_payload
from tests.indexer.test_picture_path import jpeg

RED = jpeg((250, 10, 10))
RED_64 = base64.b64encode(RED).decode()
Record = tuple[bytes | None, bytes | None, Headers]


def typed(content_type: str, **headers: str) -> Headers:
    return (("content-type", content_type.encode()), *((name, value.encode()) for name, value in headers.items()))


def event(**changes: object) -> bytes:
    body = {"specversion": "1.0", "id": "e", "source": "s", "type": "t", "datacontenttype": "image/jpeg", "data_base64": RED_64} | changes
    return json.dumps({name: value for name, value in body.items() if value is not None}).encode()


def notification(bucket: str, key: str) -> bytes:
    return json.dumps({"Records": [{"eventName": "s3:ObjectCreated:Put", "s3": {"bucket": {"name": bucket}, "object": {"key": key}}}]}).encode()


@pytest.fixture
def pictures(engines: Engines) -> CollectionRecord:
    return create_collection(engines, CollectionRequest("pictures", colour_fields(), 1, attributes={"price": "float"}))


def send_all(engines: Engines, collection: CollectionRecord, records: list[Record]) -> None:
    producer = engines.log.producer()
    for key, value, headers in records:
        producer.send(collection.source_topic, partition=0, key=key, value=value, headers=headers)
    producer.flush(5)
    producer.close()


def test_one_picture_through_each_form_is_the_same_row(engines: Engines, pictures: CollectionRecord) -> None:
    ref = json.dumps(store_payload(engines, pictures, RED))
    parts = {"id": "parts", "parts": [{"text": "red"}, {"data_base64": RED_64}], "attributes": {"price": 2}}
    forms: list[Record] = [
        (b"plain", RED, typed("image/jpeg", hw_caption="red", hw_attributes='{"price":2}')),
        (None, RED, typed("image/jpeg", ce_specversion="1.0", ce_id="binary", ce_hwcaption="red", ce_hwattributes='{"price":2}')),
        (None, event(id="structured", hwcaption="red", hwattributes={"price": 2}), typed(CLOUDEVENT_TYPE)),
        (None, json.dumps(parts).encode(), typed(PARTS_TYPE)),
        (b"claim", b"", typed("image/jpeg", hw_caption="red", hw_attributes='{"price":2}', hw_payload_ref=ref)),
        (b"gone", RED, typed("image/jpeg")),
        (b"gone", None, ()),
    ]
    send_all(engines, pictures, forms)
    stored = index_all(engines, pictures, len(forms))
    assert set(stored.live) == {"plain", "binary", "structured", "parts", "claim"} and stored.is_tiled()
    assert set(stored.texts.values()) == {"red"} and len({tuple(vector) for vector in stored.vectors.values()}) == 1


def test_one_picture_through_a_bucket_notification_is_a_row(engines: Engines) -> None:
    engines.log.create_topic(TopicSpec("drops", 1, -1))
    collection = create_collection(engines, CollectionRequest("drops", colour_fields(), 1, source_topic="drops", notifications=True))
    bucket = engines.settings.store_url.removeprefix("memory://")
    engines.store.put_if_absent("red.jpg", RED)
    send_all(engines, collection, [(None, notification(bucket, "red.jpg"), ()), (None, notification(bucket, "gone.jpg"), ())])
    stored = index_all(engines, collection, 2)
    assert set(stored.live) == {f"{bucket}/red.jpg"}
    assert [(run.verdict, run.reason) for run in stored.ledger] == [("row", None), ("reject", "payload_missing")]


def bad_inputs(ref: dict[str, object]) -> list[tuple[str, str, Record]]:
    """(what, reason, record)."""

    def claim(**wrong: object) -> Headers:
        return typed("image/jpeg", hw_payload_ref=json.dumps(ref | wrong))

    return [
        ("an invalid JSON envelope", "bad_envelope", (b"a", b'{"specversion":', typed(CLOUDEVENT_TYPE))),
        ("parts that are no JSON", "bad_envelope", (b"a", b"\xff\xfe", typed(PARTS_TYPE))),
        ("10,000 nested arrays", "bad_envelope", (b"a", b"[" * 10_000 + b"]" * 10_000, typed(PARTS_TYPE))),
        ("10,000 nested arrays as attributes", "bad_attributes", (b"a", RED, typed("image/jpeg", hw_attributes="[" * 10_000))),
        ("two pictures in one item", "too_many_parts", (b"a", json.dumps({"parts": [{"data_base64": RED_64}] * 2}).encode(), typed(PARTS_TYPE))),
        ("a claim check to a missing object", "payload_missing", (b"a", b"", claim(key=str(ref["key"])[:-64] + "0" * 64))),
        ("a claim check to ../x", "bad_envelope", (b"a", b"", claim(key="../x"))),
        ("a claim check with the wrong hash", "payload_mismatch", (b"a", b"", claim(sha256="0" * 64))),
        ("a claim check over the cap", "too_large", (b"a", b"", claim(size=2**40))),
        ("a CloudEvent without id", "missing_id", (b"a", event(id=None), typed(CLOUDEVENT_TYPE))),
        ("a binary CloudEvent without id", "missing_id", (b"a", RED, typed("image/jpeg", ce_specversion="1.0"))),
        ("an id of 513 bytes", "bad_id", (b"x" * 513, RED, typed("image/jpeg"))),
        ("an id that is not UTF-8", "bad_id", (b"\xff", RED, typed("image/jpeg"))),
        ("an unknown content type", "unsupported_content_type", (b"a", b"%PDF", typed("application/pdf"))),
        ("an empty value", "empty", (b"a", b"", typed("image/jpeg"))),
        ("rows for a collection without own vectors", "bad_vector", (b"a", arrow_rows(["x"]), typed(ARROW_TYPE))),
        ("a notification on a topic of media", "unsupported_content_type", (b"a", notification("b", "k"), ())),
        ("a truncated JPEG", "decode_failed", (b"a", RED[:150], typed("image/jpeg"))),
    ]


def test_bad_input_is_explained_with_its_original_bytes_and_the_good_around_it_is_indexed(engines: Engines, pictures: CollectionRecord) -> None:
    bad = bad_inputs(store_payload(engines, pictures, RED))
    good: Record = (b"before", RED, typed("image/jpeg"))
    send_all(engines, pictures, [good, *(record for _, _, record in bad), (b"after", *good[1:])])
    stored = index_all(engines, pictures, len(bad) + 2)
    assert set(stored.live) == {"before", "after"} and stored.is_tiled()
    letters: list[LogRecord | None] = [engines.log.read_at(pictures.dead_letter_topic, 0, at) for at in range(len(bad))]
    verdicts = {offset: (run.verdict, run.reason) for run in stored.ledger for offset in range(run.start_offset, run.next_offset)}
    for number, (what, reason, (key, value, headers)) in enumerate(bad):
        letter = letters[number]
        assert letter is not None and letter.header("hw_reason") == reason.encode(), (what, letter)
        assert (letter.key, letter.value, letter.headers[: len(headers)]) == (key, value, headers), what
        assert verdicts[number + 1] == ("reject", reason), what
