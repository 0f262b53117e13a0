"""Faults 21, 31, 35, 36, 45 and 47: brokers that die, slow uploads, poison, dead letters that nobody takes, newer formats, no file descriptors."""

from __future__ import annotations

import json
import os
import resource
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import numpy as np

from backends.catalog.admin import CollectionRequest
from backends.catalog.manifests import ManifestChain
from contracts import canonical_json
from contracts.hashed_json import with_hash
from contracts.object_keys import CollectionKeys
from contracts.store import PutOutcome
from ingest.records import rows_record
from tests.embedding.crashing_child import ABORT, HANG, HOARD
from tests.encoders import colour_fields
from tests.faults.cluster import Cluster, three_brokers
from tests.faults.load import FIELD
from tests.faults.trial import Trial, Variant
from tests.system.bad_input_run import outcomes, send
from tests.system.bad_inputs import JPEG, BadInput, pictures, texts, vectors
from tests.system.processes import command, until

PARTS = "tests.faults.odd_parts"
DOWN_SECONDS = 3.0
EXPIRED_SECONDS = 50.0
"""Longer than the `delivery_timeout_ms` of our producers."""

# ---- 21: the broker ----------------------------------------------------------------------------------------------------


def killed(trial: Trial, server: str) -> None:
    """21: kill -9 of broker or store amid the stream, twice; every client finds it again by itself."""
    trial.wait_flowing()
    for _ in range(2):
        trial.ground.kill(server)
        time.sleep(DOWN_SECONDS)
        trial.ground.start()
        trial.wait_acknowledged(50)
        trial.wait_advanced()


def broker_stopped(trial: Trial) -> None:
    """21: an orderly restart of the broker."""
    trial.wait_flowing()
    trial.ground.signal("kafka", signal.SIGTERM)
    time.sleep(DOWN_SECONDS)
    trial.ground.start()
    trial.wait_acknowledged(50)
    trial.wait_advanced()


def broker_away(trial: Trial) -> None:
    """21: the broker is gone for longer than a record may wait for it: what is under way expires, and is told."""
    trial.wait_flowing()
    trial.ground.kill("kafka")
    time.sleep(EXPIRED_SECONDS)
    trial.ground.start()
    trial.wait_acknowledged(50)
    trial.wait_advanced(90)


def broker_frozen(trial: Trial) -> None:
    """21: the broker holds still for longer than a request may take, and goes on."""
    trial.wait_flowing()
    with trial.ground.frozen("kafka"):
        time.sleep(22.0)
    trial.wait_acknowledged(50)
    trial.wait_advanced(90)


def leader_moves(trial: Trial) -> None:
    """21: of three brokers one is killed after the other; leadership moves, two of three have every acknowledged record."""
    assert isinstance(trial.ground, Cluster)
    trial.ground.query_service()  # this cluster's own: it reads on while leaders move, and its start is no part of the recovery
    trial.wait_flowing()
    before = leader_epochs(trial)
    for node in (1, 2):
        trial.ground.kill_node(node)
        trial.wait_acknowledged(50)
        trial.wait_advanced(90)
        trial.ground.start()
        time.sleep(3.0)  # the node catches up before the next one is killed
    trial.wait_advanced(90)
    after = leader_epochs(trial)
    trial.note(f"leader epochs of the vectors topic: {before} -> {after}")
    assert any(after[partition] > epoch >= 0 for partition, epoch in before.items()), "an acknowledgement of an earlier leader would be believed"


def leader_epochs(trial: Trial) -> dict[int, int]:
    return {partition: held.leader_epoch for partition, held in trial.engines.log.bounds(trial.record.index().vectors_topic).items()}


# ---- 31: slow uploads --------------------------------------------------------------------------------------------------


def slow_uploads(trial: Trial) -> None:
    """31: from the upload of rows to the commit that names them, three times as long as the collector keeps anything."""
    slow = f'{PARTS}:slow_put={{"kind": "rows", "seconds": 3.0}}'
    trial.start("index", parts=[slow])
    trial.start("maintain")
    for _ in range(3):
        trial.wait_advanced()
    before = boundaries_total(trial)
    trial.start("maintain", parts=[slow])
    for _ in range(2):
        trial.wait_advanced()
    until(lambda: boundaries_total(trial) > before, 60, "the collector works", 0.2)


def boundaries_total(trial: Trial) -> int:
    keys = CollectionKeys(trial.record.name, trial.record.incarnation).index("main")
    return sum(ManifestChain(trial.engines.store, keys.partition(p)).boundary() for p in range(trial.record.partitions))


# ---- 35, 36: poison, and dead letters ----------------------------------------------------------------------------------


def pictures_and_vectors(trial: Trial) -> CollectionRequest:
    """A collection that takes pictures beside the stream's own vectors."""
    request = trial.request()
    return replace(request, partitioner="producer", fields=[*request.fields, *(field for field in colour_fields() if field.name == "image")])


def poison() -> list[BadInput]:
    """Bad pictures, texts and vectors of tests/system, and pictures at which the decoding process dies, hangs, or takes all memory."""
    known = [one for one in (*pictures(), *texts(), *vectors()) if one.verdict == "reject" and one.collection != "dot"]
    fitting = [one for one in known if "attribute of" not in one.name and len(one.value) < 1_000_000 and one.reason != "decode_memory"]
    deadly = (("abort", ABORT, "decode_crashed"), ("hang", HANG, "decode_timeout"), ("hoard", HOARD, "decode_memory"))
    return fitting + [BadInput(f"decoder: {name}", "pictures", JPEG, value, "reject", reason) for name, value, reason in deadly]


def poisoned(trial: Trial) -> None:
    """35: each of them is dead-lettered under its reason, byte for byte, and the stream around them goes on."""
    trial.start("embed", parts=[f"{PARTS}:dying_decoder"], decode_memory_bytes=256 << 20, decode_seconds=2.0)
    trial.start("index")
    trial.wait_flowing()
    sent = send(trial.engines, trial.record, poison())
    ends: dict[int, int] = {}
    for one in sent:
        ends[one.partition] = max(ends.get(one.partition, 0), one.offset + 1)
    trial.wait_committed(ends, 90)
    found = outcomes(trial.engines, sent)
    wrong = [f"{one.bad.name}: {one.verdict} {one.reason}, promised {one.bad.verdict} {one.bad.reason}" for one in found if not one.is_kept]
    assert not wrong, wrong
    trial.note(f"{len(found)} bad inputs, {len({one.reason for one in found})} reasons, each with its dead letter")


def no_dead_letters(trial: Trial) -> None:
    """36: while the dead-letter topic takes nothing a partition with a bad record waits; then it goes on, and the letter is there."""
    block = trial.folder / "blocked"
    block.touch()
    trial.start("embed", parts=[f"{PARTS}:refuse_dead_letters={json.dumps(str(block))}"])
    trial.start("index")
    trial.wait_flowing()
    bad = [BadInput("zero vector", "cosine", (), b"", "reject", "zero_norm")]
    record = rows_record(["zero"], {FIELD: np.zeros((1, 8), np.float32)})
    sent = send(trial.engines, trial.record, [replace(bad[0], headers=record.headers, value=record.value or b"")])[0]
    time.sleep(6.0)
    stands = trial.checkpoint(sent.partition)
    assert stands <= sent.offset, f"checkpoint {stands} is behind the bad record at {sent.offset}, which has no dead letter"
    others = 1 - sent.partition
    before = trial.checkpoint(others)
    until(lambda: trial.checkpoint(others) > before, 30, "the other partition goes on", 0.2)
    trial.note(f"partition {sent.partition} waited at {stands} for the dead letter of {sent.offset}")
    block.unlink()
    trial.wait_committed({sent.partition: sent.offset + 1}, 60)
    found = outcomes(trial.engines, [sent])[0]
    assert (found.verdict, found.reason) == ("reject", "zero_norm") and found.identical, f"{found}"


# ---- 45: formats -------------------------------------------------------------------------------------------------------


def newer_manifest(trial: Trial) -> None:
    """45: a manifest of format 2 comes next: everybody refuses it with a hint and keeps what is there; without it they go on."""
    trial.wait_flowing()
    keys = CollectionKeys(trial.record.name, trial.record.incarnation).index("main").partition(0)
    chain = ManifestChain(trial.engines.store, keys)
    planted = ""
    for _ in range(100):
        read = chain.head()
        assert read is not None
        body = read.manifest.model_dump(mode="json")
        planted = keys.manifest(read.manifest.version + 1)
        if trial.engines.store.put_if_absent(planted, with_hash(canonical_json.dump({**body, "format": 2}))) is PutOutcome.CREATED:
            break
    trial.wait_logged(trial.roles["index"], "partition 0 is stopped")
    told = next(line for line in trial.roles["index"].stderr().splitlines() if "partition 0 is stopped" in line)
    assert "format 2" in told, told
    with trial.ground.query_service().client() as client:
        assert client.count(trial.record.name) > 0, "the old version is no longer served"
    verified = command(trial.site, "verify", trial.record.name, "--json")
    counts = json.loads(verified.stdout)["counts"]
    assert verified.returncode == 6 and "manifest_unreadable" in counts, f"verify says {verified.returncode} {counts}"
    trial.note(f"builder: {json.loads(told)['message'][:200]}; verify: {counts}")
    trial.engines.store.delete(planted)
    trial.start("index")
    trial.start("embed")


# ---- 47: descriptors, threads ------------------------------------------------------------------------------------------


def no_descriptors(role: str) -> Callable[[Trial], None]:
    """47: the process may open nothing any more while its connections break; it ends, or finds its feet when it may."""

    def run(trial: Trial) -> None:
        trial.wait_flowing()
        process = trial.roles[role]
        _, most = resource.prlimit(process.pid, resource.RLIMIT_NOFILE)
        resource.prlimit(process.pid, resource.RLIMIT_NOFILE, (8, most))
        trial.ground.kill("minio")
        trial.ground.kill("kafka")
        trial.ground.start()
        time.sleep(5.0)
        if process.is_running():
            os.kill(process.pid, 0)
            resource.prlimit(process.pid, resource.RLIMIT_NOFILE, (most, most))
            trial.note(f"{role} lived through it")
        else:
            trial.note(f"{role} ended with {process.has_died()}: {process.stderr().splitlines()[-1][:200]}")
            trial.start(role)
        trial.wait_acknowledged(50)
        trial.wait_advanced(90)

    return run


def thread_dies(trial: Trial) -> None:
    """47: the thread that publishes, or that commits, dies of something that nobody thought of: the process ends, instead of going on without it."""
    trial.wait_flowing()
    embed = trial.start("embed", parts=[f"{PARTS}:raise_in_thread=1.0"])
    until(lambda: not embed.is_running(), 40, "the embed worker ends", 0.1)
    code = embed.has_died()
    assert code not in (None, 0), f"it ended with {code}"
    trial.start("embed")
    index = trial.role("index", crash=["put rows:3=raise"])
    index.start()
    until(lambda: not index.is_running(), 40, "the builder ends", 0.1)
    died = index.has_died()
    assert died not in (None, 0), f"it ended with {died}"
    trial.note(f"embed ended with {code}, index with {died}")
    trial.start("index")


VARIANTS = [
    Variant(21, "the broker is killed", partial(killed, server="kafka"), is_alone=True),
    Variant(21, "the broker is restarted in order", broker_stopped, is_alone=True),
    Variant(21, "the broker is away for longer than a record may wait", broker_away, is_alone=True, recover_seconds=120.0),
    Variant(21, "the broker holds still", broker_frozen, is_alone=True, recover_seconds=120.0),
    Variant(21, "leadership moves between three brokers", leader_moves, on=three_brokers, recover_seconds=120.0),
    Variant(21, "the store is killed", partial(killed, server="minio"), is_alone=True, roles=("embed", "index", "maintain")),
    Variant(31, "uploads longer than the collector's patience", slow_uploads, roles=("embed",), settings={"gc_seconds": 1.0}),
    Variant(35, "pictures, texts, rows, decoders", poisoned, roles=(), request=pictures_and_vectors, rate=50.0),
    Variant(36, "the dead-letter topic takes nothing", no_dead_letters, roles=()),
    Variant(45, "a manifest of a newer format", newer_manifest),
    Variant(47, "no descriptors for the builder", no_descriptors("index"), is_alone=True),
    Variant(47, "no descriptors for the embed worker", no_descriptors("embed"), is_alone=True),
    Variant(47, "a thread dies", thread_dies),
]
