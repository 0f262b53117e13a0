"""A stream through an embed worker and a builder of this process, portion after portion: with all checks, or without.

    python -m bench.checked_stream COLLECTION GENERATION        two lines on stdin for each portion, an answer to each

        begin on|off                from now on, CPU counts
        end RECORDS ITEMS           wait until so many records are embedded and are there, so many items committed, in all: CPU-seconds since `begin`

Whoever asks sends the portion between the two. The workers run all the time, so that what they do once, at a start, is in no portion. CPU is user and
system time of the process (getrusage) and of its decoding children; it has one OpenMP thread, whose waiting would count as work.

Takes: settings from the environment, a collection, a generation as a file. Gives: CPU-seconds. Owns: its workers. Never: sends, trains or creates.
"""

from __future__ import annotations

import json
import resource
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

from backends.catalog.collections import CollectionCatalog
from backends.catalog.generations import publish_generation
from bench.checks import SWITCHES, switched
from bench.feeds import VECTOR_FIELD, PictureFeed
from bench.generated_rows import rows_of
from bench.processes import child_pids, cpu_seconds
from contracts.collection import CollectionRecord
from contracts.engines import Engines
from contracts.errors import UnavailableError
from contracts.generation import Generation, decode_generation
from contracts.object_keys import CollectionKeys
from contracts.settings import load_settings
from embedding.decode_pool import DecodePool
from embedding.open_encoder import shared_encoder
from headwater.wiring import open_engines
from indexer.build_worker import BuildWorker
from indexer.embed_worker import EmbedWorker
from ingest.records import OutgoingRecord, plain_record, rows_record

PICTURES, VECTORS, BLOCKS = "pictures", "vectors", "blocks"
BLOCK_ROWS = 1000
ENCODER = "lite"
LIMIT_SECONDS = 120.0
LOOK_SECONDS = 0.02


def outgoing(kind: str, first: int, count: int, seed: int) -> Iterator[OutgoingRecord]:
    """Records with `count` items in all, whose ids are numbered from `first` on."""
    if kind == PICTURES:
        for number, data in enumerate(PictureFeed(seed).next_bytes(count), first):
            yield plain_record(f"picture-{number}", data, "image/jpeg")
        return
    matrix, step = rows_of(count, seed), BLOCK_ROWS if kind == BLOCKS else 1
    for start in range(0, count, step):
        rows = matrix[start : start + step]
        yield rows_record([f"row-{first + start + at}" for at in range(len(rows))], {VECTOR_FIELD: rows})


class Stream:
    """Both workers of one collection with one partition; a context.

    Parameters
    ----------
    engines : Engines
        Log and store; `seal_rows` is what one portion holds.
    record : CollectionRecord
        Whose items come.
    trained : Generation
        In whose codes own vectors are written; pictures stay flat: some thousands are below the size from which on an index is trained.
    pool : DecodePool
        Decodes pictures.
    """

    def __init__(self, engines: Engines, record: CollectionRecord, trained: Generation, pool: DecodePool) -> None:
        index = record.index()
        self._engines, self._topic = engines, index.vectors_topic
        self._builder = BuildWorker(engines, record, index)
        has_encoder = index.fields[0].encoder is not None
        if not has_encoder:
            keys = CollectionKeys(record.name, record.incarnation).index(index.name)
            self._builder.codecs.adopt(self._builder.codecs.add(publish_generation(engines.store, keys, index.fields[0], trained)))
        self._embedder = EmbedWorker(engines, record, index, shared_encoder(ENCODER, engines.settings) if has_encoder else None, pool)
        self._threads = [_Thread(self._embedder.run), _Thread(self._builder.run)]
        self._portion = ExitStack()
        self._is_checked, self._before = True, 0.0

    def __enter__(self) -> Stream:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._portion.close()
        for thread in self._threads:
            thread.stop.set()
        for thread in self._threads:
            thread.join()

    def begin(self, *, is_checked: bool) -> None:
        """A portion comes, which is to be checked or not."""
        self._is_checked = is_checked
        self._portion.enter_context(switched({} if is_checked else {switch.place: switch.stand_in for switch in SWITCHES}))
        self._before = spent_seconds()

    def end(self, records: int, items: int) -> float:
        """Wait until everything that was sent so far is embedded, made sure of and committed; CPU-seconds of the portion.

        Raises
        ------
        UnavailableError
            It does not come to an end.
        """
        deadline = time.monotonic() + LIMIT_SECONDS
        while not self._has_come(records, items):
            for thread in self._threads:
                if thread.error is not None:
                    raise thread.error
            if time.monotonic() > deadline:
                raise UnavailableError(f"a portion was not built within {LIMIT_SECONDS:g} s", hint="look at the log of this process")
            time.sleep(LOOK_SECONDS)
        spent = spent_seconds() - self._before
        if not self._is_checked:
            self._leave_out()
        self._portion.close()
        return spent

    def _has_come(self, records: int, items: int) -> bool:
        run, builder = self._embedder.runs.get(0), self._builder.builders.get(0)
        return run is not None and builder is not None and run.scan.chain.expected >= records and builder.manifest.rows >= items

    def _leave_out(self) -> None:
        """What the watchdog did not look at in this portion it need not look at in the next."""
        scan, end = self._embedder.runs[0].scan, self._engines.log.bounds(self._topic)[0].next_offset
        scan.vectors_offset = end
        if scan._reader is not None:
            scan._reader.seek(0, end)


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
        except BaseException as error:  # noqa: BLE001 - raised by `Stream.end`
            self.error = error


def spent_seconds() -> float:
    """CPU-seconds of this process and of its children that run."""
    spent = resource.getrusage(resource.RUSAGE_SELF)
    return spent.ru_utime + spent.ru_stime + sum(cpu_seconds(pid) or 0.0 for pid in child_pids())


def main(arguments: list[str]) -> None:
    """Run until stdin is closed."""
    name, path = arguments[0], Path(arguments[1])
    trained = decode_generation(path.read_bytes(), str(path))
    with open_engines(load_settings()) as engines, DecodePool(engines.settings) as pool:
        with Stream(engines, CollectionCatalog(engines.store).get(name), trained, pool) as stream:
            print("ready", flush=True)
            for line in sys.stdin:
                word, *rest = line.split()
                if word == "begin":
                    stream.begin(is_checked=rest[0] == "on")
                    print("{}", flush=True)
                else:
                    print(json.dumps({"cpu_seconds": stream.end(int(rest[0]), int(rest[1]))}), flush=True)
    print("done", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
