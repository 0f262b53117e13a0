"""The ids of a growing segment that a patch touches: what becomes of each of their changes (pure; no store, no clock).

Changes of one id are taken in the log's order, as the tail takes them: a change that is older than what stands (a replay) is superseded, a patch
makes a row of the id's live row, and changes nothing where there is none.

Takes: changes of a batch, committed versions and rows. Gives: the winning change of each id, the rows that patches made, what missed.
Owns: that order. Never: touches ids without a patch (`indexer.seal` decides those all at once).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from contracts.item import VersionOrder, version_order
from contracts.media_patch import BaseRow, PatchedRow, Patcher

PriorVersions = Callable[[Sequence[str]], Sequence[VersionOrder | None]]
"""Newest committed version of each id, rows and tombstones alike; None where there is none."""
BaseRows = Callable[[Sequence[str]], Sequence[BaseRow | None]]
"""Live committed row of each id; None where there is none."""

WHERE = "a growing segment"
_LINEAGE = ("offset", "item", "origin_offset", "origin_item")


@dataclass(slots=True)
class PatchOutcome:
    """What became of the changes of ids with a patch.

    `decided` and `winners` are places in the list of changes: all that were looked at, and the newest of each id. `made` maps a winning patch's batch
    row to its row in the making, `missed` that of a patch which changed nothing to the reason.
    """

    decided: list[int] = field(default_factory=list)
    winners: list[int] = field(default_factory=list)
    made: dict[int, PatchedRow] = field(default_factory=dict)
    missed: dict[int, str] = field(default_factory=dict)


@dataclass(slots=True)
class _Standing:
    """The newest version of an id so far; `live` is None for a delete, `place` None for what is committed already."""

    order: VersionOrder | None = None
    live: BaseRow | PatchedRow | None = None
    place: int | None = None


def resolve_patches(
    batch: pa.RecordBatch,
    changes: NDArray[np.int64],
    ids: Sequence[str],
    ops: Sequence[str],
    schema: Mapping[str, str],
    prior: PriorVersions,
    bases: BaseRows,
) -> PatchOutcome:
    """Decide all changes of the ids that a patch touches.

    Parameters
    ----------
    batch : pyarrow.RecordBatch
        Accepted rows, in log order.
    changes : NDArray[np.int64]
        shape (n,): its rows that are upserts, deletes and patches; `ids` and `ops` are theirs.
    schema : Mapping of str to str
        The collection's attributes.
    prior, bases : callable
        Asked only about ids whose first change here is a patch or a replay.
    """
    patched = {item_id for item_id, op in zip(ids, ops, strict=True) if op == "patch"}
    places: dict[str, list[int]] = {}
    for place, item_id in enumerate(ids):
        if item_id in patched:
            places.setdefault(item_id, []).append(place)
    out = PatchOutcome(decided=[place for of_id in places.values() for place in of_id])
    rows = changes[out.decided]
    lineage = zip(*(batch.column(name).take(pa.array(rows)).to_pylist() for name in _LINEAGE), strict=True)
    orders = {place: version_order(*values) for place, values in zip(out.decided, lineage, strict=True)}
    standing = _committed(places, orders, ops, prior, bases)
    patcher = Patcher(batch, schema, WHERE)
    for item_id, of_id in places.items():
        stands = standing.get(item_id) or _Standing()
        for place in of_id:
            if stands.order is None or stands.order < orders[place]:
                stands = _next(stands, place, int(changes[place]), ops[place], orders[place], patcher, out.missed)
        if stands.place is not None:
            out.winners.append(stands.place)
            if isinstance(stands.live, PatchedRow):
                out.made[int(changes[stands.place])] = stands.live
    return out


def _next(stands: _Standing, place: int, row: int, op: str, order: VersionOrder, patcher: Patcher, missed: dict[int, str]) -> _Standing:
    if op == "upsert":
        return _Standing(order, patcher.row(row), place)
    if op == "delete":
        return _Standing(order, None, place)
    made = patcher.apply(stands.live, row)
    if isinstance(made, str):
        missed[row] = made
        return stands
    return _Standing(order, made, place)


def _committed(
    places: Mapping[str, Sequence[int]], orders: Mapping[int, VersionOrder], ops: Sequence[str], prior: PriorVersions, bases: BaseRows
) -> dict[str, _Standing]:
    """What is committed of the ids for which it matters: an own upsert or delete is newer than all of it."""

    def is_replay(place: int) -> bool:
        order = orders[place]
        return (order.effective_offset, order.effective_item) != (order.own_offset, order.own_item)

    asked = [item_id for item_id, of_id in places.items() if ops[of_id[0]] == "patch" or is_replay(of_id[0])]
    found = {item_id: _Standing(live=base) for item_id, base in zip(asked, bases(asked) if asked else (), strict=True)}
    replayed = [item_id for item_id in asked if any(is_replay(place) for place in places[item_id])]
    for item_id, order in zip(replayed, prior(replayed) if replayed else (), strict=True):
        found[item_id].order = order
    return found
