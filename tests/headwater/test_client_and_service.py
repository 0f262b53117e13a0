"""Promises of the whole path as a user meets it: ingest, roles, HTTP, client, on a real service with the producers' own vectors."""

from __future__ import annotations

import hashlib
import queue
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from backends.catalog.admin import CollectionRequest, create_collection
from contracts.collection import CollectionRecord
from contracts.engines import Engines
from contracts.errors import NotFoundError, SettingsError
from contracts.object_keys import CollectionKeys
from contracts.settings import load_settings
from headwater import HeadwaterClient
from headwater.run_roles import Role, RoleRunner, role
from headwater.wiring import open_engines, vector_field
from ingest.producer import MediaProducer

ROWS = 300
IDS = [f"item/{number:03d} ü" for number in range(ROWS)]  # a slash, a space and an umlaut must survive the URL
MATRIX = np.random.default_rng(7).normal(size=(ROWS, 8)).astype(np.float32)


@dataclass
class Service:
    """A running service and what stands behind it."""

    engines: Engines
    collection: CollectionRecord
    client: HeadwaterClient
    offsets: dict[int, int]


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    folder = tmp_path_factory.mktemp("service")
    settings = load_settings(log_url=f"sqlite:///{folder}/log.sqlite", store_url=f"file:///{folder}/store", cache_dir=folder / "cache", query_port=0)
    ports: queue.SimpleQueue[int] = queue.SimpleQueue()
    with open_engines(settings) as engines:
        request = CollectionRequest("vecs", [vector_field("v:8:cosine:float32")], partitions=3, attributes={"half": "integer"})
        collection = create_collection(engines, request)
        roles: dict[str, Role] = {"embed": role("embed", engines), "index": role("index", engines), "query": role("query", engines, None, ports.put)}
        with RoleRunner(roles, settings.stop_seconds):
            with HeadwaterClient(f"http://127.0.0.1:{ports.get(timeout=30)}") as client:
                with MediaProducer(engines.log, collection, settings) as producer:
                    producer.send_vectors(
                        IDS, {"v": MATRIX}, texts=[f"text {row}" for row in range(ROWS)], attributes=[{"half": row % 2} for row in range(ROWS)]
                    )
                client.wait_for("vecs", producer.next_offsets, timeout_seconds=30)
                yield Service(engines, collection, client, producer.next_offsets)


def test_an_own_vector_finds_its_item_with_payload_and_lineage(service: Service) -> None:
    answer = service.client.search("vecs", vector=MATRIX[42].tolist(), using="v", limit=3, with_lineage=True)
    best = answer.hits[0]
    assert best.id == IDS[42]
    assert best.score == pytest.approx(1.0, abs=1e-3)
    assert (best.payload["text"], best.payload["half"]) == ("text 42", 0)
    assert best.lineage is not None
    assert best.lineage["topic"] == service.collection.source_topic
    assert answer.freshness.reached(service.offsets)
    assert answer.freshness.coverage == 1.0


def test_search_ranks_as_exact_cosine_does(service: Service) -> None:
    unit = MATRIX / np.linalg.norm(MATRIX, axis=1, keepdims=True)
    question = np.random.default_rng(8).normal(size=8)
    expected = [IDS[row] for row in np.argsort(-(unit @ question))[:10]]
    assert [hit.id for hit in service.client.search("vecs", vector=question.tolist(), using="v").hits] == expected


def test_an_id_finds_what_is_near_it(service: Service) -> None:
    unit = MATRIX / np.linalg.norm(MATRIX, axis=1, keepdims=True)
    near = [IDS[row] for row in np.argsort(-(unit @ unit[5])) if row != 5][:5]
    assert [hit.id for hit in service.client.search("vecs", item_id=IDS[5], using="v", limit=6).hits if hit.id != IDS[5]][:5] == near


def test_filters_count_and_scroll_agree(service: Service) -> None:
    even = {"must": [{"key": "half", "match": {"value": 0}}]}
    client = service.client
    assert (client.count("vecs"), client.count("vecs", even)) == (ROWS, ROWS // 2)
    assert sorted(hit.id for hit in client.scroll("vecs", page_size=70)) == IDS
    assert sorted(hit.id for hit in client.scroll("vecs", filter=even, page_size=64)) == IDS[::2]
    assert all(hit.payload["half"] == 0 for hit in client.search("vecs", vector=MATRIX[1].tolist(), using="v", filter=even).hits)


def test_a_point_is_read_by_its_id_whatever_characters_it_has(service: Service) -> None:
    assert service.client.point("vecs", IDS[9]).payload["text"] == "text 9"


def test_names_that_do_not_exist_are_not_found_and_wrong_requests_are_refused(service: Service) -> None:
    for call in (lambda: service.client.count("nothing"), lambda: service.client.point("vecs", "nothing")):
        with pytest.raises(NotFoundError) as caught:
            call()
        assert caught.value.error_code.endswith("not_found")
    with pytest.raises(SettingsError):
        service.client.search("vecs", vector=[1.0, 2.0], using="v")
    assert service.client.collections() == ["vecs"]
    assert service.client.ready()


def test_a_delete_and_a_new_version_are_seen_once_their_offset_is_reached(service: Service) -> None:
    with MediaProducer(service.engines.log, service.collection, service.engines.settings) as producer:
        producer.send_vectors(["once", "twice"], {"v": np.eye(2, 8, dtype=np.float32)}, texts=["first", "first"])
        producer.send_vectors(["twice"], {"v": np.eye(1, 8, dtype=np.float32)}, texts=["second"])
        producer.delete("once")
    service.client.wait_for("vecs", producer.next_offsets, timeout_seconds=20)
    assert service.client.point("vecs", "twice").payload["text"] == "second"
    with pytest.raises(NotFoundError):
        service.client.point("vecs", "once")
    with MediaProducer(service.engines.log, service.collection, service.engines.settings) as producer:
        producer.delete("twice")
    service.client.wait_for("vecs", producer.next_offsets, timeout_seconds=20)
    assert service.client.count("vecs") == ROWS


def test_media_that_went_through_the_store_comes_back_verified_with_its_thumbnail(service: Service) -> None:
    picture = (Path(__file__).parents[2] / "examples" / "media" / "animals" / "bison.jpg").read_bytes()
    settings = service.engines.settings.model_copy(update={"claim_check_bytes": 1000})
    with MediaProducer(service.engines.log, service.collection, settings, store=service.engines.store) as producer:
        producer.send_picture("claimed", picture, "image/jpeg")
    service.client.wait_for("vecs", producer.next_offsets, timeout_seconds=30)
    key = CollectionKeys("vecs", service.collection.incarnation).claim(hashlib.sha256(picture).hexdigest())
    assert service.engines.store.head(key) is not None
    assert service.client.media("vecs", "claimed") == picture
    assert service.client.thumbnail("vecs", "claimed")[:3] == b"\xff\xd8\xff"
    with MediaProducer(service.engines.log, service.collection, settings, store=service.engines.store) as producer:
        producer.send_picture("damaged", picture + b"!", "image/jpeg")
    service.client.wait_for("vecs", producer.next_offsets, timeout_seconds=30)
    key = CollectionKeys("vecs", service.collection.incarnation).claim(hashlib.sha256(picture + b"!").hexdigest())
    service.engines.store.delete(key)
    service.engines.store.put_if_absent(key, picture + b"?")
    with pytest.raises(NotFoundError, match="sha256"):
        service.client.media("vecs", "damaged")
    with MediaProducer(service.engines.log, service.collection, settings) as producer:
        producer.delete("claimed")
        producer.delete("damaged")
    service.client.wait_for("vecs", producer.next_offsets, timeout_seconds=20)


def test_media_comes_back_as_it_was_produced(service: Service) -> None:
    picture = (Path(__file__).parents[2] / "examples" / "media" / "animals" / "amibe.jpg").read_bytes()
    with MediaProducer(service.engines.log, service.collection, service.engines.settings) as producer:
        producer.send_text("note", "media of a text")
        producer.send_picture("picture", picture, "image/jpeg")
    assert sum(producer.next_offsets.values()) > 0
    service.client.wait_for("vecs", producer.next_offsets, timeout_seconds=20)
    for name, data in (("note", b"media of a text"), ("picture", picture)):
        try:
            assert service.client.media("vecs", name) == data
        finally:
            with MediaProducer(service.engines.log, service.collection, service.engines.settings) as producer:
                producer.delete(name)
            service.client.wait_for("vecs", producer.next_offsets, timeout_seconds=20)
