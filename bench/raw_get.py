"""The bare reference of W6, a process of its own: the same objects by parallel GET, hashed and dropped.

    python -m bench.raw_get COLLECTION        at the first line on stdin: open the store, get everything; one JSON object

Takes: settings from the environment. Gives: bytes and seconds. Owns: nothing. Never: writes, parses or keeps what it got.
"""

from __future__ import annotations

import hashlib
import json
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from backends.catalog.collections import CollectionCatalog
from backends.open_store import open_store
from bench.prepared import newest_manifests
from contracts.errors import CorruptError
from contracts.manifest import ObjectEntry
from contracts.metrics import Metrics
from contracts.settings import Settings, load_settings
from headwater.wiring import open_engines


def get_all(settings: Settings, entries: Sequence[ObjectEntry]) -> int:
    """Bytes of all objects, each of which was compared with its sha256."""
    store = open_store(settings, Metrics())

    def get(entry: ObjectEntry) -> int:
        found = store.get(entry.key)
        if found is None or hashlib.sha256(found.data).hexdigest() != entry.sha256:
            raise CorruptError(f"{entry.key} is not what the manifest says", hint="look at the store")
        return len(found.data)

    try:
        with ThreadPoolExecutor(settings.load_threads) as pool:
            return sum(pool.map(get, entries))
    finally:
        store.close()


def main(arguments: list[str]) -> None:
    """Wait for the start, then get."""
    settings = load_settings()
    with open_engines(settings) as engines:
        record = CollectionCatalog(engines.store).get(arguments[0])
        segments = [segment for manifest in newest_manifests(engines, record) for segment in manifest.segments]
    entries = [entry for segment in segments for entry in segment.parts.values()]
    print("ready", flush=True)
    sys.stdin.readline()
    begin = time.perf_counter()
    size_bytes = get_all(settings, entries)
    print(json.dumps({"bytes": size_bytes, "objects": len(entries), "seconds": time.perf_counter() - begin}), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
