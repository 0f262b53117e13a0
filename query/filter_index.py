"""The filter index of one segment: postings of its attributes, each made when a filter first needs it.

Takes: a segment's rows. Gives: masks and estimates of conditions where an index has them. Owns: what is indexed, and its bytes.
Never: makes a query wait for another query's index: it scans meanwhile.
"""

from __future__ import annotations

import threading
from itertools import count

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from contracts.item import IdIndex, id_hashes
from query.arrow_masks import Mask, list_counts, words_of
from query.filter_estimate import Estimate, all_of, any_of
from query.filter_scan import column
from query.filter_tree import AnyOf, Condition, HasId, Key, NoneOf, Within, Words
from query.postings import Postings, build_postings

INDEX_FROM_ROWS = 4096
"""Below it a scan takes some ten microseconds: an index would not pay."""
MAX_BYTES_PER_ROW = 128
"""Of all postings of a segment together. A vector of 512 numbers takes 2,048."""
PATIENCE = 1000
"""Conditions that an index is asked about until postings that they do not use may go, and until some that found no room are made again: what takes
a second to make is not made for every other query."""
SCAN_SHARE = 0.05
"""Share of the rows from which on comparing a column of numbers takes less than marking the rows of a slice one by one."""

MAX_TEXT_BYTES = 512 * 1024 * 1024
"""Of one text column; more of it is scanned: its words, cut out at once, take about as much memory again."""
WORDS_CHUNK_ROWS = 65_536

Name = tuple[str, bool]


class FilterIndex:
    """Index of a segment's attributes; any number of threads read it.

    Parameters
    ----------
    batch : pyarrow.RecordBatch
        The segment's rows.
    ids : IdIndex
        Its rows by id.
    """

    def __init__(self, batch: pa.RecordBatch, ids: IdIndex) -> None:
        self._batch, self._ids = batch, ids
        self._building = threading.Lock()
        self._built: dict[Name, Postings] = {}
        self._used: dict[Name, int] = {}
        self._tried: dict[Name, int] = {}
        self._turns = count()

    @property
    def size_bytes(self) -> int:
        """Bytes of all postings."""
        return sum(each.size_bytes for each in list(self._built.values()))

    def mask(self, condition: Condition) -> Mask | None:
        """Rows for which a condition holds, shape (rows,); None where a scan is better."""
        postings, test = self._postings(condition), condition.test
        if postings is None:
            return None
        if isinstance(test, Within):
            first, end = postings.span(test)
            wide = not postings.is_array and postings.count(first, end) > SCAN_SHARE * postings.rows_in_part
            return None if wide else postings.span_mask(first, end)
        if isinstance(test, Words):
            places = [postings.places([word]) for word in test.words]
            if not test.every:
                return postings.mask([at for found in places for at in found])
            masks = sorted((postings.mask(found) for found in places), key=np.count_nonzero) if all(places) else [postings.mask([])]
            return np.asarray(np.logical_and.reduce(masks), np.bool_)
        assert isinstance(test, AnyOf | NoneOf), "_postings looked"
        places_of = postings.places(test.values)
        return postings.mask(places_of) if isinstance(test, AnyOf) else postings.without_mask(places_of)

    def ids(self, condition: HasId) -> Mask:
        """Rows of these ids, shape (rows,); ids are looked up by hash, and compared whole."""
        mask = np.zeros(self._batch.num_rows, np.bool_)
        found, names = self._ids.find(id_hashes(condition.ids)), self._batch.column("id")
        for at in np.flatnonzero(found >= 0):
            mask[found[at]] = names[int(found[at])].as_py() == condition.ids[at]
        return mask

    def estimate(self, condition: Condition) -> Estimate | None:
        """How many rows a condition matches, from the lengths of postings; None where nothing is known."""
        postings, test = self._postings(condition), condition.test
        if postings is None:
            return None
        rows = postings.rows_in_part
        if isinstance(test, Within):
            first, end = postings.span(test)
            counts = [postings.count(first, end)]
            if postings.is_array and end > first:
                longest = int(np.diff(postings.offsets[first : end + 1].astype(np.int64)).max())
                return Estimate(longest, min(rows, max(longest, counts[0])), min(rows, counts[0]))
            return Estimate.exact(counts[0])
        if isinstance(test, Words):
            each = [Estimate.exact(sum(postings.count(at, at + 1) for at in postings.places([word]))) for word in test.words]
            return any_of(each, rows) if not test.every else all_of(each, rows)
        assert isinstance(test, AnyOf | NoneOf), "_postings looked"
        counts = [postings.count(at, at + 1) for at in postings.places(test.values)]
        if isinstance(test, AnyOf):
            return any_of([Estimate.exact(count) for count in counts], rows) if postings.is_array else Estimate.exact(sum(counts))
        if not postings.is_array:
            return Estimate.exact(len(postings.rows) - sum(counts))
        others = len(postings.rows) - sum(counts)
        return Estimate(0, min(rows, others), min(rows, others))

    # ---- building -----------------------------------------------------------------------------------------------
    def _postings(self, condition: Condition) -> Postings | None:
        key, test = condition.key, condition.test
        if self._batch.num_rows < INDEX_FROM_ROWS or key.source == "extra" or key.kind == "geo":
            return None
        if not isinstance(test, AnyOf | NoneOf | Within | Words) or (key.kind == "text" and not isinstance(test, Words)):
            return None
        if isinstance(test, Words) and key.is_array and test.every and len(test.words) > 1:
            return None  # postings do not tell whether the words stand in one text of the array
        name, turn = (key.name, key.source == "row"), next(self._turns)
        self._used[name] = turn
        made = self._built.get(name)
        tried = self._tried.get(name)
        if made is not None or (tried is not None and turn < tried + PATIENCE):
            return made
        if not self._building.acquire(blocking=False):
            return None
        try:
            return self._keep(name, self._build(key), turn)
        finally:
            self._building.release()

    def _keep(self, name: Name, made: Postings | None, turn: int) -> Postings | None:
        """Make room by dropping what was not used for long; where there is none, scans answer for a while."""
        room = MAX_BYTES_PER_ROW * self._batch.num_rows - self.size_bytes
        for other in sorted(self._built, key=lambda each: self._used[each]):
            if made is None or made.size_bytes <= room or self._used[other] > turn - PATIENCE:
                break
            room += self._built.pop(other).size_bytes
        if made is not None and made.size_bytes <= room:
            self._tried.pop(name, None)
            self._built[name] = made
            return made
        self._tried[name] = turn
        return None

    def _build(self, key: Key) -> Postings | None:
        values = column(self._batch, key)
        if key.kind == "text":
            if values.nbytes > MAX_TEXT_BYTES:
                return None
            values = _words(values, key.is_array)
        return build_postings(values)


def _words(texts: pa.Array, is_array: bool) -> pa.ListArray:
    """Words of each row's text or texts, as one list a row; null is a list without words."""
    flat = pc.list_flatten(texts) if is_array else texts
    chunks = [words_of(flat.slice(at, WORDS_CHUNK_ROWS)) for at in range(0, max(len(flat), 1), WORDS_CHUNK_ROWS)]
    words = pa.concat_arrays(chunks)
    ends = np.concatenate(([0], np.cumsum(list_counts(words))))
    if is_array:
        ends = ends[np.concatenate(([0], np.cumsum(list_counts(texts))))]
    return pa.ListArray.from_arrays(pa.array(ends, pa.int32()), words.flatten())
