"""A partition that goes back to its chain's end while records keep coming: none of them may look like a gap of the log."""

from __future__ import annotations

import threading
import time

from contracts.collection import CollectionRecord
from contracts.engines import Engines
from contracts.errors import UnavailableError
from indexer.build_worker import BuildWorker
from indexer.embed_worker import EmbedWorker
from tests.indexer.conftest import eventually, produce, running
from tests.indexer.stored import read_partition


def test_records_that_arrive_in_the_turn_of_a_restart_do_not_hide_those_before_them(engines: Engines, collection: CollectionRecord) -> None:
    index = collection.index()
    worker = EmbedWorker(engines, collection, index, None)
    stop, sent = threading.Event(), 0

    def interrupt(stopped: threading.Event) -> None:
        while not stopped.wait(0.05):
            run = worker.runs.get(0)
            if run is not None:
                worker._go_back(0, run.number, UnavailableError("as after a produce error"))
                worker._restarts[0] = engines.clock.monotonic_seconds() + 0.02

    with running(worker.run, BuildWorker(engines, collection, index).run):
        thread = threading.Thread(target=interrupt, args=(stop,))
        thread.start()
        end = time.monotonic() + 4
        while time.monotonic() < end:
            produce(engines, collection, 0, [f"id-{sent}"])
            sent += 1
        stop.set()
        thread.join()
        eventually(lambda: read_partition(engines, collection, 0).manifest.checkpoint.media_offset == sent, 30)
    stored = read_partition(engines, collection, 0)
    assert set(stored.live) == {f"id-{n}" for n in range(sent)} and sent > 100
