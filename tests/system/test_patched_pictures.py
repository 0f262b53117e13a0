"""Patches from the producer to the answer: attributes change at once, pictures stay where they were produced."""

from __future__ import annotations

import io
from dataclasses import replace

from PIL import Image

from backends.catalog.manifests import ManifestChain
from contracts.object_keys import CollectionKeys
from indexer.live_rows import LiveRows
from indexer.partition_builder import PartitionBuilder
from indexer.partition_source import PartitionSource
from indexer.ulids import UlidSource
from tests.encoders import ColourEncoder, colour_fields
from tests.query.writer import Writer, engines_for_test, unit, writer
from tests.system.attribute_stack import stack


def jpeg(colour: str) -> bytes:
    sink = io.BytesIO()
    Image.new("RGB", (40, 30), colour).save(sink, "JPEG")
    return sink.getvalue()


def test_a_patched_picture_keeps_its_vectors_caption_time_and_media_in_the_tail_and_in_segments() -> None:
    with stack(colour_fields(), ColourEncoder(), attributes={"price": "float"}) as made:
        made.producer.send_picture("red", jpeg("red"), "image/jpeg", caption="a red card", attributes={"price": 1, "note": "x"}, acl=["a"])
        made.settle()
        before, place = made.get("red"), made.get("red", "/lineage")
        assert place["media"] == {"offset": 0, "item": 0}
        for price, seal in ((2.0, False), (3.0, True), (4.0, True), (5.0, False)):  # on a row of the tail, of a segment, on a patched row
            made.producer.patch("red", {"price": price, "last": price}).result()
            (made.seal if seal else made.settle)()
            point, lineage = made.get("red"), made.get("red", "/lineage")
            assert point["payload"] == before["payload"] | {"price": price, "last": price}
            assert point["vector"] == before["vector"] and point["version"] == int(price) - 1 == lineage["offset"]
            assert (lineage["media"], lineage["media_sha256"]) == (place["media"], place["media_sha256"])
            assert made.get("red", "/media").content == jpeg("red") and made.get("red", "/thumbnail?size=20").status_code == 200
            assert made.matching("price", price) == ["red"] and made.matching("price", price - 1) == []
        assert made.post("count", {})["result"]["count"] == 1


def test_a_patch_with_a_wrong_type_is_a_dead_letter_and_one_without_a_row_is_not() -> None:
    with stack(colour_fields(), ColourEncoder(), attributes={"price": "float"}) as made:
        made.producer.patch("nobody", {"price": 1})
        made.producer.send_picture("red", jpeg("red"), "image/jpeg")
        made.producer.patch("red", {"price": "cheap"})
        made.producer.delete("red")
        made.producer.patch("red", {"price": 2})
        made.seal()
        assert made.ids({}) == []
        bounds = made.engines.log.bounds(made.record.dead_letter_topic)[0]
        letter = made.engines.log.read_at(made.record.dead_letter_topic, 0, 0)
        assert bounds.next_offset == 1 and letter is not None
        assert (letter.value, letter.header("hw_reason")) == (b'{"price":"cheap"}', b"bad_attributes")


def test_a_base_row_whose_segment_was_compacted_away_is_found_in_the_newest_manifest() -> None:
    made: Writer = writer(engines_for_test(seal_seconds=0.01), attributes={"price": "float"})
    builder = PartitionBuilder(PartitionSource(made.engines, made.record, made.index, 0), "w", UlidSource())
    builder.start()
    made.put("a", unit(1, 2, 3, 4), text="kept")
    made.put("b")
    read_into(builder, made)
    first = builder.commit()
    assert first is not None
    (old,) = first.manifest.segments
    keys = CollectionKeys(made.record.name, made.record.incarnation).index(made.index.name).partition(0)
    live = LiveRows(made.engines.store)
    live.load(first.manifest)
    rows = live.bases(["a", "b", "c"], made.record, made.index)
    assert [row is None for row in rows] == [False, False, True]
    items = [replace(made.upsert("a", unit(1, 2, 3, 4), text="kept"), offset=0), replace(made.upsert("b"), offset=1)]
    entry = made.write_segment("01J" + "0" * 23, items)
    moved = first.next(commit_id="01JC0MPACT0000000000000000", writer="compactor", committed_at=first.manifest.committed_at, segments=(entry,))
    assert ManifestChain(made.engines.store, keys).create(moved) is not None
    for part in old.parts.values():
        made.engines.store.delete(part.key)
    made.send([made.patch("a", {"price": 7})])
    read_into(builder, made)
    second = builder.commit()
    assert second is not None and [segment.rows for segment in second.manifest.segments] == [2, 1]
    live.load(second.manifest)
    (base,) = live.bases(["a"], made.record, made.index)
    assert base is not None and base.rows.column("text")[base.row].as_py() == "kept"
    assert base.rows.column("attributes")[base.row].as_py()["price"] == 7.0
    vector = base.vector("own")
    assert vector is not None and vector.tolist() == unit(1, 2, 3, 4).tolist()


def read_into(builder, made) -> None:  # type: ignore[no-untyped-def]
    while builder.chain.expected < made.next_offset:
        record = made.engines.log.read_at(made.index.vectors_topic, 0, builder.vectors_offset)
        if record is not None:
            builder.feed(record)
