"""The graph over centroids finds nearly the lists that comparing all of them finds, and is not used where it would not."""

from __future__ import annotations

import faiss
import numpy as np
import pytest

from contracts.generation import Generation
from tests.vectors.trained import own
from vectors import coarse_graph
from vectors.logical_index import LogicalIndex
from vectors.quantizer import Quantizer
from vectors.quantizer_bytes import QuantizerParts, write_quantizer
from vectors.tiers import Allowed

DIMENSION, LISTS = 16, 2048


def vectors(rows: int, seed: int) -> np.ndarray:
    found = np.random.default_rng(seed).standard_normal((rows, DIMENSION)).astype(np.float32)
    return found / np.linalg.norm(found, axis=1, keepdims=True)


def quantizer(metric: str, lists: int = LISTS) -> Quantizer:
    """One whose centroids are random, which no training gives as fast."""
    codebook = np.random.default_rng(0).standard_normal((2, 256, DIMENSION // 2)).astype(np.float32)
    ranges = np.stack([np.full(DIMENSION, -1.0), np.full(DIMENSION, 2.0)]).astype(np.float32)
    field = own(dimension=DIMENSION, metric=metric)
    parts = write_quantizer(QuantizerParts(codebook, ranges))
    return Quantizer.open(Generation(field.name, 1, field.space_id, metric, "ivf_pq2x8+sq8", vectors(lists, 1), parts, 10_000))


@pytest.mark.parametrize("metric", ["cosine", "euclid"])
def test_nearly_the_same_lists_are_found(metric: str) -> None:
    made, queries = quantizer(metric), vectors(200, 2)
    graph = coarse_graph.build(made)
    exact = made.coarse.search(queries, 8)[1]
    found = graph.search(queries, 8, params=coarse_graph.parameters(8))[1]
    assert np.mean([np.isin(one, other).mean() for one, other in zip(exact, found, strict=True)]) >= 0.95
    assert (found[:, 0] == exact[:, 0]).mean() >= 0.97


def test_a_graph_is_for_many_lists_of_which_few_are_wanted() -> None:
    assert coarse_graph.pays(quantizer("cosine")) and not coarse_graph.pays(quantizer("cosine", 512)) and not coarse_graph.pays(quantizer("dot"))
    assert coarse_graph.is_used(2048, 64) and not coarse_graph.is_used(2048, 65)


def test_with_a_graph_an_index_finds_the_same_and_all_lists_are_still_all_rows() -> None:
    index, matrix, queries = LogicalIndex(quantizer("cosine")), vectors(5000, 3), vectors(50, 4)
    lease = index.add_rows(5000, index.quantizer.encode(matrix))
    flags = np.zeros(index.numbers.limit, np.bool_)
    flags[lease.numbers.start + np.arange(5000)] = True
    allowed = Allowed(np.packbits(flags, bitorder="little"))
    assert index.graph_due
    exact = index.tiers.closest(queries, 10, 500, 32, allowed)[0]
    before = index.tiers
    index.build_graph()
    assert not index.graph_due and index.tiers is not before
    found = index.tiers.closest(queries, 10, 500, 32, allowed)[0]
    assert np.mean([np.isin(one, other).mean() for one, other in zip(exact, found, strict=True)]) >= 0.9
    np.testing.assert_array_equal(found[7], index.tiers.closest(queries[7:8], 10, 500, 32, allowed)[0][0])
    np.testing.assert_array_equal(before.closest(queries, 10, 500, 32, allowed)[0], exact)
    everything = index.tiers.closest(queries[:2], 5000, 5000, LISTS, allowed)[0]
    assert (np.sort(everything, axis=1) == lease.numbers.start + np.arange(5000)).all()
    assert faiss.omp_get_max_threads() == 1
