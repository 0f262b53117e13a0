"""When a field is trained, and on which rows (pure).

A partition decides alone, by its own manifest: the first whose committed rows hold `train_rows` vectors of the field trains for the whole index. Ids
are spread over partitions, so one partition's rows are like those of the others; no count has to be agreed upon, and who trains second loses a
put-if-absent and nothing else.

Takes: counts. Gives: when to look. Owns: the rule. Never: looks at a vector, a store or a clock.
"""

from __future__ import annotations


def next_look(rows: int, vectors: int, train_rows: int) -> int:
    """Committed rows at which a partition that has `vectors` of a field in `rows` rows, too few, will have enough of them at this rate."""
    if vectors == 0:
        return 2 * rows
    return max(rows + 1, -(-rows * train_rows // vectors))
