"""The archive role: an `ArchiveWorker` per collection.

Takes: engines, collection names. Gives: running archivers. Owns: nothing. Never: archives itself.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence

from contracts.engines import Engines
from indexer.archive_worker import ArchiveWorker
from indexer.role import run_collections


def run_archive(engines: Engines, collections: Sequence[str] | None, stop: threading.Event, *, is_alone: bool = False) -> None:
    """Run the archive role until `stop` is set; a process in which it `is_alone` ends with its error once no collection is left to work on.

    Raises
    ------
    HeadwaterError
        What cannot be mended by trying again.
    """
    run_collections(engines, collections, stop, lambda collection: ArchiveWorker(engines, collection), stage="archive", ends_without_work=is_alone)
