"""Every bad input through real processes: what became of it, why, and whether its dead letter is the original, byte for byte.

    python -m tests.system.bad_input_run --log sqlite|kafka                    the table of bad inputs
    python -m tests.system.bad_input_run --log sqlite|kafka --records 10000    then records of which every hundredth is poison

Takes: a site. Gives: a table, and memory before, at its highest and after. Owns: nothing that stays.
Never: takes the word of a log line: verdicts are read from the ledger in the store, dead letters from their topic.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from kafka import KafkaProducer
from rich.console import Console
from rich.table import Table

from contracts.collection import CollectionRecord
from contracts.engines import Engines
from contracts.ledger import LedgerRun
from contracts.log import LogRecord, RecordPosition
from contracts.object_keys import CollectionKeys
from ingest.producer import MediaProducer
from tests.indexer.stored import read_partition
from tests.system.accounts import read_checkpoint
from tests.system.bad_inputs import DIMENSION, BadInput, claim_checks, kafka_batches, notifications, pictures, sample, texts, vectors
from tests.system.processes import Process, command, done, running, until
from tests.system.sites import Site, open_site, unique

SEAL_SECONDS = 2.0
PARTITIONS = 2
POISON_EVERY = 100
SECONDS_PER_RECORD = 0.5
WARM_RECORDS = 1500
MOST_GROWTH = 1.25
"""A worker's memory in the last quarter of a stream, as a multiple of that in the first: what grows with the stream passes it sooner or later."""
GROWTH_SLACK_MIB = 64.0
DECODE_MEMORY_BYTES = 256 * 1024 * 1024  # less than one of the inputs needs
DEAD_LETTER = "__connect.errors."


@dataclass
class Outcome:
    """What became of one input. `identical` is None where there is no dead letter."""

    bad: BadInput
    verdict: str
    reason: str | None
    identical: bool | None
    sentence: str

    @property
    def is_kept(self) -> bool:
        identical = None if self.bad.verdict == "row" else self.bad.is_kept
        return (self.verdict, self.reason, self.identical) == (self.bad.verdict, self.bad.reason, identical)


@dataclass
class Sent:
    """Where an input lies."""

    bad: BadInput
    record: CollectionRecord
    partition: int
    offset: int


@dataclass
class Poisoned:
    """A stream with poison in it."""

    records: int
    indexed: int
    explained: Counter[str]
    restarts: int
    seconds: float
    memory_mib: dict[str, tuple[float, ...]]  # before, median of each quarter of the stream, highest, after
    faults: list[str] = field(default_factory=list)


def create(site: Site, kind: str) -> CollectionRecord:
    name = unique(kind)
    options = {
        "pictures": ["--attribute", "price:float"],
        "cosine": ["--vector", f"v:{DIMENSION}:cosine:float32"],
        "dot": ["--vector", f"v:{DIMENSION}:dot:float32"],
    }
    if kind == "notified":
        done(command(site, "collection", "create", name, "--source-topic", site.new_topic(PARTITIONS), "--notifications"))
    else:
        done(command(site, "collection", "create", name, "--partitions", str(PARTITIONS), *options[kind]))
    return site.collection(name)


def all_inputs(engines: Engines, record: CollectionRecord) -> Iterator[BadInput]:
    keys = CollectionKeys(record.name, record.incarnation)

    def put(data: bytes) -> str:
        key = keys.claim(hashlib.sha256(data).hexdigest())
        engines.store.put_if_absent(key, data)
        return key

    yield from pictures()
    yield from texts()
    yield from vectors()
    yield from claim_checks(put, keys.claim, engines.settings.max_picture_bytes)
    yield from notifications("headwater-no-such-bucket")
    if engines.settings.log_url.startswith("kafka://"):
        yield from kafka_batches()


def send_compressed(engines: Engines, record: CollectionRecord, partition: int, key: bytes | None, bad: BadInput) -> RecordPosition:
    """Produce as a client that compresses may: our own producer would refuse the size."""
    servers = engines.settings.log_url.removeprefix("kafka://")
    producer = KafkaProducer(bootstrap_servers=servers, compression_type=bad.kafka_compression, max_request_size=1 << 30)
    try:
        sent = producer.send(record.source_topic, key=key, value=bad.value, headers=list(bad.headers), partition=partition).get(60)
        return RecordPosition(sent.topic, sent.partition, sent.offset)
    finally:
        producer.close()


def send(engines: Engines, record: CollectionRecord, bad: Iterable[BadInput]) -> list[Sent]:
    """Produce as any Kafka client could: key, value and headers as they are, no check of ours."""
    producer, sent = engines.log.producer(), []
    try:
        for number, one in enumerate(bad):
            key = one.name.encode() if one.key == b"" else one.key
            partition = number % record.partitions
            if one.kafka_compression is not None:
                position = send_compressed(engines, record, partition, key, one)
            else:
                position = producer.send(record.source_topic, partition=partition, key=key, value=one.value, headers=one.headers).result(60)
            sent.append(Sent(one, record, position.partition, position.offset))
    finally:
        producer.close()
    return sent


def ends_of(engines: Engines, record: CollectionRecord) -> dict[int, int]:
    return {partition: held.next_offset for partition, held in engines.log.bounds(record.source_topic).items()}


def wait_settled(engines: Engines, record: CollectionRecord, seconds: float, alive: Sequence[Process]) -> None:
    ends = ends_of(engines, record)
    until(lambda: all(read_checkpoint(engines, record, p) >= end for p, end in ends.items()), seconds, "everything is committed", 0.3, alive)


def dead_letters(engines: Engines, record: CollectionRecord) -> dict[tuple[int, int], LogRecord]:
    """Dead letters by the place of their originals."""
    topic, found = record.dead_letter_topic, {}
    bounds = engines.log.bounds(topic)
    reader = engines.log.reader(topic, {partition: held.start_offset for partition, held in bounds.items()})
    try:
        while any(reader.position(partition) < held.next_offset for partition, held in bounds.items()):
            for letter in reader.poll(1.0):
                headers = dict(letter.headers)
                found[int(headers[DEAD_LETTER + "partition"]), int(headers[DEAD_LETTER + "offset"])] = letter
    finally:
        reader.close()
    return found


def is_identical(letter: LogRecord, bad: BadInput) -> bool:
    key = bad.name.encode() if bad.key == b"" else bad.key
    return (letter.key, letter.value, tuple(letter.headers[: len(bad.headers)])) == (key, bad.value, tuple(bad.headers))


def outcomes(engines: Engines, sent: Sequence[Sent]) -> list[Outcome]:
    """What the ledger and the dead-letter topic say of every input."""
    out: list[Outcome] = []
    ledgers: dict[tuple[str, int], list[LedgerRun]] = {}
    letters: dict[str, dict[tuple[int, int], LogRecord]] = {}
    for one in sent:
        name = one.record.name
        if (name, one.partition) not in ledgers:
            ledgers[name, one.partition] = read_partition(engines, one.record, one.partition).ledger
        if name not in letters:
            letters[name] = dead_letters(engines, one.record)
        run = next(r for r in ledgers[name, one.partition] if r.start_offset <= one.offset < r.next_offset and r.start_item == 0)
        letter = letters[name].get((one.partition, one.offset))
        sentence = "" if letter is None else (letter.header(DEAD_LETTER + "exception.message") or b"").decode()
        verdict = "partial" if run.partial else run.verdict
        out.append(Outcome(one.bad, verdict, run.reason, None if letter is None else is_identical(letter, one.bad), sentence))
    return out


def run_table(site: Site, roles: Sequence[str]) -> list[Outcome]:
    """Send every bad input, with good neighbours, and read what became of it."""
    site.environment["HEADWATER_DECODE_MEMORY_BYTES"] = str(DECODE_MEMORY_BYTES)
    kinds = ("pictures", "cosine", "dot", "notified") if site.kind == "kafka" else ("pictures", "cosine", "dot")  # a folder sends no notifications
    records = {kind: create(site, kind) for kind in kinds}
    with site.engines() as engines, running(site, *roles) as processes:
        by_kind: dict[str, list[BadInput]] = {kind: [] for kind in records}
        for bad in all_inputs(engines, records["pictures"]):
            by_kind.get(bad.collection, []).append(bad)
        good = BadInput("a good picture", "pictures", (("content-type", b"image/jpeg"),), sample(), "row")
        by_kind["pictures"] += [good, good]  # last in both partitions: the stream goes on
        sent = [one for kind, record in records.items() for one in send(engines, record, by_kind[kind])]
        for record in records.values():
            wait_settled(engines, record, 300.0, list(processes.values()))
        return outcomes(engines, sent)


def rss_mib(pid: int) -> float:
    """Resident memory of a process and its children, without what they share twice (proportional set size)."""
    total = 0
    for one in [pid, *children_of(pid)]:
        try:
            lines = Path(f"/proc/{one}/smaps_rollup").read_text().splitlines()
        except OSError:  # gone meanwhile
            continue
        total += sum(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
    return total / 1024


def children_of(pid: int) -> list[int]:
    try:
        direct = [int(child) for task in Path(f"/proc/{pid}/task").iterdir() for child in (task / "children").read_text().split()]
    except OSError:
        return []
    return direct + [grandchild for child in direct for grandchild in children_of(child)]


@contextmanager
def watched(processes: Sequence[Process]) -> Iterator[dict[str, list[float]]]:
    """Memory of each process, twice a second while the context lasts."""
    seen: dict[str, list[float]] = {process.name: [] for process in processes}
    stop = threading.Event()

    def watch() -> None:
        while not stop.wait(0.5):
            for process in processes:
                seen[process.name].append(rss_mib(process.pid))

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield seen
    finally:
        stop.set()
        thread.join()


def run_poisoned(site: Site, roles: Sequence[str], records: int, tell: Console | None = None) -> Poisoned:
    """A stream of pictures and captions in which every hundredth record is one of the bad ones."""
    site.environment["HEADWATER_DECODE_MEMORY_BYTES"] = str(DECODE_MEMORY_BYTES)
    record = create(site, "pictures")
    bad = [one for one in (*pictures(), *texts()) if one.verdict == "reject" and len(one.value) < 1_000_000]
    with site.engines() as engines, running(site, *roles) as processes:
        alive = list(processes.values())
        with MediaProducer(engines.log, record, engines.settings, bulk=True) as producer:
            for number in range(WARM_RECORDS):  # models are loaded, every size of batch was seen: what comes now is growth
                producer.send_picture(f"warm-{number}", sample(), "image/jpeg", caption=f"a crow {number}")
        wait_settled(engines, record, 300.0, alive)
        time.sleep(SEAL_SECONDS)
        before = {process.name: rss_mib(process.pid) for process in alive}
        began = time.monotonic()
        with watched(alive) as seen:
            sent = _send_poisoned(engines, record, records, bad)
            if tell is not None:
                tell.print(f"{records} records produced after {time.monotonic() - began:.0f} s")
            wait_settled(engines, record, 300.0 + SECONDS_PER_RECORD * records, alive)
            seconds = time.monotonic() - began
        time.sleep(2 * SEAL_SECONDS)
        after = {process.name: rss_mib(process.pid) for process in alive}
        found = outcomes(engines, sent)
        served = processes.get("query") or processes["up"]
        with served.client() as client:
            client.wait_for(record.name, ends_of(engines, record), 60.0)
            indexed = client.count(record.name) - WARM_RECORDS
        memory = {name: (before[name], *quarters(seen[name]), max(seen[name]), after[name]) for name in before}
        explained = Counter(str(one.reason) for one in found if one.verdict == "reject" and one.identical)
        report = Poisoned(records, indexed, explained, sum(process.lives - 1 for process in alive), seconds, memory)
    report.faults += [f"{one.bad.name}: {one.verdict} {one.reason}, promised {one.bad.verdict} {one.bad.reason}" for one in found if not one.is_kept]
    if indexed != records - len(sent):
        report.faults.append(f"{indexed} indexed, {records - len(sent)} were good")
    report.faults += growth_faults(memory)
    return report


def growth_faults(memory_mib: dict[str, tuple[float, ...]]) -> list[str]:
    """Workers (`embed`, or `up`, which holds one) whose memory grew along the stream."""
    found = []
    for name in memory_mib.keys() & {"embed", "up"}:
        first, last = memory_mib[name][1], memory_mib[name][4]
        if last > MOST_GROWTH * first + GROWTH_SLACK_MIB:
            found.append(f"{name}: memory grew from {first:.0f} MiB in the first quarter of the stream to {last:.0f} MiB in the last")
    return found


def quarters(samples: Sequence[float]) -> list[float]:
    """Median of each quarter of the samples: what grows with the stream grows from one to the next, what is a buffer does not."""
    return [float(np.median(part)) for part in np.array_split(np.array(samples), 4)]


def _send_poisoned(engines: Engines, record: CollectionRecord, records: int, bad: Sequence[BadInput]) -> list[Sent]:
    sent: list[Sent] = []
    with MediaProducer(engines.log, record, engines.settings, bulk=True) as producer:
        for number in range(records):
            if number % POISON_EVERY == POISON_EVERY // 2:
                sent += send(engines, record, [bad[len(sent) % len(bad)]])
            else:
                producer.send_picture(f"good-{number}", sample(), "image/jpeg", caption=f"a crow {number}")
    return sent


def show_table(found: Sequence[Outcome], kind: str, console: Console) -> None:
    table = Table("input", "bytes", "verdict", "reason", "dead letter identical", "as promised", "sentence", title=kind)
    for one in found:
        identical = "" if one.identical is None else "yes" if one.identical else "NO"
        kept = "yes" if one.is_kept else f"NO: {one.bad.verdict} {one.bad.reason or ''}"
        table.add_row(one.bad.name, f"{len(one.bad.value):,}", one.verdict, one.reason or "", identical, kept, one.sentence[:90])
    console.print(table)


def show_poisoned(report: Poisoned, kind: str, console: Console) -> None:
    columns = ("process", "before (MiB)", "1st quarter", "2nd", "3rd", "4th", "highest", "after")
    table = Table(*columns, title=f"{kind}: {report.records} records, every {POISON_EVERY}th poison; memory")
    for name, sizes in report.memory_mib.items():
        table.add_row(name, *(f"{size:.0f}" for size in sizes))
    console.print(table)
    console.print(
        f"{report.indexed} indexed, {report.explained.total()} explained {dict(report.explained)}, {report.restarts} restarts, "
        f"{report.seconds:.0f} s ({report.records / report.seconds:.0f}/s)",
        soft_wrap=True,
    )
    console.print("\n".join(f"FAULT: {fault}" for fault in report.faults[:20]) or "everything is accounted for", soft_wrap=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--log", choices=("sqlite", "kafka"), required=True)
    parser.add_argument("--records", type=int, default=0, help="length of the poisoned stream; none by default")
    asked = parser.parse_args()
    console, roles = Console(width=220, highlight=False), ("up",) if asked.log == "sqlite" else ("embed", "index", "query")
    with tempfile.TemporaryDirectory(prefix="headwater-bad-") as folder, open_site(asked.log, Path(folder), seal_seconds=SEAL_SECONDS) as site:
        found = run_table(site, roles)
        show_table(found, asked.log, console)
        failed = not all(one.is_kept for one in found)
        if asked.records:
            report = run_poisoned(site, roles, asked.records, console)
            show_poisoned(report, asked.log, console)
            failed = failed or bool(report.faults)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
