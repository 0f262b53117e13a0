"""Reads the objects that a manifest names, and tells what is wrong with their bytes.

Takes: manifest entries. Gives: checked bytes, or a finding. Owns: telling "compacted away meanwhile" from "gone".
Never: hands out bytes that were not compared with size, sha256 and chunk digests.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field

from contracts.errors import SnapshotError
from contracts.footer_file import CHUNK_BYTES, chunk_hashes
from contracts.manifest import ObjectEntry
from contracts.store import ObjectStore
from indexer.verify.findings import Finding, Findings


@dataclass
class ObjectReader:
    """Reads objects of one partition at one version.

    Parameters
    ----------
    store : ObjectStore
        Where they lie.
    findings : Findings
        Takes what is wrong.
    is_named : callable
        Whether the newest manifest still names a key; asked where an object is missing.
    tell : callable
        Called with each object's size once it was read.
    index, partition
        Where findings say that they are.
    """

    store: ObjectStore
    findings: Findings
    is_named: Callable[[str], bool]
    tell: Callable[[int], None]
    index: str | None
    partition: int
    objects: int = field(default=0, init=False)
    size_bytes: int = field(default=0, init=False)

    def read(self, entry: ObjectEntry, start_offset: int | None = None, next_offset: int | None = None) -> bytes | None:
        """An object's bytes; None where there is a finding about them, which names the media offsets given.

        Raises
        ------
        SnapshotError
            It is gone and no longer named: compacted away meanwhile. Begin again with the newest manifest.
        """
        found = self.store.get(entry.key)
        self.objects += 1
        self.size_bytes += 0 if found is None else len(found.data)
        self.tell(entry.size_bytes)
        kind, what = "object_missing", "the manifest names it, the store does not have it"
        if found is not None:
            damage = describe_damage(found.data, entry)
            if damage is None:
                return found.data
            kind, what = "object_damaged", damage
        elif not self.is_named(entry.key):
            raise SnapshotError(f"object {entry.key} is gone", hint="take the newest manifest")
        self.findings.add(Finding(kind, what, self.index, self.partition, entry.key, start_offset, next_offset))
        return None


def describe_damage(data: bytes, entry: ObjectEntry) -> str | None:
    """How an object's bytes differ from its entry, with the chunks that do where the entry has digests of them; None where they do not."""
    if len(data) != entry.size_bytes:
        return f"{len(data)} bytes, the manifest says {entry.size_bytes}"
    if hashlib.sha256(data).hexdigest() != entry.sha256:
        return f"sha256 differs from the manifest's{_chunks(data, entry)}"
    return None if chunk_hashes(data) == entry.chunks_sha256 else "the manifest's chunk digests are not those of the object, its sha256 is"


def _chunks(data: bytes, entry: ObjectEntry) -> str:
    if not entry.chunks_sha256:
        return ""
    said, found = base64.b64decode(entry.chunks_sha256), base64.b64decode(chunk_hashes(data))
    chunks = [at // 32 for at in range(0, len(found), 32) if said[at : at + 32] != found[at : at + 32]]
    named = ", ".join(map(str, chunks[:10])) + (" and more" if len(chunks) > 10 else "")
    return f" in chunk {named} of {CHUNK_BYTES} bytes" if chunks else ""
