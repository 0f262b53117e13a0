"""The generator: the same seeds give the reference generator's rows, and the rows have the shape that is promised."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest

from bench.clip_like import ClipLike, Shape, blocks

SMALL = Shape(dimension=64, clusters=50, cluster_dimensions=8, mean_dimensions=16)
DRIFTING = Shape(drift=1.5, born=0.5)
TIMES = np.arange(1000) / 1000
# Of the reference generator (seed 3, sample 5): the first four values of rows 0, 17 and 999, and of the clusters sha256's first 16 digits.
STILL_ROWS = [
    [0.0428297, 0.0178357, 0.0441058, -0.0005968],
    [0.0078771, 0.0841145, -0.0188420, -0.0421232],
    [-0.0450483, -0.0380741, 0.0180309, -0.0021267],
]
DRIFTING_ROWS = [
    [-0.0440151, 0.0416534, -0.0208066, 0.0277381],
    [0.0014514, -0.0622707, 0.0298319, 0.0607122],
    [0.0508360, 0.0424859, 0.0435805, 0.0192957],
]


@pytest.mark.parametrize(
    ("shape", "values", "clusters"),
    [(Shape(), STILL_ROWS, "7a89a3be5c246f7e"), (DRIFTING, DRIFTING_ROWS, "01e076a52103f8f7")],
    ids=["still", "drifting"],
)
def test_the_rows_are_those_of_the_reference_generator(shape: Shape, values: list[list[float]], clusters: str) -> None:
    rows, found = ClipLike(3, shape).sample_with_clusters(TIMES, 5)
    assert rows.dtype == np.float32 and rows.shape == (1000, 512)
    assert hashlib.sha256(found.tobytes()).hexdigest()[:16] == clusters
    assert rows[[0, 17, 999], :4] == pytest.approx(np.array(values), abs=1e-6)  # the last bits are the BLAS's


def test_rows_have_length_one_and_share_a_direction() -> None:
    rows = ClipLike(1).sample(TIMES, 0)
    assert np.linalg.norm(rows, axis=1) == pytest.approx(1, abs=1e-5)
    between = (rows[:500] @ rows[500:].T).mean()
    assert 0.1 < between < 0.4, "CLIP's cone: any two rows lie on the same side"


def test_a_sample_s_clusters_are_closer_within_than_between() -> None:
    rows, clusters = ClipLike(1, SMALL).sample_with_clusters(TIMES, 0)
    same = clusters[:, None] == clusters[None, :]
    products = rows @ rows.T
    assert products[same & ~np.eye(1000, dtype=bool)].mean() > products[~same].mean() + 0.1


def test_other_seeds_give_other_rows_and_the_same_ones_the_same() -> None:
    source = ClipLike(1, SMALL)
    first = source.sample(TIMES, 0)
    assert (source.sample(TIMES, 0) == first).all() and (ClipLike(1, SMALL).sample(TIMES, 0) == first).all()
    assert not np.isclose(source.sample(TIMES, 1), first).all(axis=1).any()


def test_clusters_are_born_and_their_means_move() -> None:
    born = ClipLike(1, Shape(dimension=64, clusters=50, cluster_dimensions=8, mean_dimensions=16, born=0.6))
    early, late = (set(born.sample_with_clusters(np.full(4000, time), 0)[1]) for time in (0.0, 1.0))
    assert early < late and len(early) < 40 < len(late)
    moving = ClipLike(1, Shape(dimension=64, clusters=50, cluster_dimensions=8, mean_dimensions=16, drift=2.0))
    before, after = (moving.sample(np.full(4000, time), 0).mean(axis=0) for time in (0.0, 1.0))
    still = ClipLike(1, SMALL)
    assert np.linalg.norm(before - after) > 5 * np.linalg.norm(
        still.sample(np.full(4000, 0.0), 0).mean(axis=0) - still.sample(np.full(4000, 1.0), 0).mean(axis=0)
    )


def test_blocks_are_the_past_first_and_add_up() -> None:
    parts = list(blocks(ClipLike(1, SMALL), 250, 7, block_rows=100))
    assert [len(part) for part in parts] == [100, 100, 50]
    assert (parts[1] == ClipLike(1, SMALL).sample(np.arange(100, 200) / 250, 8)).all()
