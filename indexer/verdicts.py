"""Verdicts of accepted rows, and the ledger's runs of them, computed a column at a time (pure).

Takes: offsets, items, verdicts and reasons of n rows. Gives: ledger runs. Owns: how neighbours are joined.
Never: loops over rows: a seal decides a hundred thousand of them while the next batches wait.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from contracts.ledger import LedgerRun
from contracts.vectors_batch import RUN_OPS


@dataclass(slots=True)
class Coded:
    """A column of few different words: `codes`, shape (n,), are places in `words`, -1 for null."""

    codes: NDArray[np.int32]
    words: list[str]

    @classmethod
    def of(cls, column: pa.Array) -> Self:
        """Codes of a utf8 column, which can be changed."""
        coded = column.dictionary_encode()
        return cls(coded.indices.fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int32), coded.dictionary.to_pylist())

    def code(self, word: str) -> int:
        """Code of a word, which need not have come before."""
        if word not in self.words:
            self.words.append(word)
        return self.words.index(word)

    def put(self, rows: NDArray[np.int64], word: str) -> None:
        """Set some rows to a word."""
        self.codes[rows] = self.code(word)

    def put_column(self, rows: NDArray[np.int64], column: pa.Array) -> None:
        """Set some rows to the words of a utf8 column, one each, or null."""
        other = Coded.of(column)
        translated = np.array([*(self.code(word) for word in other.words), -1], np.int32)
        self.codes[rows] = translated[other.codes]

    def word(self, code: int) -> str | None:
        """The word of a code, None for null."""
        return None if code < 0 else self.words[code]


def ledger_runs(offsets: NDArray[np.int64], items: NDArray[np.int64], verdicts: Coded, reasons: Coded) -> list[LedgerRun]:
    """Runs of the verdicts of n rows, as `contracts.ledger.merge_runs` joins them: along items of one offset, then along offsets of equal items.

    Parameters
    ----------
    offsets, items : NDArray[np.int64]
        shape (n,), in any order; a gap or lost row covers as many offsets as its item says, and no items.
    verdicts, reasons : Coded
        Of the same rows.
    """
    order = np.lexsort((items, offsets))
    offset, item, verdict, reason = offsets[order], items[order], verdicts.codes[order], reasons.codes[order]
    is_run = np.isin(verdict, [verdicts.code(op) for op in RUN_OPS])
    runs = _Runs(
        offset,
        offset + np.where(is_run, item, 1),
        np.where(is_run, 0, item),
        np.where(is_run, 0, item + 1),
        verdict,
        reason,
    )
    one_offset = (runs.start[1:] == runs.start[:-1]) & (runs.next == runs.start + 1)[1:] & (runs.next == runs.start + 1)[:-1]
    runs = runs.joined(one_offset & (runs.start_item[1:] == runs.next_item[:-1]))
    same_items = (runs.start_item[1:] == runs.start_item[:-1]) & (runs.next_item[1:] == runs.next_item[:-1])
    runs = runs.joined(same_items & (runs.next[:-1] == runs.start[1:]))
    columns = (column.tolist() for column in (runs.start, runs.next, runs.start_item, runs.next_item, runs.verdict, runs.reason))
    row = verdicts.code("row")
    return [
        LedgerRun(start, end, first, last, verdicts.words[verdict], reasons.word(reason), partial=verdict == row and reason >= 0)
        for start, end, first, last, verdict, reason in zip(*columns, strict=True)
    ]


@dataclass(frozen=True, slots=True)
class _Runs:
    start: NDArray[np.int64]
    next: NDArray[np.int64]
    start_item: NDArray[np.int64]
    next_item: NDArray[np.int64]
    verdict: NDArray[np.int32]
    reason: NDArray[np.int32]

    def joined(self, fits: NDArray[np.bool_]) -> _Runs:
        """Each run joined to the one before it where `fits`, shape (n - 1,), says so and the two say the same."""
        same = fits & (self.verdict[1:] == self.verdict[:-1]) & (self.reason[1:] == self.reason[:-1])
        first = np.flatnonzero(np.concatenate([[True] * bool(len(self.start)), ~same]))
        last = np.append(first[1:] - 1, len(self.start) - 1)[: len(first)]
        return _Runs(self.start[first], self.next[last], self.start_item[first], self.next_item[last], self.verdict[first], self.reason[first])
