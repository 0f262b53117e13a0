"""An archiver in a process of its own that dies when it looks into certain records; for `test_archive_care`.

    python -m tests.indexer.crashing_archiver COLLECTION     (settings from the environment)

It ends in order when everything is archived.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time

from backends.catalog.archive import archive_chain
from backends.catalog.collections import CollectionCatalog
from contracts import archive_tar
from contracts.settings import load_settings
from headwater.wiring import open_engines
from indexer.archive_worker import ArchiveWorker

POISON = b"<poison"
_read = archive_tar.read_media_record


def _killing_read(record, collection, limits):  # type: ignore[no-untyped-def]
    if POISON in (record.value or b""):
        os.kill(os.getpid(), signal.SIGKILL)
    return _read(record, collection, limits)


def main(name: str) -> None:
    archive_tar.read_media_record = _killing_read  # type: ignore[assignment]
    with open_engines(load_settings()) as engines:
        collection = CollectionCatalog(engines.store).get(name)
        stop = threading.Event()
        thread = threading.Thread(target=ArchiveWorker(engines, collection).run, args=(stop,))
        thread.start()
        heads = {p: b.next_offset for p, b in engines.log.bounds(collection.source_topic).items()}

        def done(partition: int) -> bool:
            read = archive_chain(engines.store, collection, partition).head()
            return read is not None and read.manifest.checkpoint.media_offset >= heads[partition]

        while thread.is_alive() and not all(map(done, heads)):
            time.sleep(0.02)
        stop.set()
        thread.join()


if __name__ == "__main__":
    main(sys.argv[1])
