"""The ridge map's arithmetic against the plain formula, its honesty on noise, and its file."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest

from contracts.errors import CorruptError, SettingsError
from embedding.map_file import map_bytes, parse_map, read_map_bytes
from embedding.ridge_map import CaptionedPictures, RidgeMap, _Solver, evaluate, features, hits, splits, train

CLASSES, DIMENSION = 40, 12


def unit(rows: np.ndarray) -> np.ndarray:
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def planted(count: int, signal: float, seed: int = 0) -> CaptionedPictures:
    """Captions that are, up to noise, a hidden linear map of the logits; `lite` knows a little of it."""
    generator = np.random.default_rng(seed)
    logits = generator.normal(size=(count, CLASSES)).astype(np.float32)
    hidden = features(logits) @ generator.normal(size=(CLASSES, DIMENSION))
    noise = generator.normal(size=(count, DIMENSION))
    captions = unit(signal * hidden + noise)
    return CaptionedPictures(logits, unit(0.4 * captions + 0.5 * generator.normal(size=(count, DIMENSION))), captions, np.arange(count))


@pytest.mark.parametrize("count", [25, 200])
def test_both_ways_of_solving_are_the_formula_of_ridge_regression(count: int) -> None:
    generator = np.random.default_rng(3)
    x, y = generator.normal(size=(count, CLASSES)), generator.normal(size=(count, DIMENSION))
    y -= y.mean(axis=0)
    solver = _Solver(x)
    centred = x - x.mean(axis=0)
    penalty = 3.0 * (centred**2).sum() / count
    wanted = np.linalg.solve(centred.T @ centred + penalty * np.eye(CLASSES), centred.T @ y)
    np.testing.assert_allclose(solver.weights(3.0, y), wanted, atol=1e-9)


def test_every_row_is_tested_once_and_a_group_is_never_divided() -> None:
    groups = np.random.default_rng(0).integers(0, 30, 100)
    tested = []
    for train_rows, test_rows in splits(groups, 5, seed=1):
        assert not set(groups[train_rows]) & set(groups[test_rows])
        assert sorted([*train_rows, *test_rows]) == list(range(100))
        tested += list(test_rows)
    assert sorted(tested) == list(range(100))


def test_a_hit_is_among_the_first_ten_and_a_map_to_one_point_hits_nothing() -> None:
    line = unit(np.stack([np.cos(np.arange(50) / 30), np.sin(np.arange(50) / 30)], axis=1))
    assert hits(line, line).all()
    assert not hits(line, np.roll(line, 25, axis=0)).any()
    assert not hits(line, np.ones_like(line)).any()  # all scores are equal: the middle place, not the first


def test_a_map_that_is_there_is_found_and_shows_as_gain() -> None:
    tests = evaluate(planted(300, signal=4.0), 5)
    assert [test.protocol for test in tests] == ["halves", "folds"] and [test.pool for test in tests] == [150, 60]
    for test in tests:
        assert test.gain.low > 0.1 and test.before.low < test.before.mean < test.before.high
        assert test.after.mean == pytest.approx(test.before.mean + test.gain.mean)


def test_where_there_is_nothing_to_learn_no_gain_is_claimed_and_lites_own_vector_stays() -> None:
    pictures = planted(300, signal=0.0)
    test = evaluate(pictures, 5)[0]
    assert test.gain.low <= 0.02 and test.gain.mean > -0.1
    made = train(pictures)
    before_after = (made.apply(pictures.logits, pictures.conse) * pictures.conse).sum(axis=1)
    assert made.strength == 100.0 and before_after.mean() > 0.9


def test_a_map_gives_unit_vectors_of_float32() -> None:
    pictures = planted(60, signal=1.0)
    vectors = train(pictures).apply(pictures.logits[:7], pictures.conse[:7])
    assert vectors.dtype == np.float32 and np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)


BASE = "lite@0123456789abcdef"


def written(tmp_path: Path) -> tuple[Path, RidgeMap, str]:
    generator = np.random.default_rng(5)
    made = RidgeMap(generator.normal(size=(1000, 384)).astype(np.float32), generator.normal(size=384).astype(np.float32), 0.25, 3.0)
    path = tmp_path / "a.map"
    path.write_bytes(map_bytes(made, BASE, {"pictures": "12"}))
    return path, made, hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_map_file_gives_back_the_map(tmp_path: Path) -> None:
    path, made, sha256 = written(tmp_path)
    data, found = read_map_bytes(path, sha256)
    again = parse_map(data, path, BASE)
    assert found == sha256 and (again.prior, again.strength) == (0.25, 3.0)
    assert np.array_equal(again.weights, made.weights) and np.array_equal(again.offset, made.offset)


def test_another_file_than_the_pinned_one_or_for_another_lite_is_a_space_mismatch(tmp_path: Path) -> None:
    path, _, sha256 = written(tmp_path)
    with pytest.raises(SettingsError, match="another file") as caught:
        read_map_bytes(path, "0" * 64)
    assert caught.value.error_code == "space_mismatch"
    with pytest.raises(SettingsError, match="was trained for") as caught:
        parse_map(read_map_bytes(path, sha256)[0], path, "lite@ffffffffffffffff")
    assert caught.value.error_code == "space_mismatch"
    with pytest.raises(SettingsError, match="cannot be read"):
        read_map_bytes(tmp_path / "nowhere", None)


@pytest.mark.parametrize("damage", ["empty", "cut", "header", "pickle", "shape", "nan", "format"])
def test_a_damaged_map_is_corrupt_and_never_a_traceback(tmp_path: Path, damage: str) -> None:
    path, made, _ = written(tmp_path)
    good = path.read_bytes()
    small = RidgeMap(made.weights[:10], made.offset, 0.25, 3.0)
    blank = RidgeMap(made.weights * np.nan, made.offset, 0.25, 3.0)
    data = {
        "empty": b"",
        "cut": good[:-7],
        "header": (1 << 62).to_bytes(8, "little") + good[8:],
        "pickle": b"cposix\nsystem\n(S'true'\ntR.",
        "shape": map_bytes(small, BASE, {}),
        "nan": map_bytes(blank, BASE, {}),
        "format": good.replace(b"headwater-lite-map-1", b"headwater-lite-map-9"),
    }[damage]
    with pytest.raises(CorruptError, match="is no map"):
        parse_map(data, path, BASE)
