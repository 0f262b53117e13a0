"""The archive's manifest: which tars hold a partition's media offsets, one object per version (docs/formats/archive.md).

It is a chain like an index's (`contracts.manifest`), but belongs to the collection: an archive outlives every index.

Takes: what a commit changes. Gives: frozen manifests and their canonical bytes. Owns: the fields and their limits.
Never: lists single records (each tar's own index does), or loses an offset silently: what retention took is in `lost`.
"""

from __future__ import annotations

from bisect import bisect_right
from typing import Annotated

from pydantic import Field, StringConstraints, model_validator

from contracts.collection import StoredModel, Ulid
from contracts.manifest import ChainedModel, Interval, Key, Offset, Sha256

IdHash = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{32}$")]


class ArchiveEpochs(StoredModel):
    """Claims: each commit of a role must hold the newest epoch of that role."""

    archiver: int = Field(0, ge=0)
    purge: int = Field(0, ge=0)


class ArchiveCheckpoint(StoredModel):
    """Where the archive stands: the first media offset that is not archived."""

    media_offset: Offset


class TarEntry(Interval):
    """A tar and the media offsets that it speaks for; an offset of them without a record in its index is a gap."""

    key: Key
    size_bytes: int = Field(ge=0)
    sha256: Sha256
    records: int = Field(ge=0)
    index_start: int = Field(ge=0)
    index_bytes: int = Field(ge=0)
    index_sha256: Sha256

    @model_validator(mode="after")
    def _holds_its_index(self) -> TarEntry:
        if self.index_start + self.index_bytes > self.size_bytes:
            raise ValueError("the index lies outside the tar")
        return self


class PendingPurge(StoredModel):
    """An id whose records below an offset must not be archived any more; kept until the archive has passed that offset."""

    id_hash: IdHash
    below_offset: Offset


class ArchiveManifest(ChainedModel):
    """One version of one partition's archive."""

    origin_offset: Offset
    checkpoint: ArchiveCheckpoint
    epochs: ArchiveEpochs = ArchiveEpochs()
    published: dict[str, Ulid] = {}
    tars: tuple[TarEntry, ...] = ()
    lost: tuple[Interval, ...] = ()
    purges: tuple[PendingPurge, ...] = ()
    condemned: tuple[Key, ...] = ()

    @model_validator(mode="after")
    def _rises(self) -> ArchiveManifest:
        """Tars and lost intervals rise, do not overlap, and end at or below the checkpoint."""
        for entries in (self.tars, self.lost):
            for before, after in zip(entries, entries[1:], strict=False):
                if after.start_offset < before.next_offset:
                    raise ValueError(f"offset {after.start_offset} comes twice")
            if entries and entries[-1].next_offset > self.checkpoint.media_offset:
                raise ValueError(f"offset {entries[-1].next_offset} lies behind the checkpoint")
        return self

    def tar_of(self, offset: int) -> TarEntry | None:
        """The tar that speaks for a media offset, or None."""
        at = bisect_right(self.tars, offset, key=lambda tar: tar.start_offset) - 1
        return self.tars[at] if at >= 0 and offset < self.tars[at].next_offset else None

    def is_lost(self, offset: int) -> bool:
        """True when retention took the offset before it was archived."""
        at = bisect_right(self.lost, offset, key=lambda run: run.start_offset) - 1
        return at >= 0 and offset < self.lost[at].next_offset

    def holds(self, offset: int) -> bool:
        """True where the archive says what lay at the offset, be it nothing."""
        return self.origin_offset <= offset < self.checkpoint.media_offset and not self.is_lost(offset)

    def gap_end(self, offset: int) -> int:
        """The next offset for which a tar speaks, or that is lost, or the checkpoint."""
        starts = (entry.start_offset for entry in (*self.tars, *self.lost) if entry.start_offset > offset)
        return min(starts, default=self.checkpoint.media_offset)

    def held_from(self, next_offset: int) -> int:
        """First offset from which on nothing is missing up to `next_offset`; that itself where the archive holds nothing before it."""
        if self.checkpoint.media_offset < next_offset:
            return next_offset
        lost = (run.next_offset for run in self.lost if run.start_offset < next_offset)
        return min(next_offset, max((self.origin_offset, *lost)))

    @property
    def records(self) -> int:
        """Records in all tars."""
        return sum(tar.records for tar in self.tars)

    @property
    def size_bytes(self) -> int:
        """Bytes of all tars."""
        return sum(tar.size_bytes for tar in self.tars)
