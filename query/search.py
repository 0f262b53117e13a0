"""The search plan: parts of a snapshot are searched by their codes, or exactly where they have none, and the answers are merged.

Takes: a snapshot, query vectors, filters. Gives: hits, best first. Owns: which rows are compared, and how.
Never: looks at anything that is not in the pinned snapshot.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from contracts.collection import FieldRecord
from query.collection_view import CollectionSnapshot
from query.field_numbers import FieldNumbers, Numbering
from query.filters import Filter, apply_filter
from query.parts import Part, VectorColumn
from vectors import flat
from vectors.candidates import closest_of
from vectors.recall import REFINE_FACTOR
from vectors.tiers import Allowed

LEAST_CANDIDATES = 50
"""Rows that are found by code at least, where few hits are asked for; else `REFINE_FACTOR` for each."""
EXACT_BELOW = 4096
"""Allowed rows below which all of them are compared: fewer than the codes that lists would make it look at."""
EXACT_BLOCK = 8192
"""Rows that are decoded at once."""


@dataclass(frozen=True, slots=True)
class RowRef:
    """A row of a part of a snapshot; `score` is None where nothing was compared."""

    partition: int
    part: Part
    row: int
    score: float | None = None


@dataclass(frozen=True, slots=True)
class Effort:
    """How hard to look: `exact` compares every row, `nprobe` names the number of lists, else it follows from `target_recall`."""

    target_recall: float = 0.95
    nprobe: int | None = None
    exact: bool = False


@dataclass(frozen=True, slots=True)
class VectorSearch:
    """What to search for: `vector`, shape (d,), in `field`; the row `without` is left out."""

    field: FieldRecord
    vector: NDArray[np.float32]
    limit: int
    offset: int = 0
    chosen: Filter | None = None
    score_threshold: float | None = None
    without: RowRef | None = None
    effort: Effort = Effort()


Found = tuple[list[RowRef], int]
"""Hits of one search, best first, and how many vectors or codes were compared."""
Masks = Mapping[int, NDArray[np.bool_]]
"""Rows that pass the filter, by the identity (`id`) of their part."""


def eligible_rows(snapshot: CollectionSnapshot, part: Part, chosen: Filter | None) -> NDArray[np.bool_]:
    """Rows of a part that live, have not expired and pass the filter, shape (n,)."""
    return apply_filter(chosen, part, part.eligible(snapshot.expired_before_us))


def search(snapshot: CollectionSnapshot, wanted: VectorSearch) -> Found:
    """Closest rows, best first, and how many vectors were compared."""
    return _search_alike(snapshot, [wanted])[0]


def search_many(snapshot: CollectionSnapshot, wanted: Sequence[VectorSearch]) -> list[Found]:
    """Answers of several searches, in their order: those of one field, filter and effort are searched together, with the answers of single ones."""
    groups: list[list[int]] = []
    for at, each in enumerate(wanted):
        alike = next((group for group in groups if _alike(wanted[group[0]], each)), None)
        if alike is None:
            groups.append([at])
        else:
            alike.append(at)
    found: dict[int, Found] = {}
    for group in groups:
        found.update(zip(group, _search_alike(snapshot, [wanted[at] for at in group]), strict=True))
    return [found[at] for at in range(len(wanted))]


def _alike(one: VectorSearch, other: VectorSearch) -> bool:
    return (one.field, one.effort, one.limit + one.offset, one.chosen) == (other.field, other.effort, other.limit + other.offset, other.chosen)


def _search_alike(snapshot: CollectionSnapshot, wanted: Sequence[VectorSearch]) -> list[Found]:
    first = wanted[0]
    numbers = snapshot.numbers(first.field.name)
    queries = first.vector[None] if len(wanted) == 1 else np.stack([each.vector for each in wanted])
    queries = np.ascontiguousarray(queries, dtype=np.float32)
    fetch = first.offset + first.limit + any(each.without is not None for each in wanted)
    masks = None if first.chosen is None else _masks(snapshot, numbers, first.chosen)
    sources = [_search_flat(snapshot, queries, fetch, first.field, placed.partition, placed.part, masks) for placed in numbers.flat]
    sources += [_search_coded(snapshot, queries, fetch, first, numbering, masks) for numbering in numbers.coded]
    return [
        (_refs(snapshot, each, [source.of(at) for source in sources], fetch), sum(int(source.compared[at]) for source in sources))
        for at, each in enumerate(wanted)
    ]


def _masks(snapshot: CollectionSnapshot, numbers: FieldNumbers, chosen: Filter) -> Masks:
    parts = {id(placed.part): placed.part for placed in numbers.flat}
    parts |= {id(placed.part): placed.part for numbering in numbers.coded for placed in numbering.placed}
    return {name: eligible_rows(snapshot, part, chosen) for name, part in parts.items()}


# ---- what one place has found -------------------------------------------------------------------------------------
@dataclass(frozen=True, slots=True)
class _Hits:
    """Hits of one query in one place: `scores` and what `ref` makes rows of, both in the order best first."""

    scores: NDArray[np.float32]
    ref: Callable[[int], RowRef]


@dataclass(frozen=True, slots=True)
class _Source:
    """Hits of all queries in one place, and how many vectors or codes were compared for each."""

    of: Callable[[int], _Hits]
    compared: Sequence[int] | NDArray[np.int64]


def _search_flat(
    snapshot: CollectionSnapshot,
    queries: NDArray[np.float32],
    fetch: int,
    field: FieldRecord,
    partition: int,
    part: Part,
    masks: Masks | None,
) -> _Source:
    column = part.vectors[field.name]
    assert isinstance(column, VectorColumn), "it has no codes"
    rows = part.eligible(snapshot.expired_before_us) if masks is None else masks[id(part)]
    allowed = column.allowed(rows)
    found = flat.search_batch(queries, column.matrix, field.metric, fetch, allowed)

    def hits(query: int) -> _Hits:
        scores, at = found[query].scores, found[query].rows
        return _Hits(scores, lambda i: RowRef(partition, part, column.part_row(int(at[i])), float(scores[i])))

    return _Source(hits, [int(np.count_nonzero(allowed))] * len(queries))


def _search_coded(
    snapshot: CollectionSnapshot, queries: NDArray[np.float32], fetch: int, wanted: VectorSearch, numbering: Numbering, masks: Masks | None
) -> _Source:
    allowed = numbering.allowed if masks is None else numbering.allow(masks)
    if wanted.effort.exact or (masks is not None and allowed.count() <= EXACT_BELOW):
        return _scan_refine(queries, fetch, wanted.field, numbering, allowed)
    effort = wanted.effort
    nprobe = effort.nprobe if effort.nprobe is not None else numbering.nprobe(effort.target_recall)
    lists, distances = numbering.index.assign(queries, nprobe)
    candidates = max(LEAST_CANDIDATES, REFINE_FACTOR * fetch)
    numbers, compared = snapshot.tiers[numbering.index].closest(queries, candidates, lists, distances, allowed)
    return _Source(lambda query: _refined(queries[query], numbers[query], fetch, wanted.field, numbering), compared)


def _refined(query: NDArray[np.float32], numbers: NDArray[np.int64], fetch: int, field: FieldRecord, numbering: Numbering) -> _Hits:
    if len(numbers) and numbers[-1] < 0:
        numbers = numbers[numbers >= 0]
    at, rows, codes = numbering.locate(numbers)
    scores = numbering.index.quantizer.refine_scores(query[None], codes[None])[0]
    best = closest_of(scores, fetch, flat.higher_is_better(field.metric))
    return _coded_hits(numbering, at[best], rows[best], scores[best])


def _coded_hits(numbering: Numbering, at: NDArray[np.int64], rows: NDArray[np.int64], scores: NDArray[np.float32]) -> _Hits:
    places, part_rows, values = at.tolist(), rows.tolist(), scores.tolist()

    def ref(i: int) -> RowRef:
        placed = numbering.placed[places[i]]
        return RowRef(placed.partition, placed.part, part_rows[i], values[i])

    return _Hits(scores, ref)


def _scan_refine(queries: NDArray[np.float32], fetch: int, field: FieldRecord, numbering: Numbering, allowed: Allowed) -> _Source:
    """All allowed rows, compared with their refine codes."""
    numbers = allowed.numbers()
    kept: list[flat.FlatHits] = [flat.FlatHits(np.zeros(0, np.int64), np.zeros(0, np.float32)) for _ in queries]
    for start in range(0, len(numbers), EXACT_BLOCK):
        block = numbers[start : start + EXACT_BLOCK]
        matrix = numbering.index.quantizer.decode(numbering.locate(block)[2])
        for query, hits in enumerate(flat.search_batch(queries, matrix, field.metric, fetch)):
            scores = np.concatenate([kept[query].scores, hits.scores])
            best = closest_of(scores, fetch, flat.higher_is_better(field.metric))
            kept[query] = flat.FlatHits(np.concatenate([kept[query].rows, block[hits.rows]])[best], scores[best])

    def hits_of(query: int) -> _Hits:
        at, rows, _ = numbering.locate(kept[query].rows)
        return _coded_hits(numbering, at, rows, kept[query].scores)

    return _Source(hits_of, [len(numbers)] * len(queries))


# ---- merged -------------------------------------------------------------------------------------------------------
def _refs(snapshot: CollectionSnapshot, wanted: VectorSearch, places: Sequence[_Hits], fetch: int) -> list[RowRef]:
    """The best of all places that the caller may see; of equal scores those of the earlier place come first."""
    places = [hits for hits in places if len(hits.scores)]
    if len(places) == 1:
        refs = [places[0].ref(i) for i in range(min(fetch, len(places[0].scores)))]
    else:
        found = [flat.FlatHits(np.arange(len(hits.scores)), hits.scores) for hits in places]
        refs = [places[hit.part].ref(hit.row) for hit in flat.merge(found, wanted.field.metric, fetch)]
    expired, without = snapshot.expired_before_us, wanted.without
    if without is not None:
        refs = [ref for ref in refs if ref.part is not without.part or ref.row != without.row]
    if expired is not None:
        refs = [ref for ref in refs if ref.part.is_eligible(ref.row, expired)]
    refs = refs[wanted.offset : wanted.offset + wanted.limit]
    threshold = wanted.score_threshold
    return refs if threshold is None else [ref for ref in refs if _reaches(ref.score, threshold, wanted.field)]


def _reaches(score: float | None, threshold: float, field: FieldRecord) -> bool:
    assert score is not None, "it was compared"
    return score >= threshold if flat.higher_is_better(field.metric) else score <= threshold
