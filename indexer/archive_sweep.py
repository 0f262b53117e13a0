"""Deleting tars that no manifest will ever name: those that a purge replaced, and those that a writer left when it died before its commit.

Takes: a chain under a claim. Gives: the manifest after the clean-up. Owns: the proof that a tar is dead.
Never: deletes what the newest manifest names, or what a living claim may still commit.
"""

from __future__ import annotations

import logging

from ulid import ULID

from backends.catalog.archive import ArchiveChain
from contracts.archive_manifest import ArchiveManifest
from contracts.manifest import ReadVersion
from contracts.object_keys import parse_key
from contracts.store import ObjectStore
from indexer.commit import Committer

logger = logging.getLogger(__name__)


def delete_condemned(store: ObjectStore, committer: Committer[ArchiveManifest], read: ReadVersion[ArchiveManifest]) -> ReadVersion[ArchiveManifest]:
    """Delete the tars that purges replaced, then commit that they are gone; a purge that was killed before is finished by this."""
    gone = read.manifest.condemned
    if not gone:
        return read
    for key in gone:
        store.delete(key)
    return committer.commit(None, lambda manifest: {"condemned": tuple(key for key in manifest.condemned if key not in gone)}, str(ULID()))


def condemn_unnamed(
    store: ObjectStore, chain: ArchiveChain, committer: Committer[ArchiveManifest], read: ReadVersion[ArchiveManifest]
) -> ReadVersion[ArchiveManifest]:
    """Condemn every tar that no manifest names, also one that a living archiver is about to commit: it uploads it again, under another key."""
    found = {info.key for info in store.list(chain.keys.prefix) if (parsed := parse_key(info.key)) is not None and parsed.kind == "archive_tar"}

    def unnamed(manifest: ArchiveManifest) -> tuple[str, ...]:
        return tuple(sorted(found - {tar.key for tar in manifest.tars} - set(manifest.condemned)))

    if not unnamed(read.manifest):
        return read
    return committer.commit(None, lambda manifest: {"condemned": (*manifest.condemned, *unnamed(manifest))}, str(ULID()))


def sweep_dead_tars(store: ObjectStore, chain: ArchiveChain, manifest: ArchiveManifest) -> int:
    """Delete tars of fenced claims that `manifest` does not name; returns how many.

    A writer commits only while the newest manifest holds its epoch, and `manifest` holds a higher one: its tar can no longer be committed.
    """
    named = {tar.key for tar in manifest.tars}
    current = {"b": manifest.epochs.archiver, "m": manifest.epochs.purge}
    dead = []
    for info in store.list(chain.keys.prefix):
        parsed = parse_key(info.key)
        if parsed is None or parsed.kind != "archive_tar" or info.key in named:
            continue
        if int(parsed.fields["epoch"]) < current[parsed.fields["role"]]:
            dead.append(info.key)
    for key in dead:
        store.delete(key)
    if dead:
        logger.info("deleted tars that were never committed", extra={"prefix": chain.keys.prefix, "tars": len(dead)})
    return len(dead)
