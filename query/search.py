"""The search plan: parts of a snapshot are searched by their codes, or exactly where they have none, and the answers are merged.

Takes: a snapshot, query vectors, filters. Gives: hits, best first. Owns: which rows are compared, and how.
Never: looks at anything that is not in the pinned snapshot.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import ceil
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from contracts.collection import FieldRecord
from query.collection_view import CollectionSnapshot
from query.field_numbers import FieldNumbers, Numbering, PlacedPart
from query.filter_estimate import Estimate
from query.filter_masks import apply_filter
from query.filter_plan import SETTLE_BELOW, plan_filter
from query.filter_tree import Filter
from query.found import RowRef
from query.parts import Part, VectorColumn
from query.settling import settle
from vectors import flat
from vectors.recall import REFINE_FACTOR
from vectors.tiers import Allowed

LEAST_CANDIDATES = 50
"""Rows that are found by code at least, where few hits are asked for; else `REFINE_FACTOR` for each."""
EXACT_BLOCK = 8192
"""Rows that are decoded at once."""


@dataclass(frozen=True, slots=True)
class Effort:
    """How hard to look: `exact` compares every row, `nprobe` names the number of lists, else it follows from `target_recall`."""

    target_recall: float = 0.95
    nprobe: int | None = None
    exact: bool = False


class VectorSearch(NamedTuple):
    """What to search for: `vector`, shape (d,), C order, in `field`; the row `without` is left out."""

    field: FieldRecord
    vector: NDArray[np.float32]
    limit: int
    offset: int = 0
    chosen: Filter | None = None
    score_threshold: float | None = None
    without: RowRef | None = None
    effort: Effort = Effort()


Found = tuple[Sequence[RowRef], int]
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
    groups: list[tuple[tuple[object, ...], list[int]]] = []
    for at, each in enumerate(wanted):
        kind = _kind(each)
        alike = next((group for known, group in groups if known == kind), None)
        if alike is None:
            groups.append((kind, [at]))
        else:
            alike.append(at)
    found: dict[int, Found] = {}
    for _, group in groups:
        found.update(zip(group, _search_alike(snapshot, [wanted[at] for at in group]), strict=True))
    return [found[at] for at in range(len(wanted))]


def _kind(wanted: VectorSearch) -> tuple[object, ...]:
    return wanted.field, wanted.effort, wanted.limit + wanted.offset, wanted.chosen, wanted.without is None


def _search_alike(snapshot: CollectionSnapshot, wanted: Sequence[VectorSearch]) -> list[Found]:
    first = wanted[0]
    numbers = snapshot.numbers(first.field.name)
    queries = first.vector[None] if len(wanted) == 1 else np.stack([each.vector for each in wanted])
    fetch = first.offset + first.limit + (first.without is not None)
    masks = None if first.chosen is None else _masks(snapshot, numbers, first.chosen)
    sources = [_search_coded(snapshot, queries, fetch, first, numbering, masks) for numbering in numbers.coded]
    if numbers.flat:
        sources.insert(0, _search_flat(snapshot, queries, fetch, first.field, numbers.flat, masks))
    if len(sources) == 1:
        return [(_chosen(snapshot, each, found), compared) for each, found, compared in zip(wanted, *sources[0], strict=True)]
    merged = [_merged(first, [source.found[at] for source in sources], fetch) for at in range(len(wanted))]
    return [(_chosen(snapshot, each, merged[at]), sum(source.compared[at] for source in sources)) for at, each in enumerate(wanted)]


def _masks(snapshot: CollectionSnapshot, numbers: FieldNumbers, chosen: Filter) -> Masks:
    parts = {id(placed.part): placed.part for placed in numbers.flat}
    parts |= {id(placed.part): placed.part for numbering in numbers.coded for placed in numbering.placed}
    return {name: eligible_rows(snapshot, part, chosen) for name, part in parts.items()}


class _Source(NamedTuple):
    """For each query its hits in one place, best first, and about how many vectors or codes were compared."""

    found: Sequence[Sequence[RowRef]]
    compared: Sequence[int]


def _search_flat(
    snapshot: CollectionSnapshot, queries: NDArray[np.float32], fetch: int, field: FieldRecord, parts: Sequence[PlacedPart], masks: Masks | None
) -> _Source:
    """All vectors of parts that have no codes."""
    found: list[list[flat.FlatHits]] = []
    columns: list[VectorColumn] = []
    compared = 0
    for placed in parts:
        column = placed.part.vectors[field.name]
        assert isinstance(column, VectorColumn), "it has no codes"
        rows = placed.part.eligible(snapshot.expired_before_us) if masks is None else masks[id(placed.part)]
        allowed = column.allowed(rows)
        compared += int(np.count_nonzero(allowed))
        columns.append(column)
        found.append(flat.search_batch(queries, column.matrix, field.metric, fetch, allowed))
    refs = []
    for query in range(len(queries)):
        merged = flat.merge([hits[query] for hits in found], field.metric, fetch)
        refs.append([RowRef(*parts[hit.part], columns[hit.part].part_row(hit.row), hit.score) for hit in merged])
    return _Source(refs, [compared] * len(queries))


def _search_coded(
    snapshot: CollectionSnapshot, queries: NDArray[np.float32], fetch: int, wanted: VectorSearch, numbering: Numbering, masks: Masks | None
) -> _Source:
    """Rows of one logical index: those whose codes are closest, compared again with their refine codes."""
    allowed = numbering.allowed if masks is None else numbering.allow(masks)
    effort = wanted.effort
    if effort.exact:
        return _scan_refine(queries, fetch, wanted.field, numbering, allowed)
    nlist, tiers = numbering.index.quantizer.nlist, snapshot.tiers[numbering.index]
    nprobe = min(nlist, effort.nprobe if effort.nprobe is not None else numbering.nprobe(effort.target_recall))
    candidates = _candidates(snapshot, numbering, fetch)
    settles = False
    if masks is not None:
        # The mask is made, so its count is no estimate, and with the bitmap at hand `post_filter` has nothing to save: both ways by lists are one.
        passing = allowed.count()
        plan = plan_filter(Estimate.exact(passing), tiers.rows, nlist, nprobe, fetch)
        if plan.way == "exact":
            return _scan_refine(queries, fetch, wanted.field, numbering, allowed)
        if effort.nprobe is None:  # who names a number of lists gets that number
            nprobe, settles = plan.nprobe, passing < SETTLE_BELOW * numbering.allowed.count()
    if settles:
        found, distances, taken = settle(
            lambda some, lists, times: tiers.closest(queries[some], fetch, times * candidates, lists, allowed), len(queries), nprobe, nlist
        )
        compared = (tiers.rows * taken // nlist).tolist()
    else:
        found, distances = tiers.closest(queries, fetch, candidates, nprobe, allowed)
        compared = [tiers.rows * nprobe // nlist] * len(queries)
    scores = flat.scores_of(distances, wanted.field.metric)
    return _Source(numbering.found(found, scores), compared)


def _candidates(snapshot: CollectionSnapshot, numbering: Numbering, fetch: int) -> int:
    """How many rows are found by code, to be compared again.

    While a node starts, the refine code of each may have to be read first. A share of the rows then gets that share of candidates, which is as many
    as a search of all rows would find among them: who is among the hits then is found now, at a tenth of the waiting.
    """
    candidates = max(LEAST_CANDIDATES, REFINE_FACTOR * fetch)
    return max(fetch, ceil(candidates * snapshot.coverage)) if numbering.index.is_filling else candidates


def _scan_refine(queries: NDArray[np.float32], fetch: int, field: FieldRecord, numbering: Numbering, allowed: Allowed) -> _Source:
    """All allowed rows, compared with their refine codes."""
    numbers, index = allowed.numbers(), numbering.index
    if not len(numbers):
        return _Source([[] for _ in queries], [0] * len(queries))
    kept = [flat.FlatHits(np.zeros(0, np.int64), np.zeros(0, np.float32)) for _ in queries]
    for start in range(0, len(numbers), EXACT_BLOCK):
        block = numbers[start : start + EXACT_BLOCK]
        hits = flat.search_batch(queries, index.quantizer.decode(index.refine_codes(block)), field.metric, fetch)
        kept = [flat.best_of(before, flat.FlatHits(block[now.rows], now.scores), field.metric, fetch) for before, now in zip(kept, hits, strict=True)]
    refs = [numbering.found(hits.rows[None], hits.scores[None])[0] for hits in kept]
    return _Source(refs, [len(numbers)] * len(queries))


def _merged(wanted: VectorSearch, places: Sequence[Sequence[RowRef]], fetch: int) -> Sequence[RowRef]:
    """The best of all places; of equal scores those of the earlier place come first."""
    every = [ref for found in places for ref in found]
    return sorted(every, key=_score, reverse=flat.higher_is_better(wanted.field.metric))[:fetch]


def _chosen(snapshot: CollectionSnapshot, wanted: VectorSearch, refs: Sequence[RowRef]) -> Sequence[RowRef]:
    """Those of the closest that the caller may see."""
    expired, without, threshold = snapshot.expired_before_us, wanted.without, wanted.score_threshold
    if without is not None:
        refs = [ref for ref in refs if ref.part is not without.part or ref.row != without.row]
    if expired is not None:
        refs = [ref for ref in refs if ref.part.is_eligible(ref.row, expired)]
    if wanted.offset or len(refs) > wanted.limit:
        refs = refs[wanted.offset : wanted.offset + wanted.limit]
    if threshold is None:
        return refs
    higher = flat.higher_is_better(wanted.field.metric)
    return [ref for ref in refs if (_score(ref) >= threshold if higher else _score(ref) <= threshold)]


def _score(ref: RowRef) -> float:
    assert ref.score is not None, "it was compared"
    return ref.score
