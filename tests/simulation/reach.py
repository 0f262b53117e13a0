"""What of the system a seed has beside workers, nodes and one partition: each costs steps, so that each is in a share of the seeds."""

from __future__ import annotations

import random
from dataclasses import dataclass

ARCHIVE_SHARE = 0.35
TWO_PARTITIONS_SHARE = 0.25
RETENTION_SHARE = 0.3
TRAINED_SHARE = 0.3


@dataclass(frozen=True)
class Reach:
    """Is the archive kept, how many partitions are there, does retention take media that is embedded, is the index trained?"""

    archive: bool
    partitions: int
    retention: bool
    trained: bool

    @staticmethod
    def of(seed: int) -> Reach:
        """Drawn apart from the seed's history, so that a share can be changed without changing the other seeds."""
        draws = {name: random.Random(f"{name} {seed}").random() for name in ("archive", "partitions", "retention", "trained")}
        return Reach(
            archive=draws["archive"] < ARCHIVE_SHARE,
            partitions=2 if draws["partitions"] < TWO_PARTITIONS_SHARE else 1,
            retention=draws["retention"] < RETENTION_SHARE,
            trained=draws["trained"] < TRAINED_SHARE,
        )
