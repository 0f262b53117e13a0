"""Where a group reader stands in a partition that may have been revoked a moment ago.

Takes: a reader, a partition. Gives: an offset, or -1. Owns: nothing. Never: fails for a partition that the group took away.
"""

from __future__ import annotations

from contracts.errors import SettingsError
from contracts.log import GroupReader


def position_of(reader: GroupReader, partition: int) -> int:
    """Offset of the next record that `poll` returns for the partition; -1 where it is not read, since it was revoked."""
    try:
        return reader.position(partition)
    except SettingsError:
        return -1
