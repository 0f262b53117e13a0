"""The sample pictures stream in while the archiver runs, the archive is read back, and three ids are purged without a trace.

    python -m tests.system.archive_run --log sqlite|kafka [--archive-bytes 500000] [--rate 150]

The archive is read with the `webdataset` library, as training code would, and searched byte by byte: for pieces of the purged pictures that no other
sample has, and for their captions, each plain and in base64, in every object below the archive's prefix.

Takes: a site. Gives: tables, and every sentence about what does not agree. Owns: nothing that stays. Never: trusts a search that found nothing
before it found the same needles where they were.
"""

from __future__ import annotations

import argparse
import base64
import io
import json
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from backends.catalog.archive import archive_chain, read_tar, read_tar_index
from contracts.archive_manifest import TarEntry
from contracts.collection import CollectionRecord
from contracts.engines import Engines
from contracts.object_keys import CollectionKeys
from ingest.producer import MediaProducer
from tests.system.processes import Process, command, done, role, until
from tests.system.sites import Site, open_site, unique
from tests.system.stream import SAMPLES, samples

PARTITIONS = 2
VICTIMS = 3
PIECE_BYTES = 48
SETTLE_SECONDS = 60.0


@dataclass(frozen=True)
class Sample:
    """One sample picture; its file is its id."""

    id: str
    picture: bytes
    caption: str


@dataclass
class ArchiveReport:
    """The archive before and after the purge, how often what was purged was found in it, and what does not agree."""

    before: list[tuple[int, TarEntry]] = field(default_factory=list)
    after: list[tuple[int, TarEntry]] = field(default_factory=list)
    victims: list[str] = field(default_factory=list)
    purge: dict[str, Any] = field(default_factory=dict)
    pieces: int = 0
    objects: int = 0
    searched_bytes: int = 0
    found_before: dict[str, int] = field(default_factory=dict)
    found_after: dict[str, int] = field(default_factory=dict)
    read_before: int = 0
    read_after: int = 0
    faults: list[str] = field(default_factory=list)

    def check(self, holds: bool, sentence: str) -> None:
        if not holds:
            self.faults.append(sentence)


def every_sample() -> list[Sample]:
    return [Sample(file, (SAMPLES / file).read_bytes(), caption) for file, caption in samples()]


def chosen(found: list[Sample], record: CollectionRecord, producer: MediaProducer) -> list[Sample]:
    """Some samples across partitions, with a caption that is no part of another one."""
    alone = [one for one in found if sum(one.caption in other.caption for other in found) == 1]
    homes = [[one for one in alone if producer.partition(one.id) == partition] for partition in range(record.partitions)]
    picked = (homes[number % len(homes)] for number in range(VICTIMS))
    return [home[(number + 1) * len(home) // (VICTIMS + 1)] for number, home in enumerate(picked)]


def pieces(sample: Sample, others: bytes) -> list[bytes]:
    """Pieces from all over a picture that no other sample has: tables and headers of JPEG are alike in many."""
    starts = range(0, len(sample.picture) - PIECE_BYTES, 256)
    return [piece for start in starts if (piece := sample.picture[start : start + PIECE_BYTES]) not in others]


class _Run:
    def __init__(self, site: Site, engines: Engines, record: CollectionRecord, report: ArchiveReport) -> None:
        self.site, self.engines, self.record, self.report = site, engines, record, report
        self.samples = every_sample()
        self.prefix = CollectionKeys(record.name, record.incarnation).prefix + "archive/"

    def stream(self, rate: float) -> None:
        """Produce the samples, one by one."""
        due = time.monotonic()
        with MediaProducer(self.engines.log, self.record, self.engines.settings, store=self.engines.store) as producer:
            victims = chosen(self.samples, self.record, producer)
            for sample in self.samples:
                time.sleep(max(0.0, due - time.monotonic()))
                due += 1 / rate
                producer.send_picture(sample.id, sample.picture, "image/jpeg", sample.caption)
            producer.flush()
        self.victims = victims
        self.report.victims = [one.id for one in victims]

    def wait_archived(self, archiver: Process) -> None:
        ends = {partition: bound.next_offset for partition, bound in self.engines.log.bounds(self.record.source_topic).items()}

        def is_archived() -> bool:
            heads = {partition: archive_chain(self.engines.store, self.record, partition).head() for partition in ends}
            return all(read is not None and read.manifest.checkpoint.media_offset == ends[p] for p, read in heads.items())

        until(is_archived, SETTLE_SECONDS, "everything is archived", 0.2, [archiver])

    def tars(self) -> list[tuple[int, TarEntry]]:
        heads = {partition: archive_chain(self.engines.store, self.record, partition).head() for partition in range(self.record.partitions)}
        return [(partition, tar) for partition, read in heads.items() if read is not None for tar in read.manifest.tars]

    def read_back(self, tars: list[tuple[int, TarEntry]], wanted: list[Sample]) -> int:
        """Read all tars with the library; how many of the wanted pictures are there with their caption, byte for byte."""
        read: dict[str, tuple[bytes | None, bytes | None]] = {}
        with tempfile.TemporaryDirectory(dir=self.site.folder) as folder:
            for described, sample in _library(self.engines, tars, Path(folder)):
                if described["value"] is not None:
                    self.report.check(described["id"] not in read, f"{described['id']} is in two samples")
                    read[described["id"]] = sample.get("jpg"), sample.get("txt")
        same = [one.id for one in wanted if read.get(one.id) == (one.picture, one.caption.encode())]
        strange = read.keys() ^ {one.id for one in wanted}
        self.report.check(
            len(same) == len(wanted) and not strange, f"{len(same)} of {len(wanted)} read back the same; not wanted or missing: {strange}"
        )
        return len(same)

    def check_index(self, tars: list[tuple[int, TarEntry]]) -> None:
        """Every row of every index leads to the members of its record."""
        for _, tar in tars:
            data = read_tar(self.engines.store, tar)
            for row in read_tar_index(self.engines.store, tar).rows():
                if row.start is not None:
                    names = tarfile.open(fileobj=io.BytesIO(data[row.start : row.start + row.size_bytes])).getnames()
                    self.report.check({name.partition(".")[0] for name in names} == {f"{row.offset:020d}"}, f"{tar.key}: row {row.offset} is wrong")

    def search(self) -> dict[str, int]:
        """How often each victim's pieces and caption, plain and in base64, occur in the objects of the archive."""
        objects = [found.data for info in self.engines.store.list(self.prefix) if (found := self.engines.store.get(info.key)) is not None]
        self.report.objects, self.report.searched_bytes = len(objects), sum(map(len, objects))
        counts = {}
        for victim in self.victims:
            own = pieces(victim, b"\0".join(one.picture for one in self.samples if one.id != victim.id))
            self.report.check(len(own) >= 5, f"{victim.id}: only {len(own)} pieces of its picture are its own")
            self.report.pieces += len(own)
            needles = [*own, base64.b64encode(victim.picture), victim.caption.encode(), base64.b64encode(victim.caption.encode())]
            counts[victim.id] = sum(data.count(needle) for data in objects for needle in needles)
        return counts


def _library(engines: Engines, tars: list[tuple[int, TarEntry]], folder: Path) -> Iterator[tuple[dict[str, Any], dict[str, bytes]]]:
    """Samples as the webdataset library gives them, each with its description."""
    import webdataset

    paths = [folder / f"{partition}-{tar.start_offset:020d}.tar" for partition, tar in tars]
    for path, (_, tar) in zip(paths, tars, strict=True):
        path.write_bytes(read_tar(engines.store, tar))
    for sample in webdataset.WebDataset([str(path) for path in paths], shardshuffle=False):
        yield json.loads(sample["json"]), sample


def archive_run(site: Site, archive_bytes: int = 500_000, rate: float = 150.0) -> ArchiveReport:
    """Stream, archive, read back, purge, search.

    Parameters
    ----------
    site : Site
        Where.
    archive_bytes : int
        Size of a tar, in bytes.
    rate : float
        Pictures a second.
    """
    name, report = unique("archive-run"), ArchiveReport()
    done(command(site, "collection", "create", name, "--partitions", str(PARTITIONS)))
    archiver = role("archive", site)
    archiver.arguments += ["--collection", name]
    archiver.variables |= {"HEADWATER_ARCHIVE_BYTES": str(archive_bytes), "HEADWATER_ARCHIVE_SECONDS": "2"}
    with site.engines() as engines:
        run = _Run(site, engines, site.collection(name), report)
        try:
            archiver.start()
            archiver.wait_ready()
            run.stream(rate)
            run.wait_archived(archiver)
            report.before = run.tars()
            run.check_index(report.before)
            report.read_before = run.read_back(report.before, run.samples)
            report.found_before = run.search()
            report.purge = json.loads(done(command(site, "purge", name, *report.victims, "--yes", "--json")))
            run.wait_archived(archiver)  # the deletes too
        finally:
            archiver.end()
        report.after, report.pieces = run.tars(), 0
        run.check_index(report.after)
        report.read_after = run.read_back(report.after, [one for one in run.samples if one.id not in report.victims])
        report.found_after = run.search()
    _judge(report)
    return report


def _judge(report: ArchiveReport) -> None:
    report.check(len(report.before) > PARTITIONS, f"{len(report.before)} tars are too few to tell anything")
    report.check(all(report.found_before.values()), f"the search does not find what is there: {report.found_before}")
    report.check(not any(report.found_after.values()), f"purged bytes are left: {report.found_after}")
    removed = report.purge["done"]["records_removed"]
    report.check(removed == VICTIMS, f"the purge says that it removed {removed} records")
    for partition in range(PARTITIONS):
        tars = [tar for at, tar in report.after if at == partition]
        follows = all(one.next_offset <= two.start_offset for one, two in zip(tars, tars[1:], strict=False))
        report.check(follows, f"tars of partition {partition} overlap")


def _tars(title: str, tars: list[tuple[int, TarEntry]]) -> Iterator[Table]:
    held = Table("partition", "tar", "bytes", "records", title=f"tars, {title}")
    index = Table("partition", "offsets", "tar", "its index at", "bytes", title=f"index, {title}")
    for partition, tar in tars:
        name = "/".join(tar.key.split("/")[-2:])
        held.add_row(str(partition), name, f"{tar.size_bytes:,}", str(tar.records))
        index.add_row(str(partition), f"{tar.start_offset} to {tar.next_offset - 1}", name, f"{tar.index_start:,}", f"{tar.index_bytes:,}")
    held.add_row("", f"{len(tars)} tars", f"{sum(tar.size_bytes for _, tar in tars):,}", str(sum(tar.records for _, tar in tars)))
    yield held
    yield index


def show(report: ArchiveReport, kind: str, console: Console) -> None:
    """Print the tables and what was found."""
    for title, tars in ((f"{kind}", report.before), (f"{kind}, after the purge", report.after)):
        for table in _tars(title, tars):
            console.print(table)
    told = report.purge["done"]
    console.print(f"read with webdataset: {report.read_before} pictures with their captions, byte-identical", soft_wrap=True)
    console.print(
        f"purged: {', '.join(report.victims)}: {told['tars_rewritten']} tars rewritten, {told['records_removed']} records removed", soft_wrap=True
    )
    console.print(
        f"searched {report.objects} objects ({report.searched_bytes:,} bytes) for {report.pieces} pieces of the purged pictures and their captions, "
        f"plain and in base64: {sum(report.found_before.values())} found before the purge, {sum(report.found_after.values())} found after it",
        soft_wrap=True,
    )
    console.print(f"read with webdataset after the purge: {report.read_after} pictures with their captions, byte-identical", soft_wrap=True)
    console.print("\n".join(f"FAULT: {fault}" for fault in report.faults) or "everything is accounted for", soft_wrap=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--log", choices=("sqlite", "kafka"), required=True)
    parser.add_argument("--archive-bytes", type=int, default=500_000)
    parser.add_argument("--rate", type=float, default=150.0)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="headwater-archive-") as folder, open_site(asked.log, Path(folder)) as site:
        report = archive_run(site, asked.archive_bytes, asked.rate)
    show(report, asked.log, Console(width=120, highlight=False))
    return 1 if report.faults else 0


if __name__ == "__main__":
    sys.exit(main())
