"""The index role: a `BuildWorker` per collection.

Takes: engines, collection names. Gives: running builders. Owns: nothing. Never: builds itself.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence

from contracts.engines import Engines
from indexer.build_worker import BuildWorker
from indexer.role import run_collections


def run_index(engines: Engines, collections: Sequence[str] | None, stop: threading.Event) -> None:
    """Run the index role until `stop` is set.

    Raises
    ------
    HeadwaterError
        What cannot be mended by trying again.
    """
    run_collections(engines, collections, stop, lambda collection: BuildWorker(engines, collection, collection.index()))
