"""A manifest chain under several committers, readers and a collector, as a state machine: whatever they do in between each other's requests.

Beside the simulation: hypothesis shrinks what it finds to the fewest steps, and collects manifests from under everybody, which needs no other role.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from unittest import mock

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from ulid import ULID

from backends.catalog.manifests import ManifestChain
from backends.memory_store import MemoryStore
from contracts.clock import ManualClock
from contracts.errors import FencedError, SnapshotError, UnavailableError
from contracts.manifest import Checkpoint, Manifest, ReadManifest, object_version
from contracts.object_keys import CollectionKeys
from contracts.store import PutOutcome
from indexer.commit import Committer
from tests.examples import examples
from tests.indexer.origins import origin

KEYS = CollectionKeys("feed", str(ULID())).index("main").partition(0)
ANSWERS = ("created", "lost", "not stored", "late", "conflict", "met itself")
GIVES_UP = ["not stored"] * 9 + ["late"]
"""Taken from the end: the first put lands later, and its sender stops asking."""
INPUT = "compactor-0"


class InterruptedStore(MemoryStore):
    """Puts of manifests end as told, and something else happens just before each; `history` is the first body of each number."""

    def __init__(self) -> None:
        super().__init__()
        self.answers: list[str] = []
        self.meanwhile: list[Callable[[], None]] = []
        self.late: list[tuple[str, bytes]] = []
        self.history: dict[int, bytes] = {}

    def put_if_absent(self, key: str, data: bytes) -> PutOutcome:
        if not key.startswith(KEYS.manifests_prefix):
            return super().put_if_absent(key, data)
        if self.meanwhile:
            self.meanwhile.pop()()
        answer = self.answers.pop() if self.answers else "created"
        if answer == "late":
            self.late.append((key, data))
        if answer in ("not stored", "late"):
            return PutOutcome.UNKNOWN
        if answer == "conflict":
            return PutOutcome.CONFLICT
        outcome = self.create(key, data)
        return outcome if answer == "created" else PutOutcome.UNKNOWN if answer == "lost" else PutOutcome.EXISTS

    def create(self, key: str, data: bytes) -> PutOutcome:
        outcome = super().put_if_absent(key, data)
        if outcome is PutOutcome.CREATED:
            self.history.setdefault(object_version(key), data)
        return outcome


@dataclass
class Writer:
    """A committer and what it believes: `mine` is its checkpoint while it holds a claim, `open` a commit whose outcome it does not know."""

    committer: Committer[Manifest]
    mine: Checkpoint | None = None
    open: tuple[str, Checkpoint, str] | None = None

    def change(self, manifest: Manifest) -> dict[str, Any]:
        """A builder moves the checkpoint; a compactor replaces one input, here a name in `published`, and looks whether it is still there."""
        assert self.open is not None
        commit_id, to, replaced = self.open
        if self.committer.role == "builder":
            return {"checkpoint": to}
        if manifest.published.get(INPUT, "") != replaced:
            raise SnapshotError("an input of the compaction was compacted away", hint="take the newest manifest")
        return {"published": {**manifest.published, INPUT: commit_id}}


class ChainMachine(RuleBasedStateMachine):
    """Two builders, a compactor, two readers, a collector."""

    def __init__(self) -> None:
        super().__init__()
        self.sleep = mock.patch("backends.catalog.manifests.time.sleep")
        self.sleep.start()
        self.store = InterruptedStore()
        first = origin(KEYS)
        self.store.put_if_absent(KEYS.manifest(1), first.to_bytes())
        self.chain = ManifestChain(self.store, KEYS)
        self.writers = [Writer(self._committer(f"w{n}", role)) for n, role in enumerate(("builder", "builder", "compactor"))]
        self.readers: list[ReadManifest] = [self._head(), self._head()]
        self.claimed: list[tuple[str, int]] = []
        self.committed: list[str] = []

    def teardown(self) -> None:
        self.sleep.stop()

    def _committer(self, name: str, role: str) -> Committer[Manifest]:
        return Committer(ManifestChain(self.store, KEYS), role, name, ManualClock(), lambda: None)

    def _head(self) -> ReadManifest:
        read = self.chain.head()
        assert read is not None
        return read

    # ---- what somebody does, alone or just before another one's put ------------------------------------------------
    def claim(self, number: int) -> None:
        writer = self.writers[number]
        try:
            manifest = writer.committer.claim().manifest
        except UnavailableError:
            return
        self._is_history(manifest)
        self.claimed.append((writer.committer.role, writer.committer.epoch))
        writer.mine, writer.open = manifest.checkpoint, None

    def commit(self, number: int) -> None:
        writer = self.writers[number]
        if writer.mine is None:
            return
        moves = writer.committer.role == "builder"
        step = Checkpoint(vectors_offset=writer.mine.vectors_offset + 1, media_offset=writer.mine.media_offset + 1)
        if writer.open is None:
            writer.open = str(ULID()), step, self._head().manifest.published.get(INPUT, "")
        commit_id, to, _ = writer.open
        try:
            read = writer.committer.commit(writer.mine if moves else None, writer.change, commit_id)
        except (FencedError, SnapshotError):
            landed = commit_id in {ReadManifest.parse(Manifest, data, "history").manifest.commit_id for data in self.store.history.values()}
            assert not landed or self.chain.boundary(), "its own commit is not recognised"
            writer.mine = writer.open = None
            return
        except UnavailableError:
            return
        self._is_history(read.manifest)
        self.committed.append(commit_id)
        writer.mine, writer.open = to if moves else writer.mine, None

    def collect(self, keep: int) -> None:
        """Advance the boundary, then delete what is below it."""
        newest = max(object_version(info.key) for info in self.store.list(KEYS.manifests_prefix))
        boundary = self.store.get(KEYS.boundary)
        last = newest - keep
        if last > (0 if boundary is None else int(boundary.data)):
            self.store.compare_and_swap(KEYS.boundary, str(last).encode(), None if boundary is None else boundary.etag)
        for version in range(1, last + 1):
            self.store.delete(KEYS.manifest(version))

    def _is_history(self, manifest: Manifest) -> None:
        assert self.store.history[manifest.version] == manifest.to_bytes(), f"version {manifest.version} is believed to be another one"

    # ---- rules -------------------------------------------------------------------------------------------------------
    @rule(
        number=st.integers(0, 2),
        answers=st.lists(st.sampled_from(ANSWERS), max_size=3) | st.just(GIVES_UP),
        other=st.integers(0, 2),
        what=st.sampled_from("-cmg"),
    )
    def writes(self, number: int, answers: list[str], other: int, what: str) -> None:
        """Claim where nothing is held, else commit; just before the put somebody else claims, commits or collects."""
        happens = {"c": lambda: self.claim(other), "m": lambda: self.commit(other), "g": lambda: self.collect(1)}.get(what)
        self.store.meanwhile = [happens] if happens is not None and other != number else []
        self.store.answers = list(answers)
        (self.claim if self.writers[number].mine is None else self.commit)(number)
        self.store.meanwhile, self.store.answers = [], []

    @rule(number=st.integers(0, 2))
    def starts_again(self, number: int) -> None:
        """A process that knows nothing takes the place of a writer, which may sleep in the middle of a commit for ever."""
        role = self.writers[number].committer.role
        self.writers[number] = Writer(self._committer(f"w{ULID()}", role))

    @rule(keep=st.integers(1, 3))
    def collects(self, keep: int) -> None:
        self.collect(keep)

    @precondition(lambda self: self.store.late)
    @rule()
    def something_late_lands(self) -> None:
        self.store.create(*self.store.late.pop(0))

    @rule(number=st.integers(0, 1))
    def reads(self, number: int) -> None:
        """A reader goes on from what it has; below the boundary it starts from a listing."""
        before = self.readers[number]
        try:
            read = self.chain.follow(before)
        except SnapshotError:
            read = self._head()
        assert read.manifest.version >= before.manifest.version
        self._is_history(read.manifest)
        self.readers[number] = read

    # ---- what always holds -------------------------------------------------------------------------------------------
    @invariant()
    def history_is_one_line(self) -> None:
        manifests = [ReadManifest.parse(Manifest, self.store.history[version], "history") for version in sorted(self.store.history)]
        assert [read.manifest.version for read in manifests] == list(range(1, len(manifests) + 1))
        for before, after in zip(manifests, manifests[1:], strict=False):
            previous = after.manifest.previous
            assert previous is not None and previous.sha256 == before.sha256
            moved = after.manifest.checkpoint.media_offset - before.manifest.checkpoint.media_offset
            assert moved in (0, 1), "a commit that does not begin at the checkpoint"
        ids = [read.manifest.commit_id for read in manifests]
        assert len(set(ids)) == len(ids), "a commit landed twice"
        assert set(self.committed) <= set(ids) and len(set(self.committed)) == len(self.committed)

    @invariant()
    def nobody_shares_a_claim(self) -> None:
        assert len(set(self.claimed)) == len(self.claimed)


TestChain = ChainMachine.TestCase
TestChain.settings = settings(max_examples=examples(60), stateful_step_count=30, deadline=None)
