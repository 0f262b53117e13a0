"""Garbage collection of one partition (DESIGN section 4, GC; ADR 0010). Read `collect` first: its order of steps is what makes it safe.

    list objects -> newest manifest -> raise the boundary -> pins -> read what is kept -> delete what is dead -> delete old manifests

Takes: a partition's objects. Gives: what was deleted, what waits, and up to where the vectors topic is no longer needed.
Owns: the proof that an object is dead. Never: deletes by age alone; holds a claim, since two collectors at once do no harm.

An object that no kept manifest names is dead when no writer can name it any more. The newest manifest was read after the objects were listed, and:

- its role's epoch is above the one in the key: that writer is fenced;
- or the key is of the newest claim, and its ULID is not above the one that this claim has published: a writer publishes in the order of its ULIDs.
  A kept age on top leaves it to readers of a manifest that has just been replaced.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from backends.catalog.archive import ArchiveChain
from backends.catalog.manifests import ManifestChain, VersionChain
from backends.catalog.pins import read_pins
from contracts.clock import Clock
from contracts.errors import SnapshotError
from contracts.manifest import Manifest, object_version
from contracts.object_keys import ParsedKey, parse_key
from contracts.store import ObjectInfo
from indexer.archive_sweep import sweep_dead_tars

CLAIMS = {"b": "builder", "m": "compactor"}
"""Role of a claim by the letter in its keys."""


@dataclass(slots=True)
class Collected:
    """What a collection did: objects deleted by kind, and how many unreferenced ones wait.

    `vectors_offset` is where the oldest kept manifest's checkpoint stands: no reader starts below it.
    """

    deleted: dict[str, int] = field(default_factory=dict)
    waiting: int = 0
    vectors_offset: int = 0


class PartitionCollector:
    """Collects the garbage of one partition of one index.

    Parameters
    ----------
    chain : ManifestChain
        The partition's chain.
    clock : Clock
        Compared with the store's times of creation.
    keep_seconds : float
        How long a replaced manifest is kept.
    """

    def __init__(self, chain: ManifestChain, clock: Clock, keep_seconds: float) -> None:
        self.chain, self.store, self.clock, self.keep_seconds = chain, chain.store, clock, keep_seconds
        self._kept: dict[int, Manifest] = {}

    def collect(self) -> Collected:
        """Delete what is dead.

        Raises
        ------
        SnapshotError
            Another collector was faster: look again later.
        UnavailableError
            The store does not answer, or the boundary's outcome is unknown: nothing was deleted after that.
        """
        listed = [(info, parsed) for info in self.store.list(self.chain.keys.prefix) if (parsed := parse_key(info.key)) is not None]
        read = self.chain.head()  # after the listing: whatever was committed since is in it
        if read is None:
            raise SnapshotError(f"{self.chain.keys.prefix} has no manifest", hint="was the collection deleted?")
        head, now_seconds = read.manifest, self.clock.now_seconds()
        born = {int(parsed.fields["version"]): info.modified_seconds for info, parsed in listed if parsed.kind == "manifest"}
        boundary = raise_boundary(self.chain, born, head.version, now_seconds - self.keep_seconds)
        if boundary >= head.version:
            raise SnapshotError(f"{self.chain.keys.prefix}: version {head.version} is gone", hint="another collector is at work")
        pinned, ended = read_pins(self.store, self.chain.keys, now_seconds)  # after the boundary: a later pin sees it
        kept = self._read_kept(boundary, head, pinned)
        named = {key for manifest in kept.values() for key in named_by(manifest)}
        done = Collected(vectors_offset=kept[boundary + 1].checkpoint.vectors_offset)
        unnamed = [(info, parsed) for info, parsed in listed if parsed.kind == "part" and info.key not in named]
        dead = [info.key for info, parsed in unnamed if is_dead(parsed, info, head, now_seconds - self.keep_seconds)]
        done.waiting = len(unnamed) - len(dead)
        self._delete("part", dead, done)
        self._delete("pin", ended, done)
        versions = [(int(parsed.fields["version"]), info.key) for info, parsed in listed if parsed.kind == "manifest"]
        self._delete("manifest", [key for version, key in versions if version <= boundary and version not in pinned], done)
        return done

    def _read_kept(self, boundary: int, head: Manifest, pinned: set[int]) -> Mapping[int, Manifest]:
        """Manifests above the boundary and pinned ones, by version."""
        versions = {*range(boundary + 1, head.version + 1)}
        for version in (versions | pinned) - self._kept.keys():
            read = self.chain.read(version)
            if read is not None:
                self._kept[version] = read.manifest
            elif version in versions:
                raise SnapshotError(f"{self.chain.keys.prefix}: version {version} is gone", hint="another collector is at work")
        self._kept = {version: manifest for version, manifest in self._kept.items() if version in versions | pinned}
        return self._kept

    def _delete(self, kind: str, keys: Iterable[str], done: Collected) -> None:
        for key in keys:
            self.store.delete(key)
            done.deleted[kind] = done.deleted.get(kind, 0) + 1


def raise_boundary(chain: VersionChain[Any], born: Mapping[int, float], head_version: int, since_seconds: float) -> int:
    """Raise the boundary to the newest version that was replaced by then, never to the newest one; `born` are times of creation by version."""
    old = [version - 1 for version, seconds in born.items() if version <= head_version and seconds <= since_seconds]
    current = chain.boundary()
    wanted = min(max(old, default=0), head_version - 1)
    return chain.advance_boundary(wanted) if wanted > current else current


def collect_archive(chain: ArchiveChain, clock: Clock, keep_seconds: float) -> dict[str, int]:
    """Delete old manifests of one partition's archive, and tars of fenced claims; returns how many of each. Raises as `collect`."""
    listed = {object_version(info.key): info for info in chain.store.list(chain.keys.manifests_prefix)}
    read = chain.head()
    if read is None:
        return {}
    born = {version: info.modified_seconds for version, info in listed.items()}
    boundary = raise_boundary(chain, born, read.manifest.version, clock.now_seconds() - keep_seconds)
    old = [info.key for version, info in listed.items() if version <= boundary]
    for key in old:
        chain.store.delete(key)
    return {"archive_manifest": len(old), "archive_tar": sweep_dead_tars(chain.store, chain, read.manifest)}


def is_dead(parsed: ParsedKey, info: ObjectInfo, head: Manifest, kept_since_seconds: float) -> bool:
    """Whether no writer can name an unreferenced part any more, by its key and the newest manifest."""
    role, epoch, ulid = CLAIMS[parsed.fields["role"]], int(parsed.fields["epoch"]), parsed.fields["ulid"]
    newest = int(getattr(head.epochs, role))
    if epoch != newest:
        return epoch < newest
    return info.modified_seconds <= kept_since_seconds and ulid <= head.published.get(f"{role}-{epoch}", "")


def named_by(manifest: Manifest) -> list[str]:
    """Keys of all objects that a manifest names."""
    parts = [entry.key for segment in manifest.segments for entry in segment.parts.values()]
    return [*parts, *(entry.key for entry in manifest.deletes), *(entry.object.key for entry in manifest.ledger)]
