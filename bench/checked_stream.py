"""A fixed stream through embed worker and builder, one after the other in this process: with all checks, or without.

    python -m bench.checked_stream SEED GENERATION        for each line "on|off KIND COUNT" on stdin: run once, and answer one JSON object

`KIND` is ``pictures`` (decoded by child processes, embedded by `lite`), ``vectors`` (a record each) or ``blocks`` (of a thousand vectors). The media
topic is filled before, and read again by each run, by a collection of its own. CPU is user and system time of the process (getrusage) and of its
decoding children; it has one OpenMP thread, whose waiting would count as work.

Takes: settings from the environment, a generation as a file. Gives: CPU-seconds, seconds. Owns: its topics and collections.
Never: measures filling, training, loading a model, or deleting.
"""

from __future__ import annotations

import json
import resource
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from uuid import uuid4

from backends.catalog.admin import CollectionRequest, create_collection, delete_collection
from backends.catalog.generations import publish_generation
from bench.checks import SWITCHES, switched
from bench.feeds import VECTOR_FIELD, PictureFeed
from bench.generated_rows import rows_of
from bench.processes import child_pids, cpu_seconds
from bench.trained import field_record
from contracts.collection import CollectionRecord
from contracts.engines import Engines
from contracts.errors import UnavailableError
from contracts.generation import Generation, decode_generation
from contracts.log import TopicSpec
from contracts.object_keys import CollectionKeys
from contracts.settings import load_settings
from embedding.decode_pool import DecodePool
from embedding.open_encoder import shared_encoder
from headwater.wiring import encoder_fields, open_engines
from indexer.build_worker import BuildWorker
from indexer.embed_worker import EmbedWorker
from ingest.records import OutgoingRecord, plain_record, rows_record

PICTURES, VECTORS, BLOCKS = "pictures", "vectors", "blocks"
BLOCK_ROWS = 1000
ENCODER = "lite"
LIMIT_SECONDS = 120.0
LOOK_SECONDS = 0.02


def outgoing(kind: str, count: int, seed: int) -> Iterator[OutgoingRecord]:
    """Records with `count` items in all."""
    if kind == PICTURES:
        for number, data in enumerate(PictureFeed(seed).next_bytes(count)):
            yield plain_record(f"picture-{number}", data, "image/jpeg")
        return
    matrix, step = rows_of(count, seed), BLOCK_ROWS if kind == BLOCKS else 1
    for start in range(0, count, step):
        yield rows_record([f"row-{row}" for row in range(start, start + step)], {VECTOR_FIELD: matrix[start : start + step]})


class Stream:
    """Filled topics, and runs over them.

    Parameters
    ----------
    engines : Engines
        Log and store; `seal_rows` is what one run holds.
    trained : Generation
        In whose codes own vectors are written; a few hundred pictures stay below the size from which on an index is trained.
    pool : DecodePool
        Decodes pictures.
    seed : int
        Of what is sent.
    """

    def __init__(self, engines: Engines, trained: Generation, pool: DecodePool, seed: int) -> None:
        self._engines, self._trained, self._pool, self._seed = engines, trained, pool, seed
        self._topics: dict[tuple[str, int], tuple[str, int]] = {}

    def run(self, kind: str, count: int, *, is_checked: bool) -> dict[str, float]:
        """Embed and build a stream of so many items; what that took."""
        topic, records = self._topics.get((kind, count)) or self._filled(kind, count)
        fields = encoder_fields(ENCODER, ("image",), self._engines.settings) if kind == PICTURES else [field_record()]
        request = CollectionRequest(f"bench-w12-{uuid4().hex[:9]}", fields, partitions=1, source_topic=topic, start="earliest")
        record = create_collection(self._engines, request)
        try:
            with switched({} if is_checked else {switch.place: switch.stand_in for switch in SWITCHES}):
                return self._measured(record, kind, count, records)
        finally:
            delete_collection(self._engines, record.name)

    def close(self) -> None:
        """Delete the topics."""
        for topic, _ in self._topics.values():
            self._engines.log.delete_topic(topic)

    def _filled(self, kind: str, count: int) -> tuple[str, int]:
        name, records = f"bench-w12-{uuid4().hex[:12]}", 0
        self._engines.log.create_topic(TopicSpec(name, 1, retention_ms=-1))
        producer = self._engines.log.producer(linger_seconds=0.02)
        for made in outgoing(kind, count, self._seed):
            producer.send(name, partition=0, key=made.key, value=made.value, headers=made.headers)
            records += 1
        producer.flush(60.0)
        producer.close()
        self._topics[kind, count] = name, records
        return name, records

    def _measured(self, record: CollectionRecord, kind: str, count: int, records: int) -> dict[str, float]:
        index, encoder = record.index(), shared_encoder(ENCODER, self._engines.settings) if kind == PICTURES else None
        builder = BuildWorker(self._engines, record, index)
        if encoder is None:
            keys = CollectionKeys(record.name, record.incarnation).index(index.name)
            builder.codecs.adopt(builder.codecs.add(publish_generation(self._engines.store, keys, index.fields[0], self._trained)))
        embedder = EmbedWorker(self._engines, record, index, encoder, self._pool)

        def is_embedded() -> bool:
            run = embedder.runs.get(0)
            return run is not None and run.scan.chain.expected >= records  # as far as the watchdog has read back

        def is_built() -> bool:
            built = builder.builders.get(0)
            return built is not None and built.manifest.rows >= count

        begin, before = time.perf_counter(), spent_seconds()
        _run(embedder.run, is_embedded, "embedded")
        embedded = spent_seconds()
        _run(builder.run, is_built, "built")
        after = spent_seconds()
        return {"cpu_seconds": after - before, "embed_cpu_seconds": embedded - before, "seconds": time.perf_counter() - begin}


class _Thread(threading.Thread):
    """A worker's thread, which keeps what ended it."""

    def __init__(self, run: Callable[[threading.Event], None]) -> None:
        super().__init__(daemon=True)
        self._run_worker, self.stop = run, threading.Event()
        self.error: BaseException | None = None

    def run(self) -> None:
        """See `threading.Thread.run`."""
        try:
            self._run_worker(self.stop)
        except BaseException as error:  # noqa: BLE001 - raised by `_run`
            self.error = error


def _run(run: Callable[[threading.Event], None], is_done: Callable[[], bool], what: str) -> None:
    """Run a worker until its work is done."""
    thread, deadline = _Thread(run), time.monotonic() + LIMIT_SECONDS
    thread.start()
    while not is_done() and thread.is_alive() and time.monotonic() < deadline:
        time.sleep(LOOK_SECONDS)
    done = is_done()
    thread.stop.set()
    thread.join()
    if thread.error is not None:
        raise thread.error
    if not done:
        raise UnavailableError(f"the stream was not {what} within {LIMIT_SECONDS:g} s", hint="look at the log of this process")


def spent_seconds() -> float:
    """CPU-seconds of this process and of its children that run."""
    spent = resource.getrusage(resource.RUSAGE_SELF)
    return spent.ru_utime + spent.ru_stime + sum(cpu_seconds(pid) or 0.0 for pid in child_pids())


def main(arguments: list[str]) -> None:
    """Run until stdin is closed."""
    seed, path = int(arguments[0]), Path(arguments[1])
    with open_engines(load_settings()) as engines, DecodePool(engines.settings) as pool:
        stream = Stream(engines, decode_generation(path.read_bytes(), str(path)), pool, seed)
        print("ready", flush=True)
        for line in sys.stdin:
            switch, kind, count = line.split()
            print(json.dumps(stream.run(kind, int(count), is_checked=switch == "on")), flush=True)
        stream.close()
    print("done", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
