"""A partial dead letter: its caption is indexed, its picture was rejected; the replay takes the place of the partial row, and of nothing newer."""

from __future__ import annotations

import numpy as np
import pytest

from backends.catalog.admin import CollectionRequest, create_collection
from contracts.collection import CollectionRecord
from contracts.engines import Engines
from indexer.build_worker import BuildWorker
from indexer.dead_letter_states import LetterFilter, list_letters
from indexer.embed_worker import EmbedWorker
from indexer.replay import plan_replay, replay
from tests.encoders import ColourEncoder, colour_fields
from tests.indexer.conftest import eventually, running
from tests.indexer.stored import StoredPartition, read_partition
from tests.indexer.test_picture_path import jpeg, send

TIGHT_PIXELS = 100


@pytest.fixture
def pictures(engines: Engines) -> CollectionRecord:
    return create_collection(engines, CollectionRequest("pictures", colour_fields(), 1))


def index_all(engines: Engines, collection: CollectionRecord, most_pixels: int = 1_000_000) -> StoredPartition:
    engines = Engines(engines.settings.model_copy(update={"max_picture_pixels": most_pixels}), engines.log, engines.store)
    index, end = collection.index(), engines.log.bounds(collection.source_topic)[0].next_offset
    with running(EmbedWorker(engines, collection, index, ColourEncoder()).run, BuildWorker(engines, collection, index).run):
        eventually(lambda: read_partition(engines, collection, 0).manifest.checkpoint.media_offset == end)
    return read_partition(engines, collection, 0)


def replay_all(engines: Engines, collection: CollectionRecord) -> list[str]:
    """Replay what is still dead; gives the states that were found."""
    listed = list_letters(engines, collection, collection.index(), LetterFilter())
    report = replay(engines, collection, plan_replay(listed).letters, lambda done: None)
    assert report.failed == {}
    return [one.state for one in listed]


def test_the_replay_of_a_partial_item_replaces_the_partial_row(engines: Engines, pictures: CollectionRecord) -> None:
    send(engines, pictures, "half", jpeg((0, 0, 250)), content_type="image/jpeg", hw_caption="blue card")
    stored = index_all(engines, pictures, TIGHT_PIXELS)
    assert stored.live == {"half": (0, 0)} and [(run.verdict, run.reason, run.partial) for run in stored.ledger] == [("row", "too_many_pixels", True)]
    caption_alone = stored.vectors["half"]
    assert replay_all(engines, pictures) == ["partial"]
    stored = index_all(engines, pictures)
    assert stored.live == {"half": (1, 0)} and stored.texts == {"half": "blue card"}
    assert not np.allclose(stored.vectors["half"], caption_alone)  # `fused`: the picture is in it now
    assert replay_all(engines, pictures) == ["replayed"]


def test_a_partial_item_that_was_updated_since_stays_as_the_update_left_it(engines: Engines, pictures: CollectionRecord) -> None:
    send(engines, pictures, "half", jpeg((0, 0, 250)), content_type="image/jpeg", hw_caption="blue card")
    send(engines, pictures, "half", b"a text instead", content_type="text/plain")
    stored = index_all(engines, pictures, TIGHT_PIXELS)
    assert stored.live == {"half": (1, 0)}
    assert replay_all(engines, pictures) == ["superseded"]
    listed = list_letters(engines, pictures, pictures.index(), LetterFilter(places=frozenset({(0, 0)})))
    assert replay(engines, pictures, plan_replay(listed, are_named=True).letters, lambda done: None).failed == {}
    stored = index_all(engines, pictures)
    assert stored.live == {"half": (1, 0)} and stored.texts == {"half": "a text instead"}
    assert stored.verdicts()[2, 0] == "superseded"


def test_a_partial_replay_that_is_partial_again_is_partial_there(engines: Engines, pictures: CollectionRecord) -> None:
    send(engines, pictures, "half", jpeg((0, 0, 250)), content_type="image/jpeg", hw_caption="blue card")
    index_all(engines, pictures, TIGHT_PIXELS)
    replay_all(engines, pictures)
    assert index_all(engines, pictures, TIGHT_PIXELS).live == {"half": (1, 0)}
    assert replay_all(engines, pictures) == ["replayed", "partial"]
    assert index_all(engines, pictures).live == {"half": (2, 0)}
    assert replay_all(engines, pictures) == ["replayed", "replayed"]
