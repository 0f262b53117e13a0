"""An embed worker in a process of its own whose encoder kills that process when it sees a certain picture; for `test_crash_loop`.

    python -m tests.indexer.crashing_worker COLLECTION     (settings from the environment)

It ends in order when it has nothing to do for a while.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
import time

import numpy as np
from numpy.typing import NDArray

from backends.catalog.collections import CollectionCatalog
from backends.open_log import open_log
from backends.open_store import open_store
from contracts.engines import Engines
from contracts.settings import load_settings
from indexer.embed_worker import EmbedWorker
from tests.encoders import ColourEncoder

CRASHED_BY = (255, 255, 0)


class CrashingEncoder(ColourEncoder):
    """As `ColourEncoder`, but a yellow picture ends the process by a segmentation fault; and a black one kills it, where that is asked for."""

    def encode_pictures(self, pictures: NDArray[np.uint8]) -> NDArray[np.float32]:
        centres = pictures[:, pictures.shape[1] // 2, pictures.shape[2] // 2].astype(int)
        if "KILLED_BY_BLACK" in os.environ and (centres.max(1) < 10).any():  # noqa: TID251 - the test's own variable
            os.kill(os.getpid(), signal.SIGKILL)
        if (np.abs(centres - CRASHED_BY).max(1) < 40).any():
            ctypes.string_at(0)
        return super().encode_pictures(pictures)


def main(collection_name: str) -> None:
    settings = load_settings()
    engines = Engines(settings, open_log(settings), open_store(settings))
    collection = CollectionCatalog(engines.store).get(collection_name)
    worker, stop = EmbedWorker(engines, collection, collection.index(), CrashingEncoder()), threading.Event()
    thread = threading.Thread(target=worker.run, args=(stop,))
    thread.start()
    heads = engines.log.bounds(collection.source_topic)
    while thread.is_alive() and not (
        worker.runs.keys() == heads.keys() and all(worker.runs[p].sent_next >= head.next_offset for p, head in heads.items())
    ):
        time.sleep(0.02)
    stop.set()
    thread.join()
    engines.log.close()
    engines.store.close()


if __name__ == "__main__":
    main(sys.argv[1])
