"""Exact search is exact, for every metric and mask."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.examples import examples
from vectors import flat


def expected(query: np.ndarray, matrix: np.ndarray, metric: str, allowed: np.ndarray) -> np.ndarray:
    wide = matrix.astype(np.float64)
    scores = wide @ query if metric != "euclid" else -np.linalg.norm(wide - query, axis=1)
    scores[~allowed] = -np.inf
    return scores


@settings(max_examples=examples(60), deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    rows=st.integers(0, 300),
    limit=st.integers(1, 40),
    share=st.sampled_from([0.0, 0.03, 0.5, 1.0]),
    metric=st.sampled_from(["cosine", "dot", "euclid"]),
)
def test_search_finds_what_a_loop_over_all_allowed_rows_finds(seed, rows, limit, share, metric):  # type: ignore[no-untyped-def]
    rng = np.random.default_rng(seed)
    matrix = flat.as_float32(rng.standard_normal((rows, 9)))
    query = flat.as_float32(rng.standard_normal(9))
    allowed = rng.random(rows) < share
    hits = flat.search(query, matrix, metric, limit, allowed)
    truth = expected(query, matrix, metric, allowed)
    assert len(hits.rows) == min(limit, int(allowed.sum())) == len(set(hits.rows.tolist()))
    best = np.sort(truth)[::-1][: len(hits.rows)]
    signed = hits.scores if flat.higher_is_better(metric) else -hits.scores
    np.testing.assert_allclose(signed, best, rtol=2e-3, atol=2e-3)
    np.testing.assert_allclose(truth[hits.rows], best, rtol=2e-3, atol=2e-3)


def test_euclid_scores_are_distances_in_ascending_order():
    matrix = flat.as_float32(np.array([[3.0, 4.0], [0.0, 0.0], [6.0, 8.0]]))
    hits = flat.search(np.zeros(2, np.float32), matrix, "euclid", 3)
    assert hits.rows.tolist() == [1, 0, 2]
    assert hits.scores.tolist() == [0.0, 5.0, 10.0]


def test_half_precision_vectors_are_searched_as_float32():
    matrix = flat.as_float32(np.eye(4, dtype=np.float16))
    assert matrix.dtype == np.float32
    assert flat.search(matrix[2], matrix, "cosine", 1).rows.tolist() == [2]


def test_a_merge_keeps_the_best_of_all_parts_in_the_order_of_the_metric():
    near = flat.FlatHits(np.array([4, 1]), np.array([0.9, 0.2], np.float32))
    far = flat.FlatHits(np.array([7, 0]), np.array([0.5, 0.2], np.float32))
    empty = flat.FlatHits(np.zeros(0, np.int64), np.zeros(0, np.float32))
    best = [(hit.part, hit.row) for hit in flat.merge([near, empty, far], "dot", 3)]
    assert best == [(0, 4), (2, 7), (0, 1)]
    assert [(hit.part, hit.row) for hit in flat.merge([near, far], "euclid", 2)] == [(0, 1), (1, 0)]
    assert flat.merge([], "dot", 3) == []


def test_a_query_of_another_dimension_is_refused():
    with pytest.raises(ValueError, match="shape"):
        flat.search(np.zeros(3, np.float32), np.zeros((5, 4), np.float32), "dot", 1)


def test_a_vector_without_length_has_no_direction_and_a_huge_one_has():
    with pytest.raises(ValueError, match="direction"):
        flat.normalise(np.zeros(4, np.float32))
    np.testing.assert_allclose(flat.normalise(np.array([3e38, 3e38], np.float32)), [0.70710678, 0.70710678], rtol=1e-6)


def test_a_product_beyond_float32_is_the_largest_score_and_a_number():
    matrix = flat.as_float32(np.array([[1e30, 0.0], [1.0, 0.0]]))
    hits = flat.search(np.array([1e30, 0.0], np.float32), matrix, "dot", 2)
    assert hits.rows.tolist() == [0, 1] and np.isfinite(hits.scores).all()
