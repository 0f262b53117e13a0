"""Accepted rows -> what a commit says: stored rows, verdicts, deletes (pure; no store, no clock).

Newest version of an id wins; the others are superseded. A replayed record (one with an origin) also loses to a newer row or tombstone that is
committed already. A patch becomes a row whose vectors, text and media are those of the row that it changes (`indexer.patching`).

Takes: accepted batch rows in log order. Gives: a `SealedSegment`. Owns: the verdicts.
Never: sees the manifest; which older rows die is computed for each manifest that is tried (`indexer.delete_bits`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from contracts.collection import CollectionRecord, IndexRecord
from contracts.item import IdIndex, VersionOrder, id_hashes
from contracts.ledger import LedgerRun
from contracts.media_patch import PatchedRow, Patcher, put_vectors
from contracts.segment import rows_schema, stored_rows
from contracts.vectors_batch import VECTOR_PREFIX, vector_matrix
from indexer.patching import WHERE, BaseRows, PatchOutcome, PriorVersions, resolve_patches
from indexer.verdicts import Coded, ledger_runs


@dataclass(frozen=True, slots=True)
class SealedSegment:
    """What a growing segment became.

    `rows` has the schema of `rows_schema`; `ids` finds a row by its id's hash; `vectors` maps a field to a matrix, shape (rows, d), and which rows
    have one, shape (rows,), neither to be changed; `touched` are the hashes, shape (k, 2), of all ids with a new row or delete; `tombstones` are the
    winning deletes as (id, offset, item, origin_offset, origin_item).
    """

    rows: pa.RecordBatch
    ids: IdIndex
    vectors: dict[str, tuple[NDArray[np.floating], NDArray[np.bool_]]]
    touched: NDArray[np.uint64]
    tombstones: list[tuple[str, int, int, int | None, int | None]]
    ledger: list[LedgerRun]


def seal(batches: Sequence[pa.RecordBatch], collection: CollectionRecord, index: IndexRecord, prior: PriorVersions, bases: BaseRows) -> SealedSegment:
    """Decide every accepted row of a growing segment.

    Parameters
    ----------
    batches : sequence of pa.RecordBatch
        Accepted rows, in log order, all with the same schema.
    collection, index
        Whose rows these are.
    prior : callable
        Asked only about ids of replayed records.
    bases : callable
        Asked only about ids of patches.
    """
    batch = pa.Table.from_batches(batches).combine_chunks().to_batches()[0] if sum(b.num_rows for b in batches) else batches[0].slice(0, 0)
    verdicts, reasons = Coded.of(batch.column("op")), Coded.of(batch.column("reason"))
    changes = np.flatnonzero(np.isin(verdicts.codes, [verdicts.code(op) for op in ("upsert", "delete", "patch")]))
    ids = batch.column("id").take(pa.array(changes)).to_pylist()
    hashes = id_hashes(ids)
    winner = _winners(batch, changes, hashes)
    patches = PatchOutcome()
    if (verdicts.codes == verdicts.code("patch")).any():
        ops = batch.column("op").take(pa.array(changes)).to_pylist()
        patches = resolve_patches(batch, changes, ids, ops, collection.attributes, prior, bases)
        winner[patches.decided] = False  # `prior` was asked about them
    _lose_to_prior(batch, changes, ids, winner, prior)
    winner[patches.winners] = True
    won, won_hashes = changes[winner], hashes[winner]
    is_row = verdicts.codes[won] != verdicts.code("delete")
    stored = won[is_row]
    order = np.lexsort((_numbers(batch, "item")[stored], _numbers(batch, "offset")[stored]))
    stored = stored[order]
    made = {place: patches.made[row] for place, row in enumerate(stored.tolist()) if row in patches.made} if patches.made else {}
    rows = _rows(batch, stored, made, collection)
    verdicts.put(changes[~winner], "superseded")
    verdicts.put(stored, "row")
    if made:
        reasons.put_column(stored, rows.column("reason"))
    if patches.missed:
        missed = np.array([*patches.missed], np.int64)
        verdicts.put(missed, "patch")
        reasons.put_column(missed, pa.array(patches.missed.values(), pa.utf8()))
    return SealedSegment(
        rows=rows,
        ids=IdIndex.of(won_hashes[is_row][order]),
        vectors=_vectors(batch, stored, made, index),
        touched=won_hashes,
        tombstones=_tombstones(batch, won[~is_row]),
        ledger=ledger_runs(_numbers(batch, "offset"), _numbers(batch, "item"), verdicts, reasons),
    )


def _numbers(batch: pa.RecordBatch, name: str) -> NDArray[np.int64]:
    values: NDArray[np.int64] = batch.column(name).to_numpy(zero_copy_only=False).astype(np.int64)
    return values


def _effective(batch: pa.RecordBatch, rows: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Columns of `VersionOrder` of these rows: the origin where there is one, else the row's own position; then its own."""
    offset, item = _numbers(batch, "offset")[rows], _numbers(batch, "item")[rows]
    origin = batch.column("origin_offset").take(pa.array(rows))
    if origin.null_count == len(rows):
        return offset, item, offset, item
    has = np.asarray(origin.is_valid())
    origin_item = batch.column("origin_item").take(pa.array(rows)).fill_null(0).to_numpy(zero_copy_only=False)
    return np.where(has, origin.fill_null(0).to_numpy(), offset), np.where(has, origin_item, item), offset, item


def _winners(batch: pa.RecordBatch, changes: NDArray[np.int64], hashes: NDArray[np.uint64]) -> NDArray[np.bool_]:
    """Which of the changes, shape (n,), are the newest of their id among themselves."""
    effective_offset, effective_item, offset, item = _effective(batch, changes)
    order = np.lexsort((item, offset, effective_item, effective_offset, hashes[:, 1], hashes[:, 0]))
    same_as_next = np.zeros(len(changes), bool)
    same_as_next[:-1] = (hashes[order[:-1]] == hashes[order[1:]]).all(axis=1)
    winner = np.empty(len(changes), bool)
    winner[order] = ~same_as_next
    return winner


def _lose_to_prior(batch: pa.RecordBatch, changes: NDArray[np.int64], ids: Sequence[str], winner: NDArray[np.bool_], prior: PriorVersions) -> None:
    """A replayed change loses to what is committed and newer than its origin; any other change is newer than everything committed."""
    replayed = np.flatnonzero(winner & np.asarray(batch.column("origin_offset").take(pa.array(changes)).is_valid()))
    if not len(replayed):
        return
    columns = _effective(batch, changes[replayed])
    mine = [VersionOrder(*(int(column[at]) for column in columns)) for at in range(len(replayed))]
    for at, order, committed in zip(replayed, mine, prior([ids[int(at)] for at in replayed]), strict=True):
        winner[at] = committed is None or committed < order


def _rows(batch: pa.RecordBatch, stored: NDArray[np.int64], made: Mapping[int, PatchedRow], collection: CollectionRecord) -> pa.RecordBatch:
    schema = rows_schema(collection.attributes)
    plain = stored_rows(batch.select([name for name in schema.names if name in batch.schema.names]).take(pa.array(stored)), schema)
    return Patcher(batch, collection.attributes, WHERE).rows(plain, made)


def _vectors(
    batch: pa.RecordBatch, stored: NDArray[np.int64], made: Mapping[int, PatchedRow], index: IndexRecord
) -> dict[str, tuple[NDArray[np.floating], NDArray[np.bool_]]]:
    out: dict[str, tuple[NDArray[np.floating], NDArray[np.bool_]]] = {}
    is_all = np.array_equal(stored, np.arange(batch.num_rows))
    for field in index.fields:
        matrix, present = vector_matrix(batch.column(VECTOR_PREFIX + field.name))
        # all rows in their order, as nearly always, are no reason to copy them; patches write into their rows, and need a copy
        out[field.name] = (matrix, present) if is_all and not made else (matrix[stored], present[stored])
        put_vectors(made, field.name, *out[field.name])
    return out


def _tombstones(batch: pa.RecordBatch, rows: NDArray[np.int64]) -> list[tuple[str, int, int, int | None, int | None]]:
    taken = batch.take(pa.array(rows))
    names = ("id", "offset", "item", "origin_offset", "origin_item")
    return list(zip(*(taken.column(name).to_pylist() for name in names), strict=True))
