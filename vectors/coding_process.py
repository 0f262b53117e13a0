"""What a process that codes rows and does little else sets once: when faiss multiplies matrices, and how much freed memory glibc keeps.

faiss compares rows one by one below 128,000 numbers of them (250 rows of 512 dimensions): 140 ps for a number and a centroid, where a matrix product
takes 27 for 32 rows and 17 for 250. A seal compares 32 of its rows with all of them to measure its recall: 2.3 CPU-microseconds a row became 0.5.
Products round squares of L2 otherwise, so processes that answer searches keep faiss's own limit.

glibc gives freed memory back to the kernel as soon as twice the largest block that was ever freed lies at the end of its heap, and takes it back page
by page: Kafka's answers of 7 MB and blocks of 4,096 rows come and go all the time. Fetching a row of 1 KB took 4.4 CPU-microseconds beside other
work, and 2.4 since.

Takes: nothing. Gives: nothing. Owns: these settings. Never: is called where searches are answered.
"""

from __future__ import annotations

import ctypes

import faiss

PRODUCTS_FROM = 8192
"""Numbers of the rows that are compared at once, 16 rows of 512 dimensions, from which faiss multiplies; a product of one row would take longer."""
KEPT_BYTES, MAPPED_BYTES = 128 * 1024 * 1024, 32 * 1024 * 1024
"""Freed memory that stays at the end of a heap, and blocks that are mapped alone; glibc takes no larger number for these everywhere."""
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
"""mallopt(3)."""


def set_up_coding_process() -> None:
    """Set both for the whole process; the memory only where the C library is glibc."""
    faiss.cvar.distance_compute_blas_threshold = PRODUCTS_FROM
    library = ctypes.CDLL(None)
    if hasattr(library, "gnu_get_libc_version"):
        library.mallopt(_TRIM_THRESHOLD, KEPT_BYTES)
        library.mallopt(_MMAP_THRESHOLD, MAPPED_BYTES)
