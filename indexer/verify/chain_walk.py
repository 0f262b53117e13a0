"""Walks a chain of manifests from the boundary to the head, and judges every step.

Takes: a chain. Gives: its newest version, and the keys that kept versions name. Owns: what may be missing because it was collected meanwhile.
Never: stops at a fault: what is behind it is looked at too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Generic

from backends.catalog.manifests import VersionChain
from contracts.errors import CorruptError
from contracts.manifest import Chained, ReadVersion, object_version
from indexer.verify.chain_check import Link, broken_links, check_step
from indexer.verify.findings import Finding, Findings


@dataclass
class Walked(Generic[Chained]):
    """A walked chain: its newest readable version, how many versions were read, and every object key that one of them names."""

    head: ReadVersion[Chained] | None = None
    versions: int = 0
    named: set[str] = field(default_factory=set)

    @property
    def last_version(self) -> int:
        """Number of the newest readable version, 0 where there is none."""
        return 0 if self.head is None else self.head.manifest.version


def walk_chain(chain: VersionChain[Chained], keys_of: Callable[[Chained], Iterator[str]], findings: Findings, index: str | None) -> Walked[Chained]:
    """Read every kept version of a chain.

    Parameters
    ----------
    chain : VersionChain
        Of an index's partition, or of an archive's.
    keys_of : callable
        Object keys that a version names.
    findings : Findings
        Takes what is wrong.
    index : str or None
        Which index findings name; None for the archive.
    """
    walk = _Walk(chain, keys_of, findings, index)
    try:
        boundary = chain.boundary()
    except CorruptError:
        walk.tell("manifest_unreadable", "the boundary is no number", chain.keys.boundary)
        boundary = 0
    versions = [version for info in chain.store.list(chain.keys.manifests_prefix) if (version := object_version(info.key)) > boundary]
    for version in range(boundary + 1, max(versions, default=boundary) + 1):
        walk.step(version)
    walk.finish()
    return walk.walked


class _Walk(Generic[Chained]):
    def __init__(self, chain: VersionChain[Chained], keys_of: Callable[[Chained], Iterator[str]], findings: Findings, index: str | None) -> None:
        self.chain, self.keys_of, self.findings, self.index = chain, keys_of, findings, index
        self.walked: Walked[Chained] = Walked()
        self.links: list[Link | None] = []
        self.last: Chained | None = None

    def tell(self, kind: str, what: str, key: str) -> None:
        self.findings.add(Finding(kind, what, index=self.index, partition=self.chain.keys.partition, object=key))

    def _is_collected(self, version: int) -> bool:
        """Whether the boundary has passed a version since the walk began; one that is no number says nothing."""
        try:
            return version <= self.chain.boundary()
        except CorruptError:
            return False

    def step(self, version: int) -> None:
        key = self.chain.keys.manifest(version)
        found = self.chain.store.get(key)
        if found is None:
            if not self._is_collected(version):
                self.tell("manifest_missing", f"version {version} is not in the store, later ones are", key)
            self.links.append(None)
            return
        try:
            read = ReadVersion.parse(self.chain.model, found.data, key)
        except CorruptError as error:
            self.tell("manifest_unreadable", error.message.removeprefix(f"{key}: "), key)
            self.links.append(None)
            return
        manifest = read.manifest
        if (manifest.version, manifest.partition) != (version, self.chain.keys.partition):
            self.tell("manifest_unreadable", f"it says that it is version {manifest.version} of partition {manifest.partition}", key)
        elif manifest.to_bytes() != found.data:
            self.tell("manifest_unreadable", "not as a writer writes it (canonical JSON): it was edited", key)
        previous = None if manifest.previous is None else (manifest.previous.version, manifest.previous.sha256)
        self.links.append(Link(key, version, read.sha256, previous))
        if self.last is not None:
            self.findings.extend(check_step(self.last, manifest, key, self.index))
        self._take(read)

    def _take(self, read: ReadVersion[Chained]) -> None:
        walked = self.walked
        self.last = read.manifest
        walked.head = read
        walked.versions += 1
        walked.named.update(self.keys_of(read.manifest))

    def finish(self) -> None:
        if self.links and self.links[0] is not None and self.links[0].version == 1 and self.links[0].names is not None:
            self.tell("manifest_replaced", "version 1 names a version before it", self.links[0].key)
        for key, what in broken_links(self.links):
            self.tell("manifest_replaced", what, key)
