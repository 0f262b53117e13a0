"""An embed worker whose encoder is a server: outages reject nothing, refusals reject the guilty alone."""

from __future__ import annotations

import io
from collections.abc import Iterator

import pytest
from PIL import Image

from backends.catalog.admin import CollectionRequest, create_collection
from contracts.collection import CollectionRecord
from contracts.engines import Engines
from embedding import remote_http
from embedding.open_encoder import open_encoder
from headwater.wiring import encoder_fields
from indexer.build_worker import BuildWorker
from indexer.embed_worker import EmbedWorker
from tests.embedding_server import MODEL, EmbeddingServerState, embedding_server, fault
from tests.indexer.conftest import eventually, running
from tests.indexer.stored import StoredPartition, read_partition
from tests.indexer.test_picture_path import send


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[EmbeddingServerState]:
    monkeypatch.setattr(remote_http, "FIRST_PAUSE_SECONDS", 0.02)
    with embedding_server() as state:
        yield state


def create(engines: Engines, server: EmbeddingServerState, on_partial: str = "keep") -> CollectionRecord:
    fields = encoder_fields(f"remote:{server.url}#{MODEL}&pixels=64", ["image", "text", "fused"], engines.settings)
    made = create_collection(engines, CollectionRequest("remote", fields, 1))
    return made.model_copy(update={"on_partial": on_partial})


def index_all(engines: Engines, collection: CollectionRecord, records: int) -> StoredPartition:
    index = collection.index()
    encoder = open_encoder(index.fields[0].encoder or "", engines.settings)
    with running(EmbedWorker(engines, collection, index, encoder).run, BuildWorker(engines, collection, index).run):
        eventually(lambda: read_partition(engines, collection, 0).manifest.checkpoint.media_offset == records)
    return read_partition(engines, collection, 0)


def png(colour: tuple[int, int, int]) -> bytes:
    sink = io.BytesIO()
    Image.new("RGB", (40, 40), colour).save(sink, "PNG")
    return sink.getvalue()


def test_the_guilty_inputs_of_a_batch_are_found_by_halving_and_all_others_are_indexed(engines: Engines, server: EmbeddingServerState) -> None:
    collection = create(engines, server)
    for number in range(40):
        text = "poison" if number in (7, 8, 31) else f"word{number}"
        send(engines, collection, f"t{number}", text.encode(), content_type="text/plain")
    stored = index_all(engines, collection, 40)
    assert set(stored.live) == {f"t{number}" for number in range(40) if number not in (7, 8, 31)}
    rejected = [run for run in stored.ledger if run.verdict == "reject"]
    assert {offset for run in rejected for offset in range(run.start_offset, run.next_offset)} == {7, 8, 31}
    assert {run.reason for run in rejected} == {"encoder_refused"}
    letters = [engines.log.read_at(collection.dead_letter_topic, 0, offset) for offset in range(3)]
    assert [letter.key for letter in letters if letter is not None] == [b"t7", b"t8", b"t31"]
    assert all(letter is not None and letter.value == b"poison" for letter in letters)


@pytest.mark.parametrize("on_partial", ["keep", "reject"])
def test_a_refused_picture_with_a_good_caption_is_what_the_collection_says_of_partial_items(
    engines: Engines, server: EmbeddingServerState, on_partial: str
) -> None:
    collection = create(engines, server, on_partial)
    send(engines, collection, "red", png((255, 0, 0)), hw_caption="a card")
    send(engines, collection, "blue", png((0, 0, 255)), hw_caption="poison")
    send(engines, collection, "both", png((255, 0, 0)), hw_caption="poison")
    send(engines, collection, "green", png((0, 255, 0)), hw_caption="another card")
    stored = index_all(engines, collection, 4)
    kept = ["blue", "green", "red"] if on_partial == "keep" else ["green"]
    assert sorted(stored.live) == kept and stored.is_tiled()
    refused = [run for run in stored.ledger if run.reason == "encoder_refused"]
    reasons = {offset: (run.verdict, run.partial) for run in refused for offset in range(run.start_offset, run.next_offset)}
    if on_partial == "keep":
        assert reasons == {0: ("row", True), 1: ("row", True), 2: ("reject", False)}
    letters = [engines.log.read_at(collection.dead_letter_topic, 0, offset) for offset in range(3)]
    assert [letter.key for letter in letters if letter is not None] == [b"red", b"blue", b"both"]


def test_an_outage_of_the_server_rejects_nothing_and_is_waited_out(engines: Engines, server: EmbeddingServerState) -> None:
    collection = create(engines, server)
    server.faults = [fault(503)] * 9  # two rounds of attempts, and one more
    for number in range(5):
        send(engines, collection, f"t{number}", f"word{number}".encode(), content_type="text/plain")
    stored = index_all(engines, collection, 5)
    assert len(stored.live) == 5 and not server.faults
    assert engines.log.bounds(collection.dead_letter_topic)[0].next_offset == 0
