"""The commit protocol against a store that answers badly: lost answers, late puts, races, collected numbers."""

import threading
from collections.abc import Callable

import pytest
from ulid import ULID

from backends.catalog.manifests import ManifestChain
from backends.memory_store import MemoryStore
from contracts.clock import ManualClock
from contracts.errors import FencedError, UnavailableError
from contracts.manifest import Checkpoint, Manifest
from contracts.object_keys import CollectionKeys
from contracts.store import PutOutcome
from indexer.commit import Committer
from tests.indexer.origins import origin

KEYS = CollectionKeys("feed", str(ULID())).index("main").partition(0)


class ScriptedStore(MemoryStore):
    """A memory store whose next conditional puts end as told: (is it stored, what is answered)."""

    def __init__(self) -> None:
        super().__init__()
        self.script: list[tuple[bool, PutOutcome]] = []
        self.puts: list[str] = []
        self.before_put: Callable[[str], None] = lambda key: None

    def put_if_absent(self, key: str, data: bytes) -> PutOutcome:
        self.puts.append(key)
        self.before_put(key)
        if not self.script:
            return super().put_if_absent(key, data)
        stored, answer = self.script.pop(0)
        if stored:
            super().put_if_absent(key, data)
        return answer


@pytest.fixture
def store() -> ScriptedStore:
    made = ScriptedStore()
    first = origin(KEYS)
    made.put_if_absent(KEYS.manifest(1), first.to_bytes())
    return made


def committer(store: ScriptedStore, conflicts: list[int] | None = None) -> Committer:
    return Committer(ManifestChain(store, KEYS), "builder", f"builder-{ULID()}", ManualClock(), lambda: (conflicts or []).append(1))


def at(media_offset: int) -> Checkpoint:
    return Checkpoint(vectors_offset=media_offset, media_offset=media_offset)


def to(media_offset: int):  # type: ignore[no-untyped-def]
    return lambda manifest: {"checkpoint": at(media_offset)}


def versions(store: ScriptedStore) -> list[int]:
    return [int(info.key[-25:-5]) for info in store.list(KEYS.manifests_prefix)]


def test_a_claim_raises_only_the_epoch_and_the_next_commit_follows_it(store: ScriptedStore) -> None:
    mine = committer(store)
    claimed = mine.claim().manifest
    assert (claimed.version, claimed.epochs.builder, claimed.checkpoint) == (2, 1, at(0))
    done = mine.commit(at(0), to(5), str(ULID())).manifest
    assert (done.version, done.checkpoint) == (3, at(5))
    assert done.previous is not None and done.previous.version == 2


@pytest.mark.parametrize("answer", [PutOutcome.UNKNOWN, PutOutcome.EXISTS, PutOutcome.CONFLICT])
def test_a_commit_that_landed_with_a_lost_answer_is_recognised_and_not_committed_twice(store: ScriptedStore, answer: PutOutcome) -> None:
    mine = committer(store)
    mine.claim()
    store.script = [(True, answer)]
    assert mine.commit(at(0), to(5), str(ULID())).manifest.version == 3
    assert versions(store) == [1, 2, 3]


def test_a_put_that_was_not_stored_is_sent_again_under_the_same_number(store: ScriptedStore) -> None:
    mine = committer(store)
    mine.claim()
    store.puts.clear()
    store.script = [(False, PutOutcome.UNKNOWN), (False, PutOutcome.CONFLICT)]
    mine.commit(at(0), to(5), str(ULID()))
    assert store.puts == [KEYS.manifest(3)] * 3


def test_after_an_outcome_that_stayed_unknown_the_same_commit_id_finds_its_own_commit(store: ScriptedStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("backends.catalog.manifests.time.sleep", lambda seconds: None)
    mine, commit_id = committer(store), str(ULID())
    mine.claim()
    store.script = [(False, PutOutcome.UNKNOWN)] * 10
    with pytest.raises(UnavailableError):
        mine.commit(at(0), to(5), commit_id)
    late = ManifestChain(store, KEYS).head()
    assert late is not None and late.manifest.version == 2
    store.put_if_absent(KEYS.manifest(3), late.next(commit_id=commit_id, checkpoint=at(5)).to_bytes())  # it lands later
    assert mine.commit(at(0), to(5), commit_id).manifest.version == 3
    assert versions(store) == [1, 2, 3]


def test_an_older_builder_is_fenced_by_a_newer_claim_and_writes_nothing(store: ScriptedStore) -> None:
    old, new = committer(store), committer(store)
    old.claim()
    new.claim()
    with pytest.raises(FencedError):
        old.commit(at(0), to(5), str(ULID()))
    assert versions(store) == [1, 2, 3]


def test_a_commit_whose_checkpoint_is_not_exactly_the_manifests_is_refused(store: ScriptedStore) -> None:
    mine = committer(store)
    mine.claim()
    mine.commit(at(0), to(5), str(ULID()))
    with pytest.raises(FencedError):
        mine.commit(at(0), to(7), str(ULID()))
    with pytest.raises(FencedError):
        mine.commit(at(6), to(7), str(ULID()))


def test_a_lost_race_against_another_role_is_computed_anew_on_the_winners_manifest(store: ScriptedStore) -> None:
    conflicts: list[int] = []
    mine, other = Committer(ManifestChain(store, KEYS), "builder", "b", ManualClock(), lambda: conflicts.append(1)), None
    mine.claim()
    other = Committer(ManifestChain(store, KEYS), "compactor", "m", ManualClock(), lambda: None)
    seen: list[int] = []

    def change(manifest: Manifest):  # type: ignore[no-untyped-def]
        seen.append(manifest.version)
        if len(seen) == 1:
            other.claim()  # between reading the head and the put
        return {"checkpoint": at(5)}

    done = mine.commit(at(0), change, str(ULID())).manifest
    assert seen == [2, 3] and done.version == 4 and done.epochs.compactor == 1 and conflicts == [1]


def test_a_number_at_or_below_the_gc_boundary_is_never_believed(store: ScriptedStore) -> None:
    """slatedb 352: a stalled writer re-creates a collected number and believes that it won."""
    mine, other = committer(store), None
    mine.claim()
    stalled: list[str] = []

    def collect(key: str) -> None:
        if key == KEYS.manifest(3) and not stalled:
            stalled.append(key)
            nonlocal other
            other = Committer(ManifestChain(store, KEYS), "compactor", "m", ManualClock(), lambda: None)
            other.claim()  # version 3 by someone else ...
            other.claim()
            store.compare_and_swap(KEYS.boundary, b"3", None)
            for version in (1, 2, 3):
                store.delete(KEYS.manifest(version))  # ... and collected, before our put arrives

    store.before_put = collect
    done = mine.commit(at(0), to(5), str(ULID())).manifest
    assert done.version == 5 and done.epochs.compactor == 2


def test_of_many_claimants_at_once_all_win_one_after_the_other(store: ScriptedStore) -> None:
    done: list[int] = []

    def claim() -> None:
        done.append(Committer(ManifestChain(store, KEYS), "builder", str(ULID()), ManualClock(), lambda: None).claim().manifest.epochs.builder)

    threads = [threading.Thread(target=claim) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert sorted(done) == list(range(1, 9))


def test_the_published_map_names_the_newest_claim_of_each_role(store: ScriptedStore) -> None:
    mine, other = committer(store), Committer(ManifestChain(store, KEYS), "compactor", "m", ManualClock(), lambda: None)
    mine.claim()
    other.claim()
    first, second = sorted(str(ULID()) for _ in range(2))
    published = other.published(mine.published({"builder-0": first}, first), first)
    assert published == {"builder-1": first, "compactor-1": first}
    mine.claim()
    assert mine.published(published, second) == {"builder-2": second, "compactor-1": first}


def test_a_look_gives_the_newest_manifest_and_goes_on_from_there(store: ScriptedStore) -> None:
    mine, other = committer(store), committer(store)
    mine.claim()
    assert mine.look().manifest.version == 2
    other.claim()
    assert mine.look().manifest.version == mine.look().manifest.version == 3
