"""When the big tier is made anew.

A rebuild copies every code once (0.14 s for 500,000 rows), so it pays when a constant share has changed; the small tier is held twice and stacked on
the big one, which costs a copy of every list that is probed, so it must not grow without bound.

Takes: numbers of rows. Gives: yes or no. Owns: the thresholds. Never: looks at an index or a clock.
"""

from __future__ import annotations

LEAST_ROWS = 65_536
RECENT_SHARE = 0.25
DEAD_SHARE = 0.25


def rebuild_due(big_rows: int, recent_rows: int, dead_rows: int) -> bool:
    """Tell whether a rebuild pays.

    Parameters
    ----------
    big_rows : int
        Rows of the big tier, dead ones included.
    recent_rows : int
        Sealed rows that lie in the small tier.
    dead_rows : int
        Rows of either tier that no view names any more.
    """
    return recent_rows >= max(LEAST_ROWS, RECENT_SHARE * big_rows) or dead_rows >= max(LEAST_ROWS, DEAD_SHARE * (big_rows + recent_rows))
