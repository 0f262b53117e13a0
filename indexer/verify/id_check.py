"""Versions of ids over all segments and partitions, judged (pure): one live row, the newest one, and nothing dead without a cause.

Takes: versions of one window of id hashes. Gives: pairs and single versions that are wrong, counts of dead rows by why. Owns: the order of versions.
Never: trusts a hash alone: whoever tells the user of two equal ids has compared them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from contracts.deletes import Tombstone
from indexer.verify.segment_check import DEAD, LIVE, TOMBSTONE

Held = tuple[int, int]
"""A version by its owner's number and its row there."""


@dataclass
class IdVerdict:
    """What a window of ids shows.

    `twice` are pairs of live rows with one hash in one partition, `apart` in two; `outlived` are live rows with a newer delete; `causeless` dead
    rows with nothing newer. `dead` counts dead rows by (partition, state).
    """

    twice: list[tuple[Held, Held]] = field(default_factory=list)
    apart: list[tuple[Held, Held]] = field(default_factory=list)
    outlived: list[Held] = field(default_factory=list)
    causeless: list[Held] = field(default_factory=list)
    dead: Counter[tuple[int, str]] = field(default_factory=Counter)


def check_ids(columns: Mapping[str, NDArray[Any]], partitions: NDArray[np.int64]) -> IdVerdict:
    """Judge all versions of some ids.

    Parameters
    ----------
    columns : mapping of str to NDArray
        Columns of `ID_COLUMNS`, each of shape (n,), in any order; all versions of an id are there.
    partitions : NDArray[np.int64]
        shape (owners,): the partition of each owner.
    """
    verdict = IdVerdict()
    if not len(columns["high"]):
        return verdict
    partition = partitions[columns["owner"].astype(np.int64)]
    keys = ("own_item", "own_offset", "effective_item", "effective_offset")
    order = np.lexsort((*(columns[name] for name in keys), partition, columns["low"], columns["high"]))
    high, low, kind, partition = columns["high"][order], columns["low"][order], columns["kind"][order], partition[order]
    held = columns["owner"][order], columns["row"][order]
    same_id = (high[1:] == high[:-1]) & (low[1:] == low[:-1])
    older = np.append(same_id & (partition[1:] == partition[:-1]), False)  # something newer of the id follows in this partition
    following = np.append(kind[1:], np.uint8(LIVE))
    is_dead = kind == DEAD
    for state, mask in (("deleted", older & (following == TOMBSTONE)), ("superseded", ~(older & (following == TOMBSTONE)))):
        numbers, counts = np.unique(partition[is_dead & mask], return_counts=True)
        verdict.dead.update({(int(number), state): int(count) for number, count in zip(numbers, counts, strict=True)})
    verdict.causeless = [_held(held, at) for at in np.flatnonzero(is_dead & ~older)]
    group = np.concatenate([[0], np.cumsum(~older[:-1])])
    last_delete = np.full(len(kind) + 1, -1)
    deletes = np.flatnonzero(kind == TOMBSTONE)
    np.maximum.at(last_delete, group[deletes], deletes)
    verdict.outlived = [_held(held, at) for at in np.flatnonzero((kind == LIVE) & (np.arange(len(kind)) < last_delete[group]))]
    live = np.flatnonzero(kind == LIVE)
    pairs = np.flatnonzero((high[live][1:] == high[live][:-1]) & (low[live][1:] == low[live][:-1]))
    for at in pairs:
        a, b = live[at], live[at + 1]
        (verdict.twice if partition[a] == partition[b] else verdict.apart).append((_held(held, a), _held(held, b)))
    return verdict


def _held(held: tuple[NDArray[Any], NDArray[Any]], at: np.intp) -> Held:
    return int(held[0][at]), int(held[1][at])


def tombstone_columns(tombstones: Sequence[Tombstone], owner: int) -> dict[str, NDArray[Any]]:
    """Columns of `ID_COLUMNS` of one delta's deletes, each of shape (n,), by id hash."""
    hashes = np.frombuffer(b"".join(tombstone.id_hash for tombstone in tombstones), ">u8").astype(np.uint64).reshape(-1, 2)
    orders = np.array([tombstone.order for tombstone in tombstones], np.int64).reshape(-1, 4)
    order = np.lexsort((hashes[:, 1], hashes[:, 0]))
    count = len(tombstones)
    columns: dict[str, NDArray[Any]] = {
        "high": hashes[:, 0],
        "low": hashes[:, 1],
        "owner": np.full(count, owner, np.uint32),
        "row": np.zeros(count, np.uint32),
        "effective_offset": orders[:, 0],
        "effective_item": orders[:, 1],
        "own_offset": orders[:, 2],
        "own_item": orders[:, 3],
        "kind": np.full(count, TOMBSTONE, np.uint8),
    }
    return {name: column[order] for name, column in columns.items()}
