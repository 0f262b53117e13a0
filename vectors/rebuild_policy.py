"""How the rows of a logical index are held, and when that is made anew.

Rows that fit are held whole: in both copies of the small tier, and there is no other. Beyond, most lie in a big tier, once. A rebuild copies every
code (0.14 s for 500,000 rows), so it pays when a constant share has changed. A small tier beside a big one must not grow without bound: they are
stacked, which costs a copy of every list that is probed.

Takes: numbers of rows. Gives: yes or no. Owns: the thresholds. Never: looks at an index or a clock.
"""

from __future__ import annotations

WHOLE_BYTES = 256 * 1024 * 1024
"""Codes and row numbers of one copy: 3.7 million rows of 512 dimensions with the default codec."""
LEAST_ROWS = 65_536
RECENT_SHARE = 0.25
DEAD_SHARE = 0.25


def fits_whole(rows: int, row_bytes: int) -> bool:
    """Whether rows of `row_bytes` bytes each (code and row number) are held in two copies and without a big tier."""
    return rows * row_bytes <= WHOLE_BYTES


def rebuild_due(big_rows: int, recent_rows: int, dead_rows: int, row_bytes: int) -> bool:
    """Tell whether a rebuild pays.

    Parameters
    ----------
    big_rows : int
        Rows of the big tier, dead ones included.
    recent_rows : int
        Sealed rows that live and lie in the small tier.
    dead_rows : int
        Rows of either tier that no view names any more.
    row_bytes : int
        Bytes of a code and a row number.
    """
    if dead_rows >= max(LEAST_ROWS, DEAD_SHARE * (big_rows + recent_rows)):
        return True
    if not big_rows and fits_whole(recent_rows, row_bytes):
        return False
    return recent_rows >= max(LEAST_ROWS, RECENT_SHARE * big_rows)
