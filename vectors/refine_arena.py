"""The arena: refine codes of all rows of a logical index at addresses that follow from their row numbers.

A range of addresses is reserved once. Mapped files are mapped into it a second time, page for page, without a copy; codes that lie in memory only are
written into it. So one call of faiss compares candidates out of hundreds of segments: to it, all refine codes are one array.

Takes: row numbers, refine codes. Gives: an array of codes by row number. Owns: the reserved addresses, and the only calls of `mmap` by hand.
Never: touches the addresses of a number that nobody holds: there is no memory behind them.
"""

from __future__ import annotations

import ctypes
import math
import mmap
import os
import weakref

import numpy as np
from numpy.typing import NDArray

from contracts.errors import UnavailableError
from vectors.row_numbers import NumberRange

RESERVED_BYTES = 1 << 39
"""Addresses of one arena; they cost nothing until something lies there."""
_FAILED = ctypes.c_void_p(-1).value
_NO_RESERVE, _FIXED = 0x4000, 0x10
_MAY_MOVE_FIXED = 1 | 2
_NO_ACCESS = 0
_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
_libc.mremap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_size_t, ctypes.c_int, ctypes.c_void_p]
_libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
_libc.mmap.restype = _libc.mremap.restype = ctypes.c_void_p


class RefineArena:
    """Refine codes by row number; thread-safe as long as each range has one writer.

    Parameters
    ----------
    width : int
        Bytes of a refine code.

    Raises
    ------
    UnavailableError
        The system gives no addresses (a limit such as ``ulimit -v``).
    """

    def __init__(self, width: int) -> None:
        self.width = width
        self.rows = RESERVED_BYTES // width
        self._base = _map(None, RESERVED_BYTES, _NO_ACCESS, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _NO_RESERVE)
        weakref.finalize(self, _libc.munmap, self._base, RESERVED_BYTES).atexit = False
        whole = (ctypes.c_uint8 * (self.rows * width)).from_address(self._base)
        self.codes: NDArray[np.uint8] = np.ctypeslib.as_array(whole).reshape(self.rows, width)
        self.codes.flags.writeable = False

    @property
    def alignment(self) -> int:
        """Ranges of row numbers must begin at multiples of this: then their codes begin at a page."""
        return math.lcm(8, mmap.PAGESIZE // math.gcd(mmap.PAGESIZE, self.width))

    def place(self, numbers: NDArray[np.int64] | None, held: NumberRange, codes: NDArray[np.uint8]) -> None:
        """Copy codes to where their rows' numbers say.

        Parameters
        ----------
        numbers : NDArray[np.int64] or None
            shape (n,), row number of each code; None where code i is that of the i-th number of the range.
        held : NumberRange
            The range that the numbers are from.
        codes : NDArray[np.uint8]
            shape (n, width).
        """
        room = self.reserve(held)
        if numbers is None:
            room[: len(codes)] = codes
        else:
            room[numbers - held.start] = codes

    def reserve(self, held: NumberRange) -> NDArray[np.uint8]:
        """Memory for the codes of a range, shape (capacity, width), all zero, to be written to."""
        address, size = self._place(held)
        _map(address, size, mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _NO_RESERVE | _FIXED)
        return np.ctypeslib.as_array((ctypes.c_uint8 * (held.capacity * self.width)).from_address(address)).reshape(held.capacity, self.width)

    def release(self, start: int, capacity: int) -> None:
        """Give back what lies behind row numbers that nobody holds any more."""
        address, size = self._place(NumberRange(start, capacity))
        _map(address, size, _NO_ACCESS, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _NO_RESERVE | _FIXED)

    def map(self, held: NumberRange, codes: NDArray[np.uint8]) -> bool:
        """Map codes, shape (n, width), of the first n numbers of a range out of their file, where they begin at a page of one; whether they were."""
        source = int(codes.ctypes.data)
        if not len(codes) or source % mmap.PAGESIZE or not codes.flags.c_contiguous:
            return False
        address, _ = self._place(held)
        # with an old size of 0 the pages of a shared mapping are mapped a second time; memory that is no shared mapping is refused
        return bool(_libc.mremap(source, 0, codes.nbytes, _MAY_MOVE_FIXED, address) != _FAILED)

    def _place(self, held: NumberRange) -> tuple[int, int]:
        if held.stop > self.rows:
            raise UnavailableError(
                f"row number {held.stop} lies beyond the {self.rows} rows of an index on one node",
                hint="serve the collection's partitions from several nodes, or wait for compaction",
                code="memory_full",
            )
        return self._base + held.start * self.width, held.capacity * self.width


def _map(address: int | None, size: int, access: int, flags: int) -> int:
    found = _libc.mmap(address, size, access, flags, -1, 0)
    if found in (None, _FAILED):
        raise UnavailableError(
            f"{size} bytes of addresses cannot be had: {os.strerror(ctypes.get_errno())}", hint="look at `ulimit -v` and at the container's limits"
        )
    return int(found)
