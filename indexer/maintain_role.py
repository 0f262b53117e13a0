"""The maintain role: a `MaintainWorker` per collection, and a sweep of collections that were deleted.

Takes: engines, collection names. Gives: running maintenance. Owns: nothing. Never: maintains itself.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence

from contracts.engines import Engines
from indexer.dead_collections import keep_sweeping
from indexer.maintain_worker import MaintainWorker
from indexer.role import run_collections


def run_maintain(engines: Engines, collections: Sequence[str] | None, stop: threading.Event, *, is_alone: bool = False) -> None:
    """Run the maintain role until `stop` is set; a process in which it `is_alone` ends with its error once no collection is left to work on.

    Raises
    ------
    HeadwaterError
        What cannot be mended by trying again.
    """
    if collections is None:
        threading.Thread(target=keep_sweeping, args=(engines, stop), name="sweep-deleted", daemon=True).start()
    run_collections(engines, collections, stop, lambda collection: MaintainWorker(engines, collection), stage="maintain", ends_without_work=is_alone)
