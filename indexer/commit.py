"""The manifest commit (DESIGN section 4; docs/formats/manifest.md; the spec is the protocol model's `commit`).

    walk to the head -> ours already? -> claim and checkpoint still mine? -> make the next manifest -> put-if-absent -> settle -> GC boundary

Takes: what a commit changes, as a function of the manifest it extends. Gives: the committed manifest. Owns: claims, conflicts, unknown outcomes.
Never: cleans up after an unknown outcome; claims an epoch back in a loop.
"""

from __future__ import annotations

import logging
import random
import threading
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any, Generic

from ulid import ULID

from backends.catalog.manifests import VersionChain
from contracts.clock import Clock
from contracts.collection import StoredModel
from contracts.errors import FencedError, SnapshotError
from contracts.manifest import Chained, ReadVersion

logger = logging.getLogger(__name__)


class Committer(Generic[Chained]):
    """Commits to one partition's manifest chain under one claim.

    Parameters
    ----------
    chain : VersionChain
        The partition's chain, of an index or of the archive.
    role : str
        Whose epoch the claim raises: a field of the manifest's `epochs`.
    writer : str
        Name of this writer in the manifest, unique per process and partition.
    clock : Clock
        For `committed_at`, which is told to people and never compared.
    on_conflict : callable
        Called at each lost race.
    """

    def __init__(self, chain: VersionChain[Chained], role: str, writer: str, clock: Clock, on_conflict: Callable[[], None]) -> None:
        self.chain, self.role, self.writer, self.clock, self.on_conflict = chain, role, writer, clock, on_conflict
        self.epoch = 0
        self._base: ReadVersion[Chained] | None = None

    def claim(self) -> ReadVersion[Chained]:
        """Raise the role's epoch by one: every older writer of the role is fenced from now on.

        Raises
        ------
        UnavailableError
            The outcome is unknown; call again.
        """

        def raise_epoch(manifest: Chained) -> Mapping[str, Any]:
            return {"epochs": manifest.epochs.model_copy(update={self.role: self._epoch_in(manifest) + 1})}

        done = self._commit(raise_epoch, lambda manifest: None, str(ULID()))
        self.epoch = self._epoch_in(done.manifest)
        return done

    def commit(self, mine: StoredModel | None, change: Callable[[Chained], Mapping[str, Any]], commit_id: str) -> ReadVersion[Chained]:
        """Commit `change` on top of a manifest whose checkpoint is exactly `mine` and whose epoch is this claim's.

        Parameters
        ----------
        mine : StoredModel or None
            Checkpoint at which this writer's work begins; exact equality, since a gap here would be silent loss. None for a role that moves no
            checkpoint; its `change` validates its own inputs.
        change : callable
            Fields of the next manifest, computed anew for each manifest that is tried (delete bits depend on it).
        commit_id : str
            ULID of this logical commit. Call again with the same one after an `UnavailableError`: what landed is recognised by it.

        Raises
        ------
        FencedError
            A newer writer claimed the partition, or did this work.
        UnavailableError
            The outcome is unknown: keep every object, call again.
        """

        def check(manifest: Chained) -> None:
            if self._epoch_in(manifest) != self.epoch:
                raise FencedError(
                    f"{self.chain.keys.prefix}: a newer {self.role} (epoch {self._epoch_in(manifest)}) owns this partition",
                    hint="nothing to do: this process lets go of the partition",
                )
            if mine is not None and manifest.checkpoint != mine:
                raise FencedError(f"{self.chain.keys.prefix}: the checkpoint moved to {manifest.checkpoint} from {mine}", hint="nothing to do")

        return self._commit(change, check, commit_id)

    @property
    def claim_name(self) -> str:
        """Name of this claim in the manifest's `published`."""
        return f"{self.role}-{self.epoch}"

    def published(self, published: Mapping[str, str], ulid: str) -> dict[str, str]:
        """The manifest's newest published ULID per claim, this one included; older claims of the role are judged by their epoch alone."""
        others = {name: newest for name, newest in published.items() if not name.startswith(f"{self.role}-")}
        return {**others, self.claim_name: ulid}

    def look(self) -> ReadVersion[Chained]:
        """The newest manifest, two requests where nothing was committed since the last look.

        Raises
        ------
        UnavailableError
            The store does not answer.
        """
        self._base = self._walk("")[0]
        return self._base

    def _epoch_in(self, manifest: Chained) -> int:
        return int(getattr(manifest.epochs, self.role))

    def _commit(self, change: Callable[[Chained], Mapping[str, Any]], check: Callable[[Chained], None], commit_id: str) -> ReadVersion[Chained]:
        attempt = 0
        while True:
            head, done = self._walk(commit_id)
            if done is not None:
                self._base = head
                return done
            check(head.manifest)
            manifest = head.next(
                **{"commit_id": commit_id, "writer": self.writer, "committed_at": self._now(), **change(head.manifest)},
            )
            created = self.chain.create(manifest)
            if created is not None:
                self._base = created
                return created
            self.on_conflict()
            attempt += 1
            self.clock.wait(threading.Event(), random.uniform(0, min(0.02 * 2**attempt, 1.0)))

    def _walk(self, commit_id: str) -> tuple[ReadVersion[Chained], ReadVersion[Chained] | None]:
        """The head, and the manifest on the way to it that already carries `commit_id` (our own, its answer lost)."""
        read = self._base or self._newest()
        found: ReadVersion[Chained] | None = read if read.manifest.commit_id == commit_id else None
        while True:
            try:
                following = self.chain.next(read)
            except SnapshotError:
                following = self._newest()  # collected under us: an own commit down there is seen by its checkpoint
                if following.manifest.version <= read.manifest.version:
                    return read, found
            if following is None:
                return read, found
            read = following
            found = read if read.manifest.commit_id == commit_id else found

    def _newest(self) -> ReadVersion[Chained]:
        read = self.chain.head()
        if read is None:
            raise SnapshotError(f"{self.chain.keys.prefix} has no manifest", hint="create the collection again")
        return read

    def _now(self) -> str:
        return datetime.fromtimestamp(self.clock.now_seconds(), UTC).isoformat(timespec="milliseconds")
