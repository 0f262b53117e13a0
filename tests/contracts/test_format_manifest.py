"""The manifest: chained, strict, and closed to everything that could lead a reader astray."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from contracts.errors import CorruptError
from contracts.hashed_json import with_hash, without_hash
from contracts.manifest import Checkpoint, Epochs, LedgerEntry, Manifest, ObjectEntry, ReadManifest, SegmentEntry, object_version
from contracts.object_keys import CollectionKeys
from tests.contracts.format_samples import ULID_A, ULID_B

KEYS = CollectionKeys("photos", ULID_A).index("main").partition(3)


def entry(part: str, data: bytes = b"x") -> ObjectEntry:
    return ObjectEntry.of(KEYS.part("b", 1, ULID_B, part), data)


SEGMENT = SegmentEntry(
    segment_id=ULID_B,
    rows=2,
    start_offset=0,
    next_offset=2,
    schema_version=1,
    parts={"rows": entry("rows"), "field.image": entry("field.image", b"yy")},
)
FIRST = Manifest(
    version=1,
    previous=None,
    commit_id=ULID_A,
    writer="host/1",
    committed_at="2026-11-23T00:00:00Z",
    incarnation=ULID_A,
    index="main",
    partition=3,
    cluster_id="cluster",
    media_topic_id="t-media",
    vectors_topic_id="t-vectors",
    schema_version=1,
    origin_offset=0,
    checkpoint=Checkpoint(vectors_offset=0, media_offset=0),
)
SECOND = ReadManifest(FIRST, FIRST.to_bytes()).next(
    commit_id=ULID_B,
    checkpoint=Checkpoint(vectors_offset=1, media_offset=2),
    epochs=Epochs(builder=1),
    published={"builder-1": ULID_B},
    generation={"image": 0},
    segments=(SEGMENT,),
    deletes=(entry("deletes"),),
    ledger=(LedgerEntry(object=entry("ledger"), start_offset=0, next_offset=2),),
)


def test_a_manifest_comes_back_from_its_canonical_bytes() -> None:
    for manifest in (FIRST, SECOND):
        read = ReadManifest.parse(Manifest, manifest.to_bytes(), "here")
        assert read.manifest == manifest and read.manifest.to_bytes() == manifest.to_bytes()
        assert read.sha256 == hashlib.sha256(manifest.to_bytes()).hexdigest()
    assert SECOND.rows == 2 and SEGMENT.size_bytes == 3


@given(
    st.lists(
        st.sampled_from([{"schema_version": 2}, {"epochs": Epochs(builder=7)}, {"segments": (SEGMENT,)}, {"generation": {"image": 3}}]), max_size=5
    )
)
def test_each_version_names_the_bytes_of_the_one_before_and_keeps_what_was_not_changed(changes: list[dict[str, Any]]) -> None:
    read = ReadManifest(FIRST, FIRST.to_bytes())
    for change in changes:
        following = read.next(commit_id=ULID_B, **change)
        assert following.version == read.manifest.version + 1 and following.previous is not None
        assert (following.previous.version, following.previous.sha256) == (read.manifest.version, read.sha256)
        kept = {name for name in Manifest.model_fields if name not in {"version", "previous", "commit_id", *change}}
        assert all(getattr(following, name) == getattr(read.manifest, name) for name in kept)
        read = ReadManifest.parse(Manifest, following.to_bytes(), "here")


def listed(numbers: Sequence[int]) -> dict[str, Any]:
    """Lists of a manifest with entries of these numbers."""
    ulids = [f"{number:026d}" for number in numbers]
    return {
        "segments": tuple(SEGMENT.model_copy(update={"segment_id": ulid}) for ulid in ulids),
        "deletes": tuple(entry(f"deletes-{ulid}") for ulid in ulids[::2]),
        "ledger": tuple(LedgerEntry(object=entry(f"ledger-{ulid}"), start_offset=0, next_offset=1) for ulid in ulids[1::2]),
    }


lists_of_numbers = st.lists(st.integers(0, 9), max_size=5)


@given(st.lists(lists_of_numbers, min_size=1, max_size=4))
def test_read_after_the_version_before_a_manifest_is_the_same_and_shares_what_both_list(each: list[list[int]]) -> None:
    read = ReadManifest(FIRST, FIRST.to_bytes())
    for numbers in each:
        following = read.next(commit_id=ULID_B, **listed(numbers))
        later = ReadManifest.parse(Manifest, following.to_bytes(), "here", read)
        assert later.manifest == following and later.manifest.to_bytes() == following.to_bytes()
        assert later.sha256 == ReadManifest.parse(Manifest, following.to_bytes(), "here").sha256
        for before, after in zip(read.manifest.segments, later.manifest.segments, strict=False):
            if before != after:
                break
            assert before is after, "it was checked again"
        read = later


@given(lists_of_numbers, lists_of_numbers, st.data())
def test_damaged_bytes_are_read_after_the_version_before_as_they_are_alone(before: list[int], after: list[int], draw: st.DataObject) -> None:
    read = ReadManifest(FIRST, FIRST.to_bytes())
    read = ReadManifest.parse(Manifest, read.next(commit_id=ULID_A, **listed(before)).to_bytes(), "here")
    data = bytearray(read.next(commit_id=ULID_B, **listed(before + after)).to_line())
    for _ in range(draw.draw(st.integers(1, 2))):
        kind, place = draw.draw(st.sampled_from(("change", "cut", "double", "comma", "list"))), draw.draw(st.integers(0, len(data) - 1))
        if kind == "change":
            data[place] = draw.draw(st.sampled_from(b'{}[],:"\\a0 '))
        elif kind == "comma":
            data[data.index(b"]") : data.index(b"]")] = b","
        elif kind == "list":
            data[1:1] = draw.draw(st.sampled_from((b'"segments":[],', b'"segments":[{}],', b'"more":{"segments":[]},')))
        else:
            stop = min(len(data), place + draw.draw(st.integers(1, 400)))
            data[place:stop] = b"" if kind == "cut" else data[place:stop] * 2

    def outcome(after: ReadManifest | None) -> object:
        try:
            return ReadManifest.parse(Manifest, with_hash(bytes(data)), "here", after).manifest
        except CorruptError as error:
            return str(error)

    assert outcome(read) == outcome(None)


def at(path: str, value: Any) -> bytes:
    body = json.loads(without_hash(SECOND.to_bytes(), "here"))
    *way, last = path.split("/")
    place = body
    for step in way:
        place = place[int(step) if isinstance(place, list) else step]
    place[last] = value
    return with_hash(json.dumps(body).encode())


@pytest.mark.parametrize("data", [
    at("surprise", 1), at("checkpoint/surprise", 1), at("version", 0), at("version", -1), at("version", "2"), at("version", True),
    at("origin_offset", -1),
    at("origin_offset", 2**63), at("checkpoint/media_offset", -1), at("checkpoint/vectors_offset", -5), at("epochs/builder", -1), at("partition", -1),
    at("schema_version", 0), at("generation/image", -1), at("generation", {"a/b": 1}), at("segments/0/rows", -1), at("segments/0/start_offset", -1),
    at("segments/0/segment_id", "../x"), at("segments/0/parts/rows/size_bytes", -1), at("segments/0/parts/rows/sha256", "x"),
    at("incarnation", "X" * 26),
    at("segments/0/parts/rows/sha256", "a" * 64 + "\n"), at("previous/sha256", "A" * 64), at("previous/version", 0), at("writer", ""),
    at("writer", "x" * 201),
    at("published", {"host/1": "no"}), at("segments", {}), at("segments/0/parts", []), at("commit_id", None), at("index", "a/b"),
])  # fmt: skip
def test_an_unknown_field_a_negative_number_or_a_wrong_type_is_corrupt(data: bytes) -> None:
    with pytest.raises(CorruptError, match="^here: field "):
        ReadManifest.parse(Manifest, data, "here")


@pytest.mark.parametrize("key", ["", "../../secret", "/etc/passwd", "c/../n/x", "a//b", "a\\b", "a\n", "a b", "x" * 1025])
def test_a_key_that_leaves_the_bucket_is_corrupt_wherever_it_stands(key: str) -> None:
    for path in ("segments/0/parts/rows/key", "deletes/0/key", "ledger/0/object/key"):
        with pytest.raises(CorruptError):
            ReadManifest.parse(Manifest, at(path, key), "here")


@pytest.mark.parametrize("found", [0, 2, "1", None])
def test_another_format_version_is_named_as_such(found: Any) -> None:
    with pytest.raises(CorruptError) as caught:
        ReadManifest.parse(Manifest, at("format", found), "here")
    assert caught.value.error_code == "unknown_format"


@given(st.binary(max_size=80))
def test_random_bytes_are_corrupt_and_nothing_else(data: bytes) -> None:
    with pytest.raises(CorruptError):
        ReadManifest.parse(Manifest, data, "here")


@given(st.integers(0, 10**6), st.integers(1, 255))
def test_a_flipped_byte_is_corrupt(where: int, flip: int) -> None:
    data = bytearray(SECOND.to_bytes())
    data[where % len(data)] ^= flip
    with pytest.raises(CorruptError):
        ReadManifest.parse(Manifest, bytes(data), "here")


def test_a_manifest_cannot_be_changed_in_place_and_next_refuses_unknown_fields() -> None:
    with pytest.raises(ValidationError):
        FIRST.version = 2  # type: ignore[misc]
    with pytest.raises(ValidationError):
        ReadManifest(FIRST, FIRST.to_bytes()).next(surprise=1)


def test_an_object_entry_says_size_hash_and_chunk_hashes() -> None:
    small, large = ObjectEntry.of("a", b"abc"), ObjectEntry.of("a", bytes(2**20 + 1))
    assert (small.size_bytes, small.sha256, small.chunks_sha256) == (3, hashlib.sha256(b"abc").hexdigest(), "")
    assert large.size_bytes == 2**20 + 1 and len(large.chunks_sha256) == 88


def test_the_version_is_read_from_the_key() -> None:
    assert object_version(KEYS.manifest(17)) == 17
    for wrong in ("a.json", KEYS.manifest(17) + "x", KEYS.boundary):
        with pytest.raises(ValueError):
            object_version(wrong)
