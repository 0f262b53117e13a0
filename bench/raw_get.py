"""The bare reference of W6, a process of its own: the same objects by parallel GET, hashed and dropped.

    python -m bench.raw_get COLLECTION        at the first line on stdin: open the store, get everything; one JSON object

Objects come in blocks, as the node reads them, which is the fastest way that there is here. Afterwards they come once more, each as one body in
memory, as a client would read them that wants to have them; that was the reference until the node read blocks.

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
from contracts.store import ObjectStore
from headwater.wiring import open_engines
from query.segment_cache import BLOCK_BYTES


def get_all(settings: Settings, entries: Sequence[ObjectEntry], *, whole: bool) -> int:
    """Bytes of all objects, each of which was compared with its sha256; in blocks, or as `whole` bodies."""
    store = open_store(settings, Metrics())

    def get(entry: ObjectEntry) -> int:
        digest, size_bytes = hashlib.sha256(), 0
        for block in _whole(store, entry) if whole else store.blocks(entry.key, BLOCK_BYTES) or ():
            digest.update(block)
            size_bytes += len(block)
        if digest.hexdigest() != entry.sha256:
            raise CorruptError(f"{entry.key} is not what the manifest says", hint="look at the store")
        return size_bytes

    try:
        with ThreadPoolExecutor(settings.load_threads) as pool:
            return sum(pool.map(get, entries))
    finally:
        store.close()


def _whole(store: ObjectStore, entry: ObjectEntry) -> tuple[bytes, ...]:
    found = store.get(entry.key)
    return () if found is None else (found.data,)


def main(arguments: list[str]) -> None:
    """Wait for the start, then get."""
    settings = load_settings()
    with open_engines(settings) as engines:
        record = CollectionCatalog(engines.store).get(arguments[0])
        segments = [segment for manifest in newest_manifests(engines, record) for segment in manifest.segments]
    entries = [entry for segment in segments for entry in segment.parts.values()]
    print("ready", flush=True)
    sys.stdin.readline()
    answer: dict[str, float] = {"objects": len(entries)}
    for name, whole in (("seconds", False), ("whole_seconds", True)):
        begin = time.perf_counter()
        answer["bytes"] = get_all(settings, entries, whole=whole)
        answer[name] = time.perf_counter() - begin
    print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
