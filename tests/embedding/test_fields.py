"""Promises of `embedding.fields`: the fused field is the direction between both sides, or the only side there is."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from embedding.fields import fuse


def unit_rows(seed: int, count: int, dimension: int = 16) -> np.ndarray:
    rows = np.random.default_rng(seed).normal(size=(count, dimension)).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


@given(st.integers(0, 2**32 - 1), st.integers(1, 20))
def test_a_fused_row_is_a_float32_unit_vector_equally_near_to_both_sides(seed: int, count: int) -> None:
    image, text = unit_rows(seed, count), unit_rows(seed + 1, count)
    fused = fuse(image, text)
    assert fused.dtype == np.float32
    assert np.allclose(np.linalg.norm(fused, axis=1), 1.0, atol=1e-5)
    assert np.allclose((fused * image).sum(1), (fused * text).sum(1), atol=1e-5)


def test_a_missing_side_leaves_the_other_as_it_is() -> None:
    rows = unit_rows(3, 4)
    assert np.array_equal(fuse(rows, None), rows)
    assert np.array_equal(fuse(None, rows), rows)
    assert fuse(rows, None) is not rows


def test_single_rows_may_miss_a_side() -> None:
    image, text = unit_rows(4, 3), unit_rows(5, 3)
    image[0], text[1] = 0.0, 0.0
    fused = fuse(image, text)
    assert np.allclose(fused[0], text[0], atol=1e-6)
    assert np.allclose(fused[1], image[1], atol=1e-6)
    assert np.allclose(np.linalg.norm(fused, axis=1), 1.0, atol=1e-5)


def test_opposite_sides_fall_back_to_the_picture() -> None:
    image = unit_rows(6, 2)
    assert np.allclose(fuse(image, -image), image)


def test_nothing_to_fuse_and_sides_of_different_shape_are_refused() -> None:
    with pytest.raises(ValueError, match="at least one side"):
        fuse(None, None)
    with pytest.raises(ValueError, match="differ in shape"):
        fuse(unit_rows(1, 2), unit_rows(1, 3))
