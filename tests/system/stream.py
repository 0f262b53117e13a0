"""A producer process for system tests: sample pictures at a steady rate, with updates and deletes, and a log of what was acknowledged.

    python -m tests.system.stream COLLECTION --pictures 2000 --rate 15 --journal FILE [--hurry FILE]     (settings from the environment)

With `--hurry` the last fifth comes at a tenth of the rate until that file exists, and then updates follow until it does, so that what is tested
meanwhile meets a stream that flows on a slow machine too.
The journal is the oracle: one JSON line per acknowledged record, the last line only when all were acknowledged.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import json
import random
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import IO

from backends.catalog.collections import CollectionCatalog
from contracts.log import RecordPosition
from contracts.settings import load_settings
from headwater.wiring import open_engines
from ingest.producer import MediaProducer

SAMPLES = Path(__file__).resolve().parents[2] / "examples" / "media"
UPDATE_EVERY, DELETE_EVERY = 10, 20


@dataclass(frozen=True)
class Step:
    """One thing to produce: `file` and `caption` are None for a delete."""

    op: str
    id: str
    file: str | None = None
    caption: str | None = None


@dataclass(frozen=True)
class Acknowledged:
    """One record that the log has acknowledged."""

    op: str
    id: str
    caption: str | None
    partition: int
    offset: int


def samples() -> list[tuple[str, str]]:
    """(file, caption) of every sample picture."""
    with (SAMPLES / "captions.csv").open(newline="") as source:
        return [(row["file"], row["caption"]) for row in csv.DictReader(source)]


def steps(pictures: int) -> Iterator[Step]:
    """`pictures` new ids, in between updates and deletes of earlier ones; a deleted id may come back with an update."""
    found, choice = samples(), random.Random(2000)
    ids: list[str] = []
    for number in range(pictures):
        file, caption = found[number % len(found)]
        ids.append(f"{number}/{file}")
        yield Step("upsert", ids[-1], file, f"{caption} {number}")
        if number % UPDATE_EVERY == UPDATE_EVERY - 1:
            file, caption = choice.choice(found)
            yield Step("upsert", choice.choice(ids), file, f"{caption} again {number}")
        if number % DELETE_EVERY == DELETE_EVERY - 1:
            yield Step("delete", choice.choice(ids))


def read_journal(path: Path) -> tuple[list[Acknowledged], bool]:
    """What was acknowledged so far, and whether that is all."""
    entries = [json.loads(line) for line in path.read_text().splitlines() if line.endswith("}")] if path.exists() else []
    return [Acknowledged(**entry) for entry in entries if "done" not in entry], any("done" in entry for entry in entries)


def newest(acknowledged: Sequence[Acknowledged]) -> dict[str, Acknowledged]:
    """Per id that should be live, its last record: an id has one partition, so offsets order its records."""
    last: dict[str, Acknowledged] = {}
    for entry in acknowledged:
        before = last.get(entry.id)
        assert before is None or before.partition == entry.partition
        if before is None or before.offset < entry.offset:
            last[entry.id] = entry
    return {item_id: entry for item_id, entry in last.items() if entry.op == "upsert"}


def next_offsets(acknowledged: Sequence[Acknowledged]) -> dict[int, int]:
    """Per partition, the offset behind the last acknowledged record."""
    ends: dict[int, int] = {}
    for entry in acknowledged:
        ends[entry.partition] = max(ends.get(entry.partition, 0), entry.offset + 1)
    return ends


class Journal:
    """Writes acknowledgements as they come, from the producer's thread."""

    def __init__(self, file: IO[str]) -> None:
        self._file, self._lock = file, threading.Lock()
        self.written = 0

    def note(self, step: Step, future: Future[RecordPosition]) -> None:
        if future.exception() is not None:
            return  # `flush` raises it
        position = future.result()
        self._write(asdict(Acknowledged(step.op, step.id, step.caption, position.partition, position.offset)))

    def finish(self) -> None:
        self._write({"done": True})

    def _write(self, entry: object) -> None:
        with self._lock:
            self._file.write(json.dumps(entry) + "\n")
            self._file.flush()
            self.written += 1


def paced(planned: Sequence[Step], rate: float, hurry: Path | None) -> Iterator[Step]:
    """The steps at `rate` per second, the last fifth at a tenth of it until `hurry` exists, then updates; a late step does not delay the next."""
    due, choice = time.monotonic(), random.Random(5)
    updatable = [step for step in planned if step.file is not None]
    for number in itertools.count():
        is_held = hurry is not None and not hurry.exists()
        if number >= len(planned) and not is_held:
            return
        time.sleep(max(0.0, due - time.monotonic()))
        due += 10 / rate if is_held and number >= 0.8 * len(planned) else 1 / rate
        if number < len(planned):
            yield planned[number]
        else:
            again = choice.choice(updatable)
            yield replace(again, caption=f"{again.caption} held {number}")


def produce(collection: str, planned: Sequence[Step], rate: float, journal_path: Path, hurry: Path | None) -> None:
    """Produce every step, and updates while it is held; raises when one was not acknowledged."""
    settings = load_settings()
    with open_engines(settings) as engines, journal_path.open("w") as file:
        journal = Journal(file)
        record = CollectionCatalog(engines.store).get(collection)
        with MediaProducer(engines.log, record, settings) as producer:
            sent = 0
            for step in paced(planned, rate, hurry):
                sent += 1
                if step.file is None:
                    future = producer.delete(step.id)
                else:
                    future = producer.send_picture(step.id, (SAMPLES / step.file).read_bytes(), "image/jpeg", step.caption)
                future.add_done_callback(partial(journal.note, step))
            producer.flush()
            while journal.written < sent:  # the last callbacks may run a moment after the flush
                time.sleep(0.01)
        journal.finish()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("collection")
    parser.add_argument("--pictures", type=int, required=True)
    parser.add_argument("--rate", type=float, required=True)
    parser.add_argument("--journal", type=Path, required=True)
    parser.add_argument("--hurry", type=Path)
    asked = parser.parse_args()
    produce(asked.collection, list(steps(asked.pictures)), asked.rate, asked.journal, asked.hurry)


if __name__ == "__main__":
    main()
