"""Pictures are dead-lettered, some of their ids change meanwhile, the rule is mended, and replay brings back exactly the rest.

    python -m tests.system.replay_run --log sqlite|kafka [--pictures 50] [--changed 20]

The embed worker first runs with a `max_picture_pixels` that is too small. Half of the later updates and deletes are committed before the replay, the
other half only lies in the tail then. Every dead letter is replayed by name, also those that something newer has superseded, so that what is proven
is the order of versions and not the tool's choice; what the tool would choose by itself is asked with `--dry-run`.

Takes: a site. Gives: a table, and every sentence about what does not agree. Owns: nothing that stays. Never: looks at one side only: the service is
asked by count and scan, in the tail and after the commit, and the store is read byte by byte.
"""

from __future__ import annotations

import argparse
import io
import json
import sys
import tempfile
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image
from rich.console import Console
from rich.table import Table

from contracts.collection import CollectionRecord
from contracts.engines import Engines
from contracts.log import RecordPosition
from headwater.client import HeadwaterClient
from ingest.producer import MediaProducer
from tests.indexer.stored import StoredPartition, read_partition
from tests.system.accounts import read_checkpoint, scan
from tests.system.processes import Process, command, done, role, running, until
from tests.system.sites import Site, open_site, unique
from tests.system.stream import SAMPLES, samples

PARTITIONS = 2
TIGHT_PIXELS = 9_000
"""Below every sample picture."""
SETTLE_SECONDS = 180.0
Place = tuple[int, int]


@dataclass
class ReplayReport:
    """Ids by what happened to them, where their newest record lies, and what was found at the end."""

    dead_lettered: list[str] = field(default_factory=list)
    updated: list[str] = field(default_factory=list)
    deleted: list[str] = field(default_factory=list)
    neighbours: list[str] = field(default_factory=list)
    newest: dict[str, RecordPosition] = field(default_factory=dict)
    chosen: int = 0
    left_out: dict[str, int] = field(default_factory=dict)
    replayed: dict[Place, Place] = field(default_factory=dict)
    in_tail: tuple[int, int] = (0, 0)
    committed: tuple[int, int] = (0, 0)
    stored: int = 0
    came_back: int = 0
    stayed: int = 0
    states: dict[str, int] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)

    @property
    def expected(self) -> set[str]:
        """Ids that must be live at the end."""
        return {*self.dead_lettered, *self.neighbours} - set(self.deleted)

    def check(self, holds: bool, sentence: str) -> None:
        if not holds:
            self.faults.append(sentence)


class _Run:
    def __init__(self, site: Site, engines: Engines, record: CollectionRecord, report: ReplayReport) -> None:
        self.site, self.engines, self.record, self.report = site, engines, record, report
        self.producer = MediaProducer(engines.log, record, engines.settings)

    def put(self, item_id: str, data: bytes) -> None:
        self.report.newest[item_id] = self.producer.send_picture(item_id, data, "image/jpeg").result(30)

    def delete(self, item_id: str) -> None:
        self.report.newest[item_id] = self.producer.delete(item_id).result(30)

    def change(self, updated: list[str], deleted: list[str]) -> None:
        for item_id in updated:
            self.put(item_id, small_picture())
        for item_id in deleted:
            self.delete(item_id)
        self.report.updated += updated
        self.report.deleted += deleted

    def ends(self) -> dict[int, int]:
        return {partition: bound.next_offset for partition, bound in self.engines.log.bounds(self.record.source_topic).items()}

    def wait_committed(self, *alive: Process) -> None:
        ends = self.ends()
        until(
            lambda: all(read_checkpoint(self.engines, self.record, p) == end for p, end in ends.items()),
            SETTLE_SECONDS,
            "all is committed",
            0.2,
            alive,
        )

    def list_letters(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(done(command(self.site, "dead-letter", "list", self.record.name, "--json", "--limit", "1000")))
        return found

    def replay(self, *arguments: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(done(command(self.site, "dead-letter", "replay", self.record.name, *arguments, "--yes", "--json")))
        return found

    def served(self, client: HeadwaterClient, name: str) -> tuple[int, int]:
        """Count, and ids of a full scan, which must be the right ones."""
        found, wanted = scan(client, self.record.name), self.report.expected
        self.report.check(max(found.values(), default=1) == 1, f"{name}: an id comes twice in the scan")
        self.report.check(set(found) == wanted, f"{name}: the scan differs in {sorted(set(found) ^ wanted)[:5]}")
        return client.count(self.record.name), len(found)

    def account(self) -> None:
        """The store: every id lies where its newest record, or its replay, lies."""
        stored = [read_partition(self.engines, self.record, partition) for partition in range(PARTITIONS)]
        live = {item_id: (p, offset) for p, part in enumerate(stored) for item_id, (offset, _) in part.live.items()}
        report = self.report
        report.stored = sum(part.live_rows for part in stored)
        right = {item_id: self._right_place(item_id) for item_id in report.expected}
        differ = sorted(item_id for item_id in live.keys() | right.keys() if live.get(item_id) != right.get(item_id))
        report.check(not differ, f"stored rows are not the newest of {len(differ)} ids, such as {differ[:5]}")
        report.came_back = sum(place in set(report.replayed.values()) for place in live.values())
        report.check(all(part.is_tiled() for part in stored), "a ledger does not tile")
        verdicts = Counter(_verdict(stored, place) for place in report.replayed.values())
        report.stayed = verdicts["superseded"]
        report.check(verdicts.keys() <= {"row", "superseded"} and verdicts["row"] == report.came_back, f"verdicts of the replays: {dict(verdicts)}")

    def _right_place(self, item_id: str) -> Place:
        position = self.report.newest[item_id]
        place = position.partition, position.offset
        is_changed = item_id in self.report.updated or item_id in self.report.neighbours
        return place if is_changed else self.report.replayed.get(place, (-1, -1))


def _verdict(stored: list[StoredPartition], place: Place) -> str:
    return stored[place[0]].verdicts()[place[1], 0]


def small_picture() -> bytes:
    """A sample picture made small enough for the tight rule."""
    sink = io.BytesIO()
    with Image.open(SAMPLES / samples()[0][0]) as picture:
        picture.resize((64, 64)).save(sink, "JPEG")
    return sink.getvalue()


def _place(text: str) -> Place:
    partition, _, offset = text.partition("/")
    return int(partition), int(offset)


def replay_run(site: Site, pictures: int = 50, changed: int = 20) -> ReplayReport:
    """Reject, change, mend, replay, account.

    Parameters
    ----------
    site : Site
        Opened with a short `seal_seconds`.
    pictures, changed : int
        How many are dead-lettered, and how many of those are updated or deleted since (half of them each); multiples of 4.
    """
    name, report = unique("replay"), ReplayReport()
    done(command(site, "collection", "create", name, "--partitions", str(PARTITIONS)))
    files = [file for file, _ in samples()]
    with site.engines() as engines, running(site, "index", "query", collection=name) as processes:
        run = _Run(site, engines, site.collection(name), report)
        embed, index, query = role("embed", site, name), processes["index"], processes["query"]
        embed.variables["HEADWATER_MAX_PICTURE_PIXELS"] = str(TIGHT_PIXELS)
        try:
            embed.start()
            for number in range(pictures):
                report.dead_lettered.append(f"large/{number}")
                run.put(report.dead_lettered[-1], (SAMPLES / files[number % len(files)]).read_bytes())
                if number % 5 == 0:
                    report.neighbours.append(f"small/{number}")
                    run.put(report.neighbours[-1], small_picture())
            run.wait_committed(embed, index, query)
            counts = run.list_letters()["reasons"]
            report.check(counts == {"too_many_pixels": {"dead": pictures}}, f"dead letters before: {counts}")
            quarter = changed // 4
            ids = report.dead_lettered[::2] + report.dead_lettered[1::2]
            run.change(ids[:quarter], ids[quarter : 2 * quarter])
            run.wait_committed(embed, index, query)
            index.stop()
            run.change(ids[2 * quarter : 3 * quarter], ids[3 * quarter : changed])
            _replay_and_account(run, embed, index, query)
        finally:
            embed.end()
            run.producer.close()
    _judge(report, pictures, changed)
    return report


def _replay_and_account(run: _Run, embed: Process, index: Process, query: Process) -> None:
    report = run.report
    with query.client() as client:
        client.wait_for(run.record.name, run.ends(), SETTLE_SECONDS)
        embed.stop()
        del embed.variables["HEADWATER_MAX_PICTURE_PIXELS"]  # the rule is mended
        embed.start()
        planned = run.replay("--dry-run")
        report.chosen, report.left_out = len(planned["planned"]), planned["left_out"]
        letters = run.list_letters()["dead_letters"]
        named = run.replay(*(f"{letter['partition']}/{letter['offset']}" for letter in letters))
        report.replayed = {_place(origin): _place(at) for origin, at in named["replayed"].items()}
        client.wait_for(run.record.name, run.ends(), SETTLE_SECONDS)
        report.in_tail = run.served(client, "in the tail")
        index.start()
        run.wait_committed(embed, index, query)
        client.wait_for(run.record.name, run.ends(), SETTLE_SECONDS)
        report.committed = run.served(client, "committed")
    run.account()
    report.states = dict(Counter(letter["state"] for letter in run.list_letters()["dead_letters"]))


def _judge(report: ReplayReport, pictures: int, changed: int) -> None:
    back, live = pictures - changed, len(report.expected)
    report.check(len(report.replayed) == pictures, f"{len(report.replayed)} of {pictures} were replayed")
    report.check(
        (report.chosen, report.left_out) == (back, {"superseded": changed}), f"the tool would replay {report.chosen}, without {report.left_out}"
    )
    report.check(report.came_back == back, f"{report.came_back} came back, {back} should")
    report.check(report.stayed == changed, f"{report.stayed} replays were superseded, {changed} should be")
    report.check(report.in_tail == report.committed == (live, live) and report.stored == live, f"{live} should be live: see the table")
    report.check(report.states == {"replayed": back, "superseded": changed}, f"states afterwards: {report.states}")


def show(report: ReplayReport, kind: str, console: Console) -> None:
    """Print the table."""
    table = Table("what", "count", title=f"replay after a raised max_picture_pixels, {kind}")
    rows = [
        ("dead-lettered", len(report.dead_lettered)),
        ("  of these updated since", len(report.updated)),
        ("  of these deleted since", len(report.deleted)),
        ("replay would choose", report.chosen),
        ("replayed by name", len(report.replayed)),
        ("came back", report.came_back),
        ("stayed as they were", report.stayed),
        ("should be live", len(report.expected)),
        ("count, scan: in the tail", "{}, {}".format(*report.in_tail)),
        ("count, scan: committed", "{}, {}".format(*report.committed)),
        ("stored live rows", report.stored),
    ]
    for what, count in rows:
        table.add_row(what, str(count))
    console.print(table)
    console.print("\n".join(f"FAULT: {fault}" for fault in report.faults) or "everything is accounted for", soft_wrap=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--log", choices=("sqlite", "kafka"), required=True)
    parser.add_argument("--pictures", type=int, default=50)
    parser.add_argument("--changed", type=int, default=20)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="headwater-replay-") as folder, open_site(asked.log, Path(folder), seal_seconds=1.0) as site:
        report = replay_run(site, asked.pictures, asked.changed)
    show(report, asked.log, Console(width=120, highlight=False))
    return 1 if report.faults else 0


if __name__ == "__main__":
    sys.exit(main())
