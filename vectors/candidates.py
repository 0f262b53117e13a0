"""Refining: the rows that codes found, compared again with their stored vectors.

Refine codes lie in many places: mapped files of segments, chunks of tails. One query's candidates come from dozens of them, so they are copied
together by address in one step: a loop over places would take longer than the search.

Takes: places of refine codes, queries. Gives: scores as they are shown. Owns: the arithmetic of addresses.
Never: keeps an address without the array that it points into (the caller's view holds that).
"""

from __future__ import annotations

import ctypes
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

_LOWEST = 4096
_BYTES = 2**47 - 2 * _LOWEST
"""Addresses of a process on Linux, on x86 and on ARM with 48-bit addresses, lie below 2**47; what lies above is refused by numpy's own bounds."""


@lru_cache(maxsize=64)
def _memory(width: int) -> NDArray[np.uint8]:
    """Every run of `width` bytes of this process's memory, as row i the one at address i + _LOWEST."""
    everything = np.ctypeslib.as_array((ctypes.c_uint8 * _BYTES).from_address(_LOWEST))
    return np.lib.stride_tricks.as_strided(everything, (_BYTES - width, width), (1, 1), writeable=False)


def address_of(codes: NDArray[np.uint8]) -> int:
    """Where an array begins, shape (n, width), C order; good as long as the array lives."""
    if not codes.flags.c_contiguous:
        raise ValueError("refine codes must lie row behind row")
    return int(codes.ctypes.data)


def gather(addresses: NDArray[np.int64], width: int) -> NDArray[np.uint8]:
    """Copy runs of `width` bytes together.

    Parameters
    ----------
    addresses : NDArray[np.int64]
        shape (n,); of rows of arrays that are alive.
    width : int
        Bytes of one row.

    Returns
    -------
    NDArray[np.uint8]
        shape (n, width).
    """
    copied: NDArray[np.uint8] = _memory(width)[addresses - _LOWEST]
    return copied


def closest_of(scores: NDArray[np.float32], limit: int, higher_is_better: bool) -> NDArray[np.int64]:
    """Places of the best `limit` scores, shape (k',), best first; of equal ones the earlier place."""
    keys: NDArray[Any] = -scores if higher_is_better else scores
    if len(keys) > 4 * limit:
        near = np.argpartition(keys, limit - 1)[:limit]
        edge = keys[near].max()
        near = np.flatnonzero(keys <= edge)
        return near[np.argsort(keys[near], kind="stable")][:limit].astype(np.int64)
    return np.argsort(keys, kind="stable")[:limit].astype(np.int64)
