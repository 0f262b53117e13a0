"""Quantizers: trained alike from one seed, encoded and decoded without drift, safe against damaged bytes, searched like exact search."""

from __future__ import annotations

import threading
from dataclasses import replace

import faiss
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from contracts.codec import AUTO, FLAT, Codec, parse_codec
from contracts.errors import CorruptError
from contracts.footer_file import FooterFile, write_footer_file
from contracts.generation import decode_generation, encode_generation
from contracts.settings import Settings
from tests.contracts.format_samples import field
from tests.vectors.coded import METRICS, opened, sample, trained
from vectors import flat
from vectors.balance import imbalance
from vectors.inverted_lists import build_lists, holding
from vectors.nlist import LARGEST, ROWS_PER_CENTROID, choose_nlist
from vectors.quantizer import BLOCK_ROWS, Quantizer
from vectors.refine import Sq8Refine, sq8_ranges
from vectors.train import LEAST_ROWS, TrainingStopped, train

DTYPES = ("float16", "float32")


# ---- names and policies -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("dimension", "subquantizers"), [(512, 64), (384, 48), (100, 20), (300, 50), (25, 5), (7, 1), (1, 1), (127, 127), (8, 1)])
def test_auto_cuts_any_dimension_into_equal_pieces_of_at_most_eight(dimension: int, subquantizers: int) -> None:
    assert parse_codec(AUTO, dimension) == Codec(subquantizers, "sq8")


@given(st.integers(1, 16_384))
def test_an_auto_code_is_never_longer_than_its_refine_code_and_its_name_reads_back(dimension: int) -> None:
    codec = parse_codec(AUTO, dimension)
    assert codec is not None and dimension % codec.subquantizers == 0 and codec.subquantizers <= dimension <= 8 * codec.subquantizers
    assert parse_codec(codec.name, dimension) == codec
    assert parse_codec(FLAT, dimension) is None


@pytest.mark.parametrize("name", ["", "ivf", "ivf_pq64x8", "ivf_pq0x8+sq8", "ivf_pq3x8+sq8", "ivf_pq64x4+sq8", "ivf_pq4x8+sq4", "FLAT", "flat\n"])
def test_a_name_that_is_no_codec_or_does_not_divide_the_dimension_is_refused(name: str) -> None:
    with pytest.raises(ValueError):
        parse_codec(name, 64)


@given(st.integers(0, 10**10), st.integers(0, 10**7))
def test_lists_grow_with_rows_and_never_beyond_what_the_sample_can_place(rows: int, train_rows: int) -> None:
    nlist = choose_nlist(rows, train_rows)
    assert 1 <= nlist <= LARGEST and (nlist == 1 or nlist * ROWS_PER_CENTROID <= train_rows)
    assert nlist <= choose_nlist(4 * rows, train_rows)


def test_the_least_training_size_can_be_trained() -> None:
    assert Settings.model_fields["train_rows"].metadata[0].ge == LEAST_ROWS  # type: ignore[union-attr]
    record = field("vec", 8, "float32", "euclid")
    made = train(record, sample(LEAST_ROWS, 8, "euclid"), choose_nlist(LEAST_ROWS, LEAST_ROWS), AUTO, 1, 1)
    assert made.trained_rows == LEAST_ROWS - LEAST_ROWS // 10


def test_imbalance_is_one_for_even_lists_and_the_number_of_lists_for_one_that_holds_all() -> None:
    assert imbalance(np.array([3, 3, 3])) == 1.0 and imbalance(np.array([0, 9, 0])) == 3.0 and imbalance(np.zeros(3, np.int64)) == 1.0


# ---- training -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("metric", METRICS)
def test_the_same_seed_trains_the_same_bytes_and_they_read_back(metric: str) -> None:
    made = encode_generation(trained(metric))
    trained.cache_clear()
    assert encode_generation(trained(metric)) == made
    again = train(field("vec", 16, "float16", metric), sample(800, 16, metric), 12, AUTO, seed=6, number=1)
    assert not np.array_equal(again.centroids, trained(metric).centroids)
    assert np.array_equal(Quantizer.open(decode_generation(made, "here")).centroids, trained(metric).centroids)


def test_the_centroids_of_a_cosine_field_are_those_of_float16() -> None:
    centroids = trained("cosine").centroids
    assert np.array_equal(centroids.astype(np.float16), centroids) and np.allclose(np.linalg.norm(centroids, axis=1), 1, atol=1e-3)
    assert not np.array_equal(trained("dot").centroids.astype(np.float16), trained("dot").centroids)


def test_what_cannot_be_trained_is_refused() -> None:
    record = field("vec", 8, "float32", "euclid")
    for rows, nlist, codec in ((LEAST_ROWS - 1, 4, AUTO), (400, 0, AUTO), (400, 361, AUTO), (400, 4, FLAT), (400, 4, "ivf_pq3x8+sq8")):
        with pytest.raises(ValueError):
            train(record, sample(rows, 8, "euclid"), nlist, codec, 1, 1)
    with pytest.raises(ValueError):
        train(record, sample(400, 9, "euclid"), 4, AUTO, 1, 1)


def test_training_ends_between_two_steps_when_it_is_told_to() -> None:
    stop = threading.Event()
    stop.set()
    with pytest.raises(TrainingStopped):
        train(field("vec", 8, "float32", "euclid"), sample(400, 8, "euclid"), 4, AUTO, 1, 1, stop)


@pytest.mark.parametrize("metric", METRICS)
def test_rows_that_are_all_alike_can_be_trained_on(metric: str) -> None:
    rows = np.zeros((400, 8), np.float32)
    rows[:, 0] = 1
    quantizer = Quantizer.open(train(field("vec", 8, "float16", metric), rows, 10, AUTO, 1, 1))
    encoded = quantizer.encode(rows)
    assert np.abs(quantizer.decode(encoded.refine) - rows).max() < 0.01


# ---- encoding -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("codec", ["auto", "ivf_pq4x8+float16"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("metric", METRICS)
def test_a_decoded_vector_that_is_stored_and_coded_again_gets_the_same_refine_code(metric: str, dtype: str, codec: str) -> None:
    quantizer = opened(metric, 16, dtype, codec)
    rows = sample(3000, 16, metric, seed=8).astype(dtype)  # beyond the sample, so some lie outside the ranges
    refine = quantizer.encode(rows).refine
    for _ in range(3):
        stored = quantizer.decode(refine).astype(dtype)
        again = quantizer.encode(stored)
        assert np.array_equal(again.refine, refine)
    inside = trained(metric, 16, dtype, codec)
    learned = sample(800, 16, metric).astype(dtype).astype(np.float32)
    step = (learned.max(axis=0) - learned.min(axis=0)) * 1.2 / 255
    assert (np.abs(quantizer.decode(quantizer.encode(learned).refine) - learned) <= step * 0.51 + 1e-6 * np.abs(learned)).all(), inside.codec


@settings(deadline=None)
@given(st.data())
@pytest.mark.parametrize("dtype", DTYPES)
def test_no_range_lets_the_fields_dtype_move_a_decoded_vector_into_another_step(dtype: str, data: st.DataObject) -> None:
    largest = 60000 if dtype == "float16" else 1e30
    low = data.draw(st.floats(-largest, largest))
    width = data.draw(st.sampled_from([0.0, 1e-30, 1e-7, 1e-3, 1.0, 1e3, 1e4]))
    high = min(low + width, largest)
    column = np.array([[low], [high]], dtype).astype(np.float32)
    refine = Sq8Refine(sq8_ranges(column, dtype))  # type: ignore[arg-type]
    codes = np.arange(256, dtype=np.uint8).reshape(-1, 1)
    stored = refine.decode(codes).astype(dtype)
    assert np.isfinite(stored).all()
    assert np.array_equal(refine.encode(stored.astype(np.float32)), codes)


@pytest.mark.parametrize("count", [0, 1, 3, BLOCK_ROWS + 1])
def test_rows_are_coded_alike_one_by_one_and_in_blocks(count: int) -> None:
    quantizer = opened("dot")
    rows = sample(count, 16, "dot", seed=3) if count else np.zeros((0, 16), np.float32)
    encoded = quantizer.encode(rows)
    assert (encoded.list_numbers.shape, encoded.codes.shape, encoded.refine.shape) == ((count,), (count, 2), (count, 16))
    for at in {0, count // 2, count - 1} if count else ():
        one = quantizer.encode(rows[at : at + 1])
        assert one.list_numbers[0] == encoded.list_numbers[at] and np.array_equal(one.codes[0], encoded.codes[at])
        assert np.array_equal(one.refine[0], encoded.refine[at])


def test_several_threads_code_as_one_does_and_are_shown_every_row_once() -> None:
    quantizer, rows = opened("dot"), sample(5 * BLOCK_ROWS + 7, 16, "dot", seed=4)
    shown: list[tuple[int, int, str]] = []

    def each_block(start: int, block: np.ndarray) -> None:
        assert np.array_equal(block, rows[start : start + len(block)])
        shown.append((start, len(block), threading.current_thread().name))

    before = faiss.omp_get_max_threads()
    try:
        faiss.omp_set_num_threads(1)
        alone = quantizer.encode(rows)
        faiss.omp_set_num_threads(3)
        together = quantizer.encode(rows, each_block)
    finally:
        faiss.omp_set_num_threads(before)
    assert all(np.array_equal(getattr(alone, name), getattr(together, name)) for name in ("list_numbers", "codes", "refine"))
    starts, sizes = zip(*sorted((start, size) for start, size, _ in shown), strict=True)
    assert sum(sizes) == len(rows) and list(starts) == [0, *np.cumsum(sizes[:-1]).tolist()]
    assert len(sizes) == 6 and max(sizes) - min(sizes) < 6  # as much for each of the three
    assert threading.current_thread().name not in {name for _, _, name in shown}


def test_vectors_of_another_dimension_are_refused() -> None:
    with pytest.raises(ValueError):
        opened().encode(np.zeros((2, 15), np.float32))
    with pytest.raises(ValueError):
        opened().encode(np.zeros(16, np.float32))


def test_numbers_beyond_float32s_square_are_still_coded() -> None:
    encoded = opened("euclid", dtype="float32").encode(np.full((2, 16), 3e38, np.float32))
    assert (encoded.list_numbers >= 0).all()


@pytest.mark.parametrize("metric", METRICS)
def test_an_index_codes_as_the_quantizer_does(metric: str) -> None:
    quantizer = opened(metric)
    rows = sample(200, 16, metric, seed=4)
    encoded = quantizer.encode(rows)
    index = quantizer.new_index()
    index.add_core(len(rows), faiss.swig_ptr(rows), None, faiss.swig_ptr(encoded.list_numbers))
    for number in range(quantizer.nlist):
        size = index.invlists.list_size(number)
        ids = faiss.rev_swig_ptr(index.invlists.get_ids(number), size)
        codes = faiss.rev_swig_ptr(index.invlists.get_codes(number), size * quantizer.code_bytes).reshape(size, -1)
        assert np.array_equal(np.sort(ids), np.flatnonzero(encoded.list_numbers == number)) and np.array_equal(codes, encoded.codes[ids])
    rebuilt = quantizer.reconstruct(encoded.list_numbers, encoded.codes)
    assert np.mean((rebuilt - rows) ** 2) < np.mean((quantizer.centroids[encoded.list_numbers] - rows) ** 2)


@pytest.mark.parametrize("dtype", DTYPES)
def test_float16_matrices_become_float32_without_a_change(dtype: str) -> None:
    rows = np.concatenate([np.arange(65536, dtype=np.uint16).view(np.float16)]).reshape(-1, 64).astype(dtype)
    assert np.array_equal(flat.as_float32(rows), rows.astype(np.float32), equal_nan=True)
    assert flat.as_float32(rows[:0]).shape == (0, 64)


# ---- searching ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("codec", ["auto", "ivf_pq4x8+float16"])
def test_refine_scores_are_those_of_exact_search_over_decoded_vectors(metric: str, codec: str) -> None:
    quantizer = opened(metric, codec=codec)
    rows, queries = sample(50, 16, metric, seed=5), sample(3, 16, metric, seed=6)
    refine = quantizer.encode(rows).refine
    scores = quantizer.refine_scores(queries, np.stack([refine] * 3))
    for query, found in zip(queries, scores, strict=True):
        exact = flat.search(query, quantizer.decode(refine), quantizer.metric, 50)
        assert np.allclose(found[exact.rows], exact.scores, rtol=1e-4, atol=1e-4)
    assert quantizer.refine_scores(queries[:0], np.zeros((0, 4, quantizer.refine_bytes), np.uint8)).shape == (0, 4)


@pytest.mark.parametrize("metric", METRICS)
def test_search_and_refine_find_what_exact_search_finds(metric: str) -> None:
    quantizer = opened(metric)
    rows, queries = sample(2000, 16, metric, seed=1), sample(40, 16, metric, seed=2)
    encoded = quantizer.encode(rows)
    lists = build_lists(quantizer.nlist, encoded.list_numbers, encoded.codes, np.arange(len(rows)))
    index = holding(quantizer, lists, len(rows), owns=False)
    _, candidates = index.search(queries, 100, params=faiss.SearchParametersIVF(nprobe=quantizer.nlist))
    scores = quantizer.refine_scores(queries, encoded.refine[candidates])
    order = np.argsort(-scores if flat.higher_is_better(quantizer.metric) else scores, axis=1)[:, :10]
    found = np.take_along_axis(candidates, order, axis=1)
    exact = [flat.search(query, rows, quantizer.metric, 10).rows for query in queries]
    assert np.mean([np.isin(truth, hits).mean() for truth, hits in zip(exact, found, strict=True)]) > 0.9


def test_indexes_of_a_generation_share_its_coarse_quantizer_and_outlive_the_quantizer() -> None:
    quantizer = Quantizer.open(trained())
    one, two = quantizer.new_index(), quantizer.new_index()
    assert int(one.quantizer.this) == int(two.quantizer.this) == int(quantizer.coarse.this) and not one.own_fields
    assert one.precomputed_table.size() == 0
    rows = sample(20, 16, "cosine")
    del quantizer, two
    one.add(rows)
    _, found = one.search(rows, 1, params=faiss.SearchParametersIVF(nprobe=12))
    assert (found >= 0).all()


# ---- damaged generations ------------------------------------------------------------------------------------------------


def with_quantizer(**sections: bytes | None) -> bytes:
    file = FooterFile.read(trained().quantizer, "here")
    merged = {**{name: bytes(view) for name, view in file.sections.items()}, **sections}
    return write_footer_file(file.kind, {name: data for name, data in merged.items() if data is not None}, file.meta)


NAN = np.full((2, 16), np.nan, "<f4").tobytes()


@pytest.mark.parametrize("changes", [
    *({"quantizer": data} for data in (
        b"", b"IxPQ" + bytes(500), with_quantizer(codebook=b"123"), with_quantizer(codebook=None), with_quantizer(refine_ranges=None),
        with_quantizer(refine_ranges=NAN), with_quantizer(refine_ranges=bytes(128)), with_quantizer(refine_ranges=bytes(64)),
    )),
    *({"codec": name} for name in ("flat", "auto", "auto2", "ivf_pq4x8+sq8", "ivf_pq3x8+sq8")),
    *({"centroids": centroids} for centroids in (np.full((12, 16), np.inf, np.float32), np.ones((12, 8), np.float32))),
    {"metric": "hamming"},
])  # fmt: skip
def test_a_generation_whose_bytes_do_not_fit_together_is_corrupt(changes: dict[str, object]) -> None:
    with pytest.raises(CorruptError):
        Quantizer.open(replace(trained(), **changes))  # type: ignore[arg-type]
