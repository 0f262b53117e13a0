"""A ridge map from what a network says of pictures to the place of their captions, and an honest account of what it is worth.

    vector = normalise(prior * conse + features @ weights + offset)

Takes: class logits, `lite`'s own vectors and caption vectors of captioned pictures. Gives: a map; recall before and after on held-out pictures.
Owns: the closed form, the choice of its two numbers, the folds. Never: looks at a test picture before the map is final; needs more than numpy.

Ridge regression: Hoerl and Kennard 1970, https://doi.org/10.1080/00401706.1970.10488634. Shrunk towards `lite`'s own vector instead of zero,
so that few captions change little: of 325 sample pictures, trained on half, recall@10 in the other half was 0.40 without a map, 0.39 shrunk
towards zero, 0.50 this way; the network's features before the classifier gave 0.52, within the interval, and would need another network output.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

STRENGTHS = (0.3, 1.0, 3.0, 10.0, 30.0, 100.0)
"""Candidates of the regularisation, in mean eigenvalues of the features' Gram matrix."""
INNER_FOLDS = 5
HITS = 10
HALVES = 5
RESAMPLES = 2000
SEED = 20_26
_BLOCK = 1024
Matrix = NDArray[np.float64]
Split = tuple[NDArray[np.int64], NDArray[np.int64]]


@dataclass(frozen=True, slots=True)
class RidgeMap:
    """The map: weights, shape (classes, d), offset, shape (d,), and how much of `lite`'s own vector stays."""

    weights: NDArray[np.float32]
    offset: NDArray[np.float32]
    prior: float
    strength: float

    def apply(self, logits: NDArray[np.float32], conse: NDArray[np.float32]) -> NDArray[np.float32]:
        """Unit vectors, shape (n, d), of pictures with these logits, shape (n, classes), and `lite` vectors, shape (n, d)."""
        return _unit(np.float32(self.prior) * conse + features(logits) @ self.weights + self.offset)


@dataclass(frozen=True, slots=True)
class CaptionedPictures:
    """What the map is trained on, row by row: logits, `lite` vectors and caption vectors; equal `groups` never stand on both sides of a split."""

    logits: NDArray[np.float32]
    conse: NDArray[np.float32]
    captions: NDArray[np.float32]
    groups: NDArray[np.int64]

    def rows(self, rows: NDArray[np.int64]) -> CaptionedPictures:
        """Those rows; `rows` has shape (m,)."""
        return CaptionedPictures(self.logits[rows], self.conse[rows], self.captions[rows], self.groups[rows])

    def __len__(self) -> int:
        return len(self.groups)


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean with its 95 % interval."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class HeldOut:
    """Recall@10, caption -> its own picture, over held-out pictures: `pool` pictures compete on average, so chance is 10 / pool."""

    protocol: str
    pictures: int
    pool: float
    before: Estimate
    after: Estimate
    gain: Estimate


def features(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    """Logits, shape (n, classes), centred and of unit length: how sure the network is does not count, what it thinks of does."""
    centred = logits - logits.mean(axis=1, keepdims=True)
    return _unit(centred)


def train(pictures: CaptionedPictures, seed: int = SEED) -> RidgeMap:
    """Choose regularisation and prior by inner cross-validation of the squared error, then fit all pictures in closed form (float64)."""
    strength, prior = _choose(pictures, seed)
    x, target, own = _matrices(pictures)
    solver = _Solver(x)
    wanted = target - prior * own
    weights = solver.weights(strength, wanted - wanted.mean(axis=0))
    offset = wanted.mean(axis=0) - solver.mean @ weights
    return RidgeMap(weights.astype(np.float32), offset.astype(np.float32), prior, strength)


def evaluate(pictures: CaptionedPictures, folds: int, on_step: Callable[[], None] = lambda: None) -> list[HeldOut]:
    """What a map is worth on pictures that it was not trained on.

    Parameters
    ----------
    pictures : CaptionedPictures
        All of them.
    folds : int
        Of the second protocol.
    on_step : callable
        Called after each of `evaluation_steps`.

    Returns
    -------
    list of HeldOut
        ``halves``: trained on a random half, tested on the other, both ways, `HALVES` times; ``folds``: trained on all folds but one, tested on it.
    """
    halves = [split for seed in range(HALVES) for split in splits(pictures.groups, 2, SEED + seed)]
    return [
        _held_out("halves", pictures, halves, on_step),
        _held_out("folds", pictures, list(splits(pictures.groups, folds, SEED)), on_step),
    ]


def evaluation_steps(folds: int) -> int:
    """How many maps `evaluate` trains."""
    return 2 * HALVES + folds


def splits(groups: NDArray[np.int64], folds: int, seed: int) -> Iterator[Split]:
    """Yield (train rows, test rows), each of shape (n,); every row is tested once, and a group is never divided."""
    names, group_of_row = np.unique(groups, return_inverse=True)
    fold_of_group = np.random.default_rng(seed).permutation(np.arange(len(names)) % folds)
    fold = fold_of_group[group_of_row]
    for number in range(folds):
        yield np.flatnonzero(fold != number), np.flatnonzero(fold == number)


def hits(captions: NDArray[np.float32], pictures: NDArray[np.float32]) -> NDArray[np.float64]:
    """1.0 where caption i has picture i among its first ten, both of shape (n, d); of equal scores half count as better: shape (n,)."""
    out = np.empty(len(captions))
    for start in range(0, len(captions), _BLOCK):
        rows = np.arange(start, min(start + _BLOCK, len(captions)))
        scores = captions[rows] @ pictures.T
        own = scores[np.arange(len(rows)), rows][:, None]
        out[rows] = (scores > own).sum(axis=1) + ((scores == own).sum(axis=1) - 1) / 2 < HITS
    return out


def _held_out(protocol: str, pictures: CaptionedPictures, parts: Sequence[Split], on_step: Callable[[], None]) -> HeldOut:
    before, after, tested = np.zeros(len(pictures)), np.zeros(len(pictures)), np.zeros(len(pictures))
    for train_rows, test_rows in parts:
        made = train(pictures.rows(train_rows))
        test = pictures.rows(test_rows)
        before[test_rows] += hits(test.captions, test.conse)
        after[test_rows] += hits(test.captions, made.apply(test.logits, test.conse))
        tested[test_rows] += 1
        on_step()
    old, new = before / tested, after / tested
    pool = float(np.mean([len(rows) for _, rows in parts]))
    return HeldOut(protocol, len(pictures), pool, *(_interval(values) for values in (old, new, new - old)))


def _interval(values: NDArray[np.float64]) -> Estimate:
    """Mean over pictures with its 95 % bootstrap interval (percentiles; Efron and Tibshirani 1993, chapter 13)."""
    generator = np.random.default_rng(SEED)
    means = [float(values[generator.integers(0, len(values), len(values))].mean()) for _ in range(RESAMPLES)]
    low, high = np.percentile(means, (2.5, 97.5))
    return Estimate(float(values.mean()), float(low), float(high))


class _Solver:
    """Eigenvectors of one side's Gram matrix, whichever is smaller, so that each strength costs only products."""

    def __init__(self, x: Matrix) -> None:
        self.mean = x.mean(axis=0)
        self._x = x - self.mean
        self._is_dual = len(x) <= x.shape[1]
        gram = self._x @ self._x.T if self._is_dual else self._x.T @ self._x
        self._values, self._vectors = np.linalg.eigh(gram)
        self._unit = max(float(self._values.sum()) / len(x), 1e-12)

    def weights(self, strength: float, wanted: Matrix) -> Matrix:
        """Solution for centred targets, shape (n, d); gives shape (classes, d)."""
        scale = 1.0 / (np.maximum(self._values, 0.0) + strength * self._unit)
        side = wanted if self._is_dual else self._x.T @ wanted
        solved = self._vectors @ (scale[:, None] * (self._vectors.T @ side))
        found: Matrix = self._x.T @ solved if self._is_dual else solved
        return found


def _choose(pictures: CaptionedPictures, seed: int) -> tuple[float, float]:
    """Strength and prior with the least squared error on inner held-out folds.

    The error is a parabola in the prior: prediction and target are both linear in it, so its best value needs no search.
    """
    x, target, own = _matrices(pictures)
    sums = np.zeros((len(STRENGTHS), 3))
    for train_rows, test_rows in splits(pictures.groups, INNER_FOLDS, seed):
        solver = _Solver(x[train_rows])
        test = x[test_rows] - solver.mean
        means = target[train_rows].mean(axis=0), own[train_rows].mean(axis=0)
        both = np.hstack([target[train_rows] - means[0], own[train_rows] - means[1]])
        for number, strength in enumerate(STRENGTHS):
            of_target, of_own = np.hsplit(test @ solver.weights(strength, both), 2)
            left, taken = target[test_rows] - means[0] - of_target, own[test_rows] - means[1] - of_own
            sums[number] += (left * left).sum(), (left * taken).sum(), (taken * taken).sum()
    priors = np.clip(sums[:, 1] / np.maximum(sums[:, 2], 1e-12), 0.0, 1.0)
    errors = sums[:, 0] - 2 * priors * sums[:, 1] + priors**2 * sums[:, 2]
    best = int(np.argmin(errors))
    return STRENGTHS[best], float(priors[best])


def _matrices(pictures: CaptionedPictures) -> tuple[Matrix, Matrix, Matrix]:
    return features(pictures.logits).astype(np.float64), pictures.captions.astype(np.float64), pictures.conse.astype(np.float64)


def _unit(rows: NDArray[np.float32]) -> NDArray[np.float32]:
    found: NDArray[np.float32] = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
    return found
