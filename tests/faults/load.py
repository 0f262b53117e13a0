"""A producer that goes on through faults: upserts, updates, deletes and patches of own vectors, and a journal of what was acknowledged.

    python -m tests.faults.load COLLECTION --journal FILE --stop FILE [--rate 100] [--seed 1] [--records N] [--ids N]

It sends until `--stop` exists, or N items were sent; then it waits until everything is acknowledged and ends its journal with ``done``.
What is not acknowledged is sent again by a new producer, for as long as that takes (tests/faults/journal.py says why the oracle stays exact).
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray

from backends.catalog.collections import CollectionCatalog
from contracts.errors import HeadwaterError
from contracts.log import RecordPosition
from contracts.settings import load_settings
from headwater.wiring import open_engines
from ingest.producer import MediaProducer
from tests.faults.journal import Acknowledged

DIMENSION = 8
FIELD = "v"
TICK_SECONDS = 0.05
RETRY_SECONDS = 0.5
SHARES = (("new", 0.5), ("update", 0.25), ("patch", 0.15), ("delete", 0.1))
PATCHED = "note"
"""Attribute that patches change; `seq` is the one that upserts set."""
ATTRIBUTES = {"seq": "integer", PATCHED: "integer"}


def vector_of(seq: int) -> NDArray[np.float32]:
    """The vector of a step, by its number: a stored row can be compared with its journal line alone."""
    vector = np.random.default_rng(seq).standard_normal(DIMENSION).astype(np.float32)
    return vector / np.linalg.norm(vector)


@dataclass(frozen=True)
class Step:
    """One thing to send."""

    op: str
    id: str
    seq: int


class Load:
    """Chooses steps, sends them, writes the journal.

    Parameters
    ----------
    producer : MediaProducer
        Of the collection.
    journal : IO
        One line per acknowledged item.
    seed : int
        Of all choices; also the prefix of ids, so that two loads share none.
    most_ids : int
        So many ids at most: few of them make many updates, deletes and patches of each.
    """

    def __init__(self, producer: MediaProducer, journal: IO[str], seed: int, most_ids: int = 1_000_000) -> None:
        self.producer, self._journal, self._seed, self._most_ids = producer, journal, seed, most_ids
        self._choice = random.Random(seed)
        self._lock = threading.Lock()
        self._ids: list[str] = []
        self._live: set[str] = set()
        self._busy: set[str] = set()
        self._failed: deque[Step] = deque()
        self.sent = 0

    # ---- choosing ----------------------------------------------------------------------------------------------------

    def choose(self, count: int) -> list[Step]:
        """Steps of ids that have nothing under way; fewer where most ids have."""
        steps: list[Step] = []
        for _ in range(count):
            kind = self._choice.choices([name for name, _ in SHARES], [share for _, share in SHARES])[0]
            step = self._one(kind)
            if step is not None:
                with self._lock:
                    self._busy.add(step.id)
                steps.append(step)
        return steps

    def _one(self, kind: str) -> Step | None:
        chosen = self._new() if kind == "new" and len(self._ids) < self._most_ids else self._free()
        if chosen is None:
            return None
        if chosen not in self._live or kind == "new":
            kind = "update"  # what is not live can neither be patched nor deleted
        (self._live.discard if kind == "delete" else self._live.add)(chosen)
        self.sent += 1
        return Step("upsert" if kind == "update" else kind, chosen, self._seed * 10_000_000 + self.sent)

    def _new(self) -> str:
        self._ids.append(f"s{self._seed}-{len(self._ids)}")
        return self._ids[-1]

    def _free(self) -> str | None:
        """An id that has nothing under way; a new one where there is none yet."""
        if not self._ids:
            return self._new()
        with self._lock:
            for _ in range(20):
                chosen = self._choice.choice(self._ids)
                if chosen not in self._busy:
                    return chosen
        return None

    # ---- sending -----------------------------------------------------------------------------------------------------

    def send(self, steps: Sequence[Step]) -> None:
        """Send steps: upserts of one partition as one record of rows, everything else alone."""
        rows: dict[int, list[Step]] = {}
        for step in steps:
            if step.op == "upsert":
                rows.setdefault(self.producer.partition(step.id), []).append(step)
            elif step.op == "patch":
                self._sent([step], lambda step=step: self.producer.patch(step.id, {PATCHED: step.seq}))  # type: ignore[misc]
            else:
                self._sent([step], lambda step=step: self.producer.delete(step.id))  # type: ignore[misc]
        for same in rows.values():
            matrix = np.stack([vector_of(step.seq) for step in same])
            attributes = [{"seq": step.seq} for step in same]
            ids = [step.id for step in same]
            texts = [f"step {step.seq}" for step in same]
            self._sent(same, lambda i=ids, m=matrix, t=texts, a=attributes: self.producer.send_vectors(i, {FIELD: m}, texts=t, attributes=a)[0])  # type: ignore[misc]

    def _sent(self, steps: list[Step], send: Callable[[], Future[RecordPosition]]) -> None:
        try:
            future = send()
        except HeadwaterError as error:
            print(f"not sent: {error}", file=sys.stderr, flush=True)
            with self._lock:
                self._failed.extend(steps)
            return
        future.add_done_callback(partial(self._settled, steps, time.time()))

    def _settled(self, steps: list[Step], at: float, future: Future[RecordPosition]) -> None:
        error = future.exception()
        with self._lock:
            if error is not None:
                print(f"not acknowledged: {error}", file=sys.stderr, flush=True)
                self._failed.extend(steps)
                self._write([{"op": "unsure", "id": step.id, "seq": step.seq} for step in steps])
                return
            where = future.result()
            self._busy -= {step.id for step in steps}
            self._write([asdict(Acknowledged(s.op, s.id, s.seq, where.partition, where.offset, item, at)) for item, s in enumerate(steps)])

    def _write(self, lines: Sequence[object]) -> None:
        self._journal.write("".join(json.dumps(line) + "\n" for line in lines))
        self._journal.flush()

    def retry(self) -> None:
        """Send again what was not acknowledged, by a new producer; nothing happens while the log does not answer."""
        with self._lock:
            waiting = list(self._failed)
        if not waiting:
            return
        time.sleep(RETRY_SECONDS)
        try:
            self.producer.renew()
        except HeadwaterError as error:
            print(f"no new producer: {error}", file=sys.stderr, flush=True)
            return
        with self._lock:
            waiting = list(self._failed)
            self._failed.clear()
        self.send(waiting)

    def is_settled(self) -> bool:
        with self._lock:
            return not self._busy

    def finish(self) -> None:
        while not self.is_settled():
            self.retry()
            time.sleep(0.02)
        with self._lock:
            self._write([{"op": "done"}])


def run(load: Load, rate: float, records: int | None, is_over: Callable[[], bool]) -> None:
    """Send at a steady rate, which a slow log does not make up for afterwards."""
    due = time.monotonic()
    while not is_over() and (records is None or load.sent < records):
        load.retry()
        most = rate * TICK_SECONDS if records is None else min(rate * TICK_SECONDS, records - load.sent)
        load.send(load.choose(max(1, round(most))))
        due = max(due + TICK_SECONDS, time.monotonic() - 1.0)
        time.sleep(max(0.0, due - time.monotonic()))
    load.finish()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("collection")
    parser.add_argument("--journal", type=Path, required=True)
    parser.add_argument("--stop", type=Path, required=True)
    parser.add_argument("--rate", type=float, default=100.0, help="items per second")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--records", type=int)
    parser.add_argument("--ids", type=int, default=1_000_000, help="most ids")
    asked = parser.parse_args()
    settings = load_settings()
    with open_engines(settings) as engines, asked.journal.open("w") as journal:
        record = CollectionCatalog(engines.store).get(asked.collection)
        producer = MediaProducer(engines.log, record, settings)
        run(Load(producer, journal, asked.seed, asked.ids), asked.rate, asked.records, asked.stop.exists)
        producer.close()


if __name__ == "__main__":
    main()
