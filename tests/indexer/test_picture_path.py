"""Pictures through the indexer: fields, partial items, broken pictures, the wrong encoder."""

import io
import time
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from backends.catalog.admin import CollectionRequest, create_collection
from contracts.collection import CollectionRecord
from contracts.engines import Engines
from contracts.errors import SettingsError
from indexer.build_worker import BuildWorker
from indexer.embed_worker import EmbedWorker
from tests.encoders import ColourEncoder, colour_fields
from tests.indexer.conftest import eventually, running
from tests.indexer.stored import read_partition


def jpeg(colour: tuple[int, int, int]) -> bytes:
    sink = io.BytesIO()
    Image.new("RGB", (40, 30), colour).save(sink, "JPEG")
    return sink.getvalue()


@pytest.fixture
def pictures(engines: Engines) -> CollectionRecord:
    return create_collection(engines, CollectionRequest("pictures", colour_fields(), 1))


def send(engines: Engines, collection: CollectionRecord, key: str, value: bytes, **headers: str) -> None:
    producer = engines.log.producer()
    named = [(name.replace("content_type", "content-type"), text.encode()) for name, text in headers.items()]
    producer.send(collection.source_topic, partition=0, key=key.encode(), value=value, headers=named)
    producer.flush(5)
    producer.close()


def index_all(engines: Engines, collection: CollectionRecord, records: int):  # type: ignore[no-untyped-def]
    index = collection.index()
    with running(EmbedWorker(engines, collection, index, ColourEncoder()).run, BuildWorker(engines, collection, index).run):
        eventually(lambda: read_partition(engines, collection, 0).manifest.checkpoint.media_offset == records)
    return read_partition(engines, collection, 0)


def test_a_picture_with_a_caption_gets_all_three_fields(engines: Engines, pictures: CollectionRecord) -> None:
    send(engines, pictures, "red", jpeg((250, 10, 10)), content_type="image/jpeg", hw_caption="a red card", hw_attributes='{"desk":"news"}')
    stored = index_all(engines, pictures, 1)
    assert stored.live == {"red": (0, 0)} and stored.texts == {"red": "a red card"}
    encoder = ColourEncoder()
    image = encoder.encode_pictures(encoder.prepare_picture(jpeg((250, 10, 10)))[None])[0]
    text = encoder.encode_texts(["a red card"])[0]
    wanted = (image + text) / np.linalg.norm(image + text)
    np.testing.assert_allclose(stored.vectors["red"], wanted, atol=1e-5)  # `fused`, the last field read


def test_a_broken_picture_with_a_good_caption_keeps_the_caption_and_says_so(engines: Engines, pictures: CollectionRecord) -> None:
    send(engines, pictures, "half", jpeg((0, 0, 250))[:150], content_type="image/jpeg", hw_caption="blue card")
    stored = index_all(engines, pictures, 1)
    assert [(run.verdict, run.reason, run.partial) for run in stored.ledger] == [("row", "decode_failed", True)]
    letter = engines.log.read_at(pictures.dead_letter_topic, 0, 0)
    assert letter is not None and dict(letter.headers)["hw_partial"] == b"1"


@pytest.mark.parametrize(("on_partial", "kept"), [("keep", True), ("reject", False)])
def test_a_bad_caption_beside_a_good_picture_is_left_out_and_says_so_unless_the_collection_rejects_it(
    engines: Engines, on_partial: str, kept: bool
) -> None:
    collection = create_collection(engines, CollectionRequest("pictures", colour_fields(), 1, on_partial=on_partial))  # type: ignore[arg-type]
    producer = engines.log.producer()
    headers = [("content-type", b"image/jpeg"), ("hw_caption", b"\xff\xfe")]
    producer.send(collection.source_topic, partition=0, key=b"half", value=jpeg((250, 10, 10)), headers=headers)
    producer.close()
    stored = index_all(engines, collection, 1)
    assert [(run.verdict, run.reason, run.partial) for run in stored.ledger] == [("row" if kept else "reject", "bad_text", kept)]
    assert stored.texts == ({"half": None} if kept else {})
    letter = engines.log.read_at(collection.dead_letter_topic, 0, 0)
    assert letter is not None and letter.header("hw_reason") == b"bad_text" and (letter.header("hw_partial") == b"1") == kept


def test_a_bad_caption_and_a_broken_picture_leave_nothing_to_index(engines: Engines, pictures: CollectionRecord) -> None:
    send(engines, pictures, "both", jpeg((0, 0, 250))[:150], content_type="image/jpeg", hw_caption="x" * (1024 * 1024 + 1))
    stored = index_all(engines, pictures, 1)
    assert [(run.verdict, run.reason) for run in stored.ledger] == [("reject", "bad_text")]


def test_a_broken_picture_without_a_caption_is_rejected_and_the_next_is_indexed(engines: Engines, pictures: CollectionRecord) -> None:
    send(engines, pictures, "bad", b"not a picture at all", content_type="image/jpeg")
    send(engines, pictures, "good", jpeg((10, 250, 10)), hw_caption="green")  # no content-type: recognised by its bytes
    stored = index_all(engines, pictures, 2)
    assert stored.live == {"good": (1, 0)}
    assert [run.verdict for run in stored.ledger] == ["reject", "row"]


def test_an_index_of_another_space_is_refused_with_a_hint(engines: Engines) -> None:
    other = [field.model_copy(update={"space_id": "colour@0000000000000000"}) for field in colour_fields()]
    collection = create_collection(engines, CollectionRequest("other", other, 1))
    with pytest.raises(SettingsError, match="space"):
        EmbedWorker(engines, collection, collection.index(), ColourEncoder())


class CountingEncoder(ColourEncoder):
    """Notes how many pictures came in each call."""

    def __init__(self) -> None:
        self.calls: list[int] = []

    def encode_pictures(self, pictures: np.ndarray) -> np.ndarray:
        self.calls.append(len(pictures))
        return super().encode_pictures(pictures)


def test_a_batch_is_waited_for_until_it_is_full_or_its_time_is_over(engines: Engines, pictures: CollectionRecord) -> None:
    encoder = CountingEncoder()

    def worker(patience_seconds: float) -> EmbedWorker:
        settings = engines.settings.model_copy(update={"embed_batch_items": 3, "embed_batch_seconds": patience_seconds})
        return EmbedWorker(replace(engines, settings=settings), pictures, pictures.index(), encoder)

    with running(worker(600.0).run):
        for name in ("one", "two", "three"):
            send(engines, pictures, name, jpeg((9, 9, 9)))
            time.sleep(0.1)
        eventually(lambda: bool(encoder.calls))
        assert encoder.calls == [3]
    with running(worker(0.5).run):
        send(engines, pictures, "alone", jpeg((9, 9, 9)))
        eventually(lambda: encoder.calls == [3, 1])
