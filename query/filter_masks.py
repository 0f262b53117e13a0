"""Filters on parts: which rows pass, and about how many will.

Takes: a filter, a part, its eligible rows. Gives: masks and estimates. Owns: the order of evaluation: what is cheap first, JSON last and only of rows
that still matter. Never: gives another mask with an index than without one.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from contracts import attributes as typed
from query.arrow_masks import Mask, as_mask
from query.filter_estimate import Estimate, all_of, any_of, at_least
from query.filter_extra import scan_extra
from query.filter_scan import scan
from query.filter_tree import Condition, Filter, HasId, Node
from query.parts import Part


def apply_filter(chosen: Filter | None, part: Part, eligible: Mask) -> Mask:
    """Mask of a part's rows, shape (n,), that are eligible, shape (n,), and pass."""
    return eligible if chosen is None else eligible & _mask(chosen, part, eligible)


def estimate_filter(chosen: Filter | None, part: Part) -> Estimate:
    """How many of a part's rows pass, live or not; exact where there is no filter, and of a condition that the part's index answers alone."""
    return Estimate.exact(part.rows) if chosen is None else _estimate(chosen, part)


# ---- masks --------------------------------------------------------------------------------------------------------
def _mask(node: Node, part: Part, wanted: Mask) -> Mask:
    """Rows that pass, shape (n,): right for the wanted ones; of others nothing is said."""
    if isinstance(node, Filter):
        return _group(node, part, wanted)
    if isinstance(node, HasId):
        return _ids(node, part)
    indexed = None if part.filter_index is None else part.filter_index.mask(node)
    if indexed is not None:
        return indexed
    masks = [_scan(node, batch, wanted[start : start + batch.num_rows]) for batch, start in zip(part.batches, part.starts, strict=True)]
    return np.concatenate(masks) if masks else np.zeros(0, np.bool_)


def _scan(node: Condition, batch: pa.RecordBatch, wanted: Mask) -> Mask:
    if node.key.source != "extra":
        return scan(batch, node.key, node.test)
    return scan_extra(pc.struct_field(batch.column("attributes"), typed.EXTRA), node.key, node.test, wanted)


def _group(group: Filter, part: Part, wanted: Mask) -> Mask:
    for node in _cheap_first(group.must):
        wanted = wanted & _mask(node, part, wanted)
    for node in _cheap_first(group.must_not):
        wanted = wanted & ~_mask(node, part, wanted)
    if group.should and wanted.any():
        found = np.zeros(part.rows, np.bool_)
        for node in _cheap_first(group.should):
            found |= _mask(node, part, wanted & ~found)
        wanted = wanted & found
    if group.min_should and wanted.any():
        hits = np.zeros(part.rows, np.uint16)
        for node in group.min_should:
            hits += _mask(node, part, wanted)
        wanted = wanted & (hits >= group.min_count)
    return wanted


def _cheap_first(nodes: tuple[Node, ...]) -> list[Node]:
    return sorted(nodes, key=_parses_json)


def _parses_json(node: Node) -> bool:
    if isinstance(node, Filter):
        return any(map(_parses_json, (*node.must, *node.should, *node.must_not, *node.min_should)))
    return isinstance(node, Condition) and node.key.source == "extra"


def _ids(node: HasId, part: Part) -> Mask:
    if part.filter_index is not None:
        return part.filter_index.ids(node)
    wanted = pa.array(node.ids, pa.utf8())
    masks = [as_mask(pc.is_in(batch.column("id"), value_set=wanted)) for batch in part.batches]
    return np.concatenate(masks) if masks else np.zeros(0, np.bool_)


# ---- estimates ----------------------------------------------------------------------------------------------------
def _estimate(node: Node, part: Part) -> Estimate:
    rows = part.rows
    if isinstance(node, HasId):
        most = min(rows, len(node.ids))
        return Estimate(0, most, most)
    if isinstance(node, Condition):
        known = None if part.filter_index is None else part.filter_index.estimate(node)
        return Estimate.unknown(rows) if known is None else known
    clauses = [_estimate(each, part) for each in node.must]
    clauses += [_estimate(each, part).inverted(rows) for each in node.must_not]
    if node.should:
        clauses.append(any_of([_estimate(each, part) for each in node.should], rows))
    if node.min_should:
        clauses.append(at_least(node.min_count, [_estimate(each, part) for each in node.min_should], rows))
    return all_of(clauses, rows)
