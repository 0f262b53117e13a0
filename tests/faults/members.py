"""Faults 11, 12, 13, 30, 40, 41, 42 and 46: who owns a partition, zombies that wake up, races, and a reader that stands still."""

from __future__ import annotations

import itertools
import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from backends.catalog.manifests import ManifestChain
from contracts.errors import HeadwaterError
from contracts.manifest import Manifest
from contracts.object_keys import CollectionKeys
from tests.faults.checker import again
from tests.faults.load import DIMENSION
from tests.faults.trial import Trial, Variant
from tests.system.processes import Process, until

PARTS = "tests.faults.odd_parts"
SHORT = f"{PARTS}:short_sessions"
FENCED = "letting go of partition"
STORM_SECONDS = 16.0


def zombie(trial: Trial, role: str, point: str) -> tuple[Process, Process]:
    """A role that stops itself at a point, and another one that took its partitions after its session was over; the first still sleeps."""
    sleeper = trial.start(role, label=f"{role}-sleeper", is_static=False, parts=[SHORT], crash=[f"{point}=stop"])
    trial.wait_stopped(sleeper)
    heir = trial.start(role, label=f"{role}-heir", is_static=False, parts=[SHORT])
    return sleeper, heir


def heads(trial: Trial) -> dict[int, Manifest]:
    """The newest manifest of every partition."""
    keys = CollectionKeys(trial.record.name, trial.record.incarnation).index("main")
    found = {p: again(ManifestChain(trial.engines.store, keys.partition(p)).head) for p in range(trial.record.partitions)}
    return {p: read.manifest for p, read in found.items() if read is not None}


def boundaries(trial: Trial) -> dict[int, int]:
    """Highest deleted version of every partition."""
    keys = CollectionKeys(trial.record.name, trial.record.incarnation).index("main")
    return {p: again(ManifestChain(trial.engines.store, keys.partition(p)).boundary) for p in range(trial.record.partitions)}


def sleeping_builder(trial: Trial) -> None:
    """11: stopped between its uploads and its commit, beyond its session; the other one commits; the sleeper wakes up and is fenced."""
    sleeper, _ = zombie(trial, "index", "put manifest:5")
    trial.wait_advanced()
    trial.wait_acknowledged(100)
    trial.wait_advanced()
    trial.wake(sleeper)
    trial.wait_logged(sleeper, FENCED)
    trial.note("the sleeper was fenced")


def asleep_amid_its_put(trial: Trial) -> None:
    """11: stopped with half of a manifest on the wire. The store keeps that key locked (MinIO for 30 s), readers of the next version wait as long."""
    sleeper, _ = zombie(trial, "index", "put manifest, half:5")
    began = time.monotonic()
    trial.wait_advanced(90)
    trial.note(f"the other one commits on every partition after {time.monotonic() - began:.0f} s")
    trial.wake(sleeper)
    trial.wait_acknowledged(50)
    trial.wait_advanced()


def number_used_again(trial: Trial) -> None:
    """30: as 11, but the version that the sleeper is about to create is committed by the other one, collected, and then created again."""
    sleeper, _ = zombie(trial, "index", "put manifest:5")
    before = {partition: manifest.version for partition, manifest in heads(trial).items()}
    until(lambda: all(boundaries(trial)[p] > version + 1 for p, version in before.items()), 60, "the sleeper's number is collected", 0.2)
    trial.note(f"versions {before} and the next are collected: {boundaries(trial)}")
    trial.wake(sleeper)
    trial.wait_logged(sleeper, FENCED)
    trial.wait_acknowledged(50)
    trial.wait_advanced()


def sleeping_embedder(trial: Trial) -> None:
    """11, 41: stopped with a batch in its hands; another one embeds the same offsets and newer versions of the same ids; then the old batch comes."""
    sleeper, _ = zombie(trial, "embed", "send vectors:6")
    trial.wait_advanced()
    trial.wait_acknowledged(200)
    trial.wake(sleeper)
    trial.wait_acknowledged(100)
    trial.wait_advanced()


def sleeping_compactor(trial: Trial) -> None:
    """11: stopped between a compaction's uploads and its commit; another one compacts the same segments and collects them."""
    sleeper, _ = zombie(trial, "maintain", "put manifest:4")
    before = {partition: manifest.epochs.compactor for partition, manifest in heads(trial).items()}
    until(lambda: any(manifest.epochs.compactor > before[p] for p, manifest in heads(trial).items()), 60, "another compactor claims", 0.2)
    edge = boundaries(trial)
    until(lambda: any(boundaries(trial)[p] > edge[p] + 4 for p in edge), 60, "it collects", 0.2)
    trial.wake(sleeper)
    trial.wait_logged(sleeper, FENCED)
    trial.note("the sleeper was fenced")


def deletes_under_compaction(trial: Trial) -> None:
    """40: the compactor holds still between uploads and commit, again and again, while the ids that it rewrites are updated and deleted."""
    trial.wait_flowing()
    for number in (3, 4, 5):
        compactor = trial.start("maintain", crash=[f"put manifest:{number}=stop"])
        trial.wait_stopped(compactor)
        before = {partition: len(manifest.deletes) for partition, manifest in heads(trial).items()}
        trial.wait_acknowledged(150)
        trial.wait_advanced()
        trial.note(f"delete deltas while it held still: {before} -> { {p: len(m.deletes) for p, m in heads(trial).items()} }")
        trial.wake(compactor)
        trial.wait_advanced()


def two_owners(trial: Trial) -> None:
    """12: two embed workers and two builders, each sure that every partition is its own."""
    for role, name in itertools.product(("embed", "index"), ("a", "b")):
        trial.role(role, label=f"{role}-{name}", is_static=False, parts=[f"{PARTS}:own_all"]).start()
    for process in trial.roles.values():
        process.wait_ready()
    for _ in range(3):
        trial.wait_acknowledged(150)
        trial.wait_advanced()
    fenced = sum(trial.roles[f"index-{name}"].stderr().count(FENCED) for name in ("a", "b"))
    assert fenced, "no builder was ever fenced: they did not meet"
    trial.note(f"builders were fenced {fenced} times")
    trial.roles["index-b"].kill()
    trial.roles["embed-b"].kill()


def storm(trial: Trial) -> None:
    """13: members of the groups come and are killed every two seconds."""
    rng, births, kills = random.Random(13), 0, 0
    deadline = time.monotonic() + STORM_SECONDS
    while time.monotonic() < deadline:
        for role in ("embed", "index"):
            living = [label for label, process in trial.roles.items() if label.startswith(role) and process.is_running()]
            if len(living) > 1 and (len(living) > 2 or rng.random() < 0.5):
                trial.roles[rng.choice(living)].kill()
                kills += 1
            else:
                births += 1
                trial.role(role, label=f"{role}-{births}", is_static=False, parts=[SHORT]).start()
        time.sleep(2.0)
    trial.note(f"{births} members came, {kills} were killed")


def standing_still(role: str) -> Callable[[Trial], None]:
    """46: one partition's position freezes while the other one's records flow."""

    def run(trial: Trial) -> None:
        trial.wait_flowing()
        stalling = f'{PARTS}:stall={{"partition": 0, "polls": 8, "watchdog_seconds": 2.0}}'
        process = trial.start(role, parts=[stalling])
        trial.wait_logged(process, "does not move on partitions", 45.0)
        trial.note("the watchdog opened the reader anew")

    return run


@contextmanager
def searching(trial: Trial, pauses_seconds: float = 0.01) -> Iterator[dict[str, int]]:
    """Searches without a pause while the context lasts; counts them and what failed."""
    counts, stop = {"searches": 0, "failed": 0}, threading.Event()
    service = trial.ground.query_service()

    def search() -> None:
        with service.client() as client:
            client.wait_for(trial.record.name, {0: 1}, 60)
            while not stop.wait(pauses_seconds):
                counts["searches"] += 1
                try:
                    client.search(trial.record.name, vector=[1.0] * DIMENSION, limit=10)
                    client.count(trial.record.name)
                except HeadwaterError as error:
                    counts["failed"] += 1
                    trial.note(f"a search failed: {error}"[:300])

    thread = threading.Thread(target=search, daemon=True)
    thread.start()
    try:
        yield counts
    finally:
        stop.set()
        thread.join(60)


def loads_under_collection(trial: Trial) -> None:
    """42: two manifests a second and more, compaction and collection behind them; no search may fail."""
    trial.wait_flowing()
    before, began = heads(trial), time.monotonic()
    with searching(trial) as counts:
        while time.monotonic() - began < 12:
            trial.wait_acknowledged(100)
    made = sum(manifest.version - before[p].version for p, manifest in heads(trial).items())
    seconds = time.monotonic() - began
    trial.note(f"{counts['searches']} searches while {made} manifests came in {seconds:.0f} s, collected up to {boundaries(trial)}")
    assert counts["failed"] == 0 and counts["searches"] > 100, f"{counts}"
    assert made > 2 * seconds and all(boundaries(trial).values()), f"{made} manifests in {seconds:.0f} s, boundaries {boundaries(trial)}"


HOT = 60
VARIANTS = [
    Variant(11, "builder asleep before its commit", sleeping_builder, roles=("embed",)),
    Variant(11, "builder asleep amid its put", asleep_amid_its_put, roles=("embed",)),
    Variant(11, "embed worker asleep with a batch", sleeping_embedder, roles=("index",)),
    Variant(11, "compactor asleep before its commit", sleeping_compactor, roles=("embed", "index"), ids=HOT),
    Variant(12, "two embed workers, two builders", two_owners, roles=()),
    Variant(13, "members come and go", storm, partitions=4),
    Variant(30, "a number used again after its collection", number_used_again, roles=("embed", "maintain"), settings={"gc_seconds": 1.0}),
    Variant(40, "deletes under a compaction", deletes_under_compaction, ids=HOT),
    Variant(41, "old offsets of ids that were updated since", sleeping_embedder, roles=("index",), ids=HOT),
    Variant(
        42,
        "searches under collection",
        loads_under_collection,
        roles=("embed", "index", "maintain"),
        partitions=4,
        is_alone=True,
        settings={"seal_seconds": 0.4, "gc_seconds": 1.0},
    ),
    Variant(46, "embed worker's reader stands still", standing_still("embed")),
    Variant(46, "builder's reader stands still", standing_still("index")),
]
