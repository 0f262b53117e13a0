"""Promises of a collection with an open_clip encoder: created by command, fed through the log, found by text and by picture."""

from __future__ import annotations

import hashlib
import io
import queue
from pathlib import Path

import pytest
from PIL import Image

from backends.catalog.collections import CollectionCatalog
from contracts.settings import load_settings
from embedding.open_encoder import open_encoder
from headwater import HeadwaterClient
from headwater.run_roles import Role, RoleRunner, role
from headwater.wiring import open_engines
from ingest.producer import MediaProducer
from tests import open_clip_models
from tests.headwater.conftest import Headwater

CAPTIONS = {"red": "a red square", "green": "grass in the morning", "blue": "the open sea at noon"}


def picture(colour: str) -> bytes:
    sink = io.BytesIO()
    Image.new("RGB", (120, 90), colour).save(sink, "PNG")
    return sink.getvalue()


@pytest.fixture
def encoder_name(workplace: Path) -> str:
    """Random weights in a folder of the workplace, named as a user names them."""
    from safetensors.torch import save_file

    open_clip_models.register(workplace)
    (workplace / "models").mkdir()
    path = workplace / "models" / "tiny.safetensors"
    save_file({name: value.contiguous() for name, value in open_clip_models.random_model().state_dict().items()}, path)
    return f"open_clip:{open_clip_models.ARCHITECTURE}/models/tiny.safetensors#sha256={hashlib.sha256(path.read_bytes()).hexdigest()}"


@pytest.mark.slow
def test_pictures_and_texts_of_an_open_clip_collection_are_found(workplace: Path, headwater: Headwater, encoder_name: str) -> None:
    created = headwater("collection", "create", "clips", "--encoder", encoder_name.partition("#")[0], "--partitions", "2")
    assert created.code == 0, created.err
    described = headwater("collection", "describe", "clips", "--json")
    assert f"open_clip:{open_clip_models.ARCHITECTURE}@" in described.out
    assert encoder_name in described.out, "the name is stored with the hash of the file"
    settings = load_settings(query_port=0)
    ports: queue.SimpleQueue[int] = queue.SimpleQueue()
    with open_engines(settings) as engines:
        collection = CollectionCatalog(engines.store).get("clips")
        roles: dict[str, Role] = {"embed": role("embed", engines), "index": role("index", engines), "query": role("query", engines, None, ports.put)}
        with RoleRunner(roles, settings.stop_seconds), HeadwaterClient(f"http://127.0.0.1:{ports.get(timeout=60)}") as client:
            with MediaProducer(engines.log, collection, settings) as producer:
                for colour, caption in CAPTIONS.items():
                    producer.send_picture(colour, picture(colour), "image/png", caption=caption)
            client.wait_for("clips", producer.next_offsets, timeout_seconds=120)
            for colour, caption in CAPTIONS.items():
                by_picture = client.search("clips", image=picture(colour), using="image", limit=1).hits[0]
                by_text = client.search("clips", caption, using="text", limit=1).hits[0]
                assert (by_picture.id, by_text.id) == (colour, colour)
                assert by_picture.score == pytest.approx(1.0, abs=1e-2) and by_text.score == pytest.approx(1.0, abs=1e-2)
    assert open_encoder(encoder_name, settings).space.space_id == collection.index().fields[0].space_id


def test_a_collection_on_weights_that_are_not_there_is_not_created_and_the_line_says_why(headwater: Headwater, encoder_name: str) -> None:
    missing = headwater("collection", "create", "clips", "--encoder", encoder_name.partition("#")[0].replace("tiny.", "none."))
    assert missing.code == 2
    assert "none.safetensors cannot be read" in missing.err and "Traceback" not in missing.err
    other = headwater("collection", "create", "clips", "--encoder", f"{encoder_name.partition('#')[0]}#sha256={'0' * 64}")
    assert other.code == 6
    assert "pinned" in other.err
