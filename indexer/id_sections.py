"""The ids of a committed segment alone, as hashes: two sections of its `rows` part, read by range where the part is large.

Takes: the part's manifest entry. Gives: an `IdIndex`. Owns: nothing. Never: reads a large part's rows.
"""

from __future__ import annotations

import numpy as np

from backends.catalog.objects import download, download_range
from contracts.errors import CorruptError
from contracts.footer_file import read_footer
from contracts.item import IdIndex
from contracts.manifest import ObjectEntry
from contracts.segment import read_rows_part
from contracts.store import ObjectStore
from indexer.recode import FOOTER_BYTES


def read_ids(store: ObjectStore, entry: ObjectEntry) -> IdIndex:
    """Rows of a segment by id hash.

    Raises
    ------
    SnapshotError
        It was compacted away.
    CorruptError
        Its bytes are not what the manifest says.
    """
    if not entry.chunks_sha256:  # one chunk, so that a range would be checked by reading all of it
        return read_rows_part(download(store, entry), entry.key).ids
    start = max(0, entry.size_bytes - FOOTER_BYTES)
    footer = read_footer(download_range(store, entry, start, entry.size_bytes - start), entry.key)
    try:
        hashes, rows = (_section(store, entry, footer.places[name]) for name in ("id_hashes", "id_rows"))
        found = IdIndex(np.frombuffer(hashes, ">u8").astype(np.uint64).reshape(-1, 2), np.frombuffer(rows, "<u4").copy())
    except (KeyError, ValueError) as error:
        raise CorruptError(f"{entry.key}: the id hashes cannot be read: {error}") from None
    if len(found.rows) != footer.meta.get("rows"):
        raise CorruptError(f"{entry.key}: {len(found.rows)} id hashes, meta says {footer.meta.get('rows')} rows")
    return found


def _section(store: ObjectStore, entry: ObjectEntry, place: tuple[int, int]) -> memoryview:
    start, size_bytes = place
    return download_range(store, entry, start, size_bytes) if size_bytes else memoryview(b"")
