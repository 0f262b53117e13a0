"""The footer-indexed file: sections come back, damage is found, ranges can be checked."""

from __future__ import annotations

import base64
import hashlib
import struct
import zlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from contracts import canonical_json
from contracts.errors import CorruptError
from contracts.footer_file import ALIGNMENT, CHUNK_BYTES, MAGIC, FooterFile, check_bytes, check_chunks, chunk_hashes, read_footer, write_footer_file
from tests.examples import examples

sections = st.dictionaries(st.from_regex(r"[a-z/.]{1,12}", fullmatch=True), st.binary(max_size=200), max_size=5)
metas = st.dictionaries(st.from_regex(r"[a-z]{1,5}", fullmatch=True), st.integers() | st.booleans(), max_size=3)


@given(sections, metas)
def test_sections_and_meta_come_back_aligned(parts: dict[str, bytes], meta: dict[str, int]) -> None:
    data = write_footer_file("rows", parts, meta)
    file = FooterFile.read(data, "here", "rows")
    assert {name: bytes(view) for name, view in file.sections.items()} == parts and file.meta == meta and file.kind == "rows"
    footer = canonical_json.load(data[-16 - struct.unpack("<I", data[-16:-12])[0] : -16])
    assert all(place["offset"] % ALIGNMENT == 0 for place in footer["sections"].values())
    assert data.startswith(MAGIC) and data.endswith(MAGIC)


@given(sections, metas)
def test_the_same_sections_make_the_same_bytes(parts: dict[str, bytes], meta: dict[str, int]) -> None:
    assert write_footer_file("rows", parts, meta) == write_footer_file("rows", parts, dict(reversed(meta.items())))


@settings(max_examples=examples(200))
@given(st.data())
def test_a_flipped_byte_in_the_frame_is_corrupt_and_in_a_section_is_left_to_the_sha256(data: st.DataObject) -> None:
    original = write_footer_file("rows", {"a": b"12345"}, {"n": 1})
    at = data.draw(st.integers(0, len(original) - 1))
    damaged = bytearray(original)
    damaged[at] ^= data.draw(st.integers(1, 255))
    in_frame = at < len(MAGIC) or at >= ALIGNMENT + 5
    if in_frame:
        with pytest.raises(CorruptError):
            FooterFile.read(bytes(damaged), "here", "rows")
    else:
        FooterFile.read(bytes(damaged), "here", "rows")
    with pytest.raises(CorruptError):
        check_bytes(bytes(damaged), len(original), hashlib.sha256(original).hexdigest(), "here")


@given(sections, metas, st.integers(0, 400))
def test_the_footer_is_read_from_the_last_bytes_alone_or_is_corrupt(parts: dict[str, bytes], meta: dict[str, int], more: int) -> None:
    data = write_footer_file("rows", parts, meta)
    length = 16 + struct.unpack("<I", data[-16:-12])[0]
    footer = read_footer(data[-min(length + more, len(data)) :], "here")
    assert (footer.kind, footer.meta) == ("rows", meta)
    assert {name: data[start : start + size] for name, (start, size) in footer.places.items()} == parts
    with pytest.raises(CorruptError):
        read_footer(data[-length + 1 :], "here")


@given(st.integers(0, 200))
def test_a_truncated_file_is_corrupt(cut: int) -> None:
    original = write_footer_file("rows", {"a": b"12345"}, {})
    with pytest.raises(CorruptError):
        FooterFile.read(original[: min(cut, len(original) - 1)], "here")


@given(st.binary(max_size=80))
def test_random_bytes_are_corrupt_and_nothing_else(data: bytes) -> None:
    for candidate in (data, MAGIC + data, MAGIC + data + MAGIC):
        with pytest.raises(CorruptError):
            FooterFile.read(candidate, "here")


def forged(footer: object) -> bytes:
    body = canonical_json.dump(footer)
    return MAGIC + body + struct.pack("<II8s", len(body), zlib.crc32(body), MAGIC)


@pytest.mark.parametrize("footer", [
    [], {}, {"format": 1}, {"format": 1, "kind": "rows", "meta": {}, "sections": []}, {"format": 1, "kind": "rows", "meta": 3, "sections": {}},
    {"format": 1, "kind": "rows", "meta": {}, "sections": {"a": {"offset": 0, "size_bytes": 10**9}}},
    {"format": 1, "kind": "rows", "meta": {}, "sections": {"a": {"offset": -1, "size_bytes": 1}}},
    {"format": 1, "kind": "rows", "meta": {}, "sections": {"a": {"offset": "0", "size_bytes": 1}}},
    {"format": 1, "kind": "rows", "meta": {}, "sections": {"a": {"offset": 0.5, "size_bytes": 1}}},
    {"format": 1, "kind": "rows", "meta": {}, "sections": {"a": None}},
    {"format": 1, "kind": "other", "meta": {}, "sections": {}},
])  # fmt: skip
def test_a_well_summed_footer_that_lies_is_corrupt(footer: object) -> None:
    with pytest.raises(CorruptError):
        FooterFile.read(forged(footer), "here", "rows")


def test_another_format_version_is_named_as_such() -> None:
    with pytest.raises(CorruptError) as caught:
        FooterFile.read(forged({"format": 2, "kind": "rows", "meta": {}, "sections": {}}), "here")
    assert caught.value.error_code == "unknown_format"


def test_a_missing_section_is_corrupt() -> None:
    with pytest.raises(CorruptError, match="section b is missing"):
        FooterFile.read(write_footer_file("rows", {"a": b""}, {}), "here").section("b", "here")


def test_every_chunk_of_a_range_is_checked() -> None:
    data = bytes(range(256)) * 4096 * 2 + b"tail"
    digests = chunk_hashes(data)
    assert len(base64.b64decode(digests)) == 3 * 32
    check_chunks(data, 0, digests, "here")
    check_chunks(data[CHUNK_BYTES : 2 * CHUNK_BYTES], 1, digests, "here")
    check_chunks(data[2 * CHUNK_BYTES :], 2, digests, "here")
    wrong = bytearray(data)
    wrong[CHUNK_BYTES + 5] ^= 1
    for bad, first in ((bytes(wrong), 0), (data[:CHUNK_BYTES], 2), (data[:CHUNK_BYTES], 9), (data[: CHUNK_BYTES - 1], 0)):
        with pytest.raises(CorruptError):
            check_chunks(bad, first, digests, "here")
    with pytest.raises(CorruptError, match="base64"):
        check_chunks(data, 0, "not base64!", "here")


def test_an_object_of_one_chunk_has_no_chunk_hashes() -> None:
    assert chunk_hashes(b"x" * CHUNK_BYTES) == "" and chunk_hashes(b"x" * (CHUNK_BYTES + 1)) != ""
