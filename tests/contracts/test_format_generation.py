"""The generation object: centroids and the codec's bytes come back; disagreement is corrupt."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from contracts.errors import CorruptError
from contracts.footer_file import FooterFile, read_footer, write_footer_file
from contracts.generation import Generation, decode_generation, encode_generation


def sample(nlist: int = 3, dimension: int = 2, quantizer: bytes = b"codebook") -> Generation:
    centroids = np.arange(nlist * dimension, dtype=np.float32).reshape(nlist, dimension)
    return Generation("image", 4, "lite@00", "cosine", "pq", centroids, quantizer, 1000, {"error": 0.5})


@settings(deadline=None)
@given(st.integers(1, 20), st.integers(1, 8), st.binary(max_size=100))
def test_a_generation_comes_back(nlist: int, dimension: int, quantizer: bytes) -> None:
    one = sample(nlist, dimension, quantizer)
    found = decode_generation(encode_generation(one), "here")
    assert np.array_equal(found.centroids, one.centroids) and found.centroids.dtype == np.float32
    for name in ("field_name", "number", "space_id", "metric", "codec", "quantizer", "trained_rows", "statistics"):
        assert getattr(found, name) == getattr(one, name)


@pytest.mark.parametrize(("number", "size_bytes"), [(0.25, 2), (-65504.0, 2), (0.1, 4), (65536.0, 4), (3e38, 4), (1e-9, 4)])
def test_centroids_are_stored_in_float16_where_it_holds_them_exactly(number: float, size_bytes: int) -> None:
    one = replace(sample(1, 2), centroids=np.array([[1.0, number]], np.float32))
    data = encode_generation(one)
    assert len(FooterFile.read(data, "here").sections["centroids"]) == 2 * size_bytes
    found = decode_generation(data, "here").centroids
    assert np.array_equal(found, one.centroids) and found.dtype == np.float32


def changed(sections: dict[str, bytes], meta: dict[str, object], without: str = "") -> bytes:
    file = FooterFile.read(encode_generation(sample()), "here")
    merged = {name: value for name, value in {**file.meta, **meta}.items() if name != without}
    kept: dict[str, bytes | memoryview] = {name: view for name, view in {**file.sections, **sections}.items() if name != without}
    return write_footer_file("generation", kept, merged)


def test_a_byte_that_changed_in_a_section_is_corrupt_though_no_manifest_names_the_hash() -> None:
    data = encode_generation(sample())
    for name in ("centroids", "quantizer"):
        damaged = bytearray(data)
        damaged[read_footer(data, "here").places[name][0]] ^= 1
        with pytest.raises(CorruptError, match=f"section {name} differs"):
            decode_generation(bytes(damaged), "here")


@pytest.mark.parametrize("data", [
    changed({"centroids": b"123"}, {}), changed({"centroids": b"\0" * 8}, {}), changed({}, {"nlist": 4}), changed({}, {"dimension": "2"}),
    changed({}, {"centroids_dtype": "float64"}), changed({}, {"centroids_dtype": "float32"}),
    changed({}, {}, "codec"), changed({}, {}, "nlist"), changed({}, {}, "quantizer"), changed({}, {}, "sections_sha256"),
    changed({}, {"sections_sha256": {}}), changed({}, {"sections_sha256": 3}), write_footer_file("rows", {}, {}), b"x" * 40,
])  # fmt: skip
def test_a_generation_whose_parts_disagree_is_corrupt(data: bytes) -> None:
    with pytest.raises(CorruptError):
        decode_generation(data, "here")
