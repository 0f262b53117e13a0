"""Kill -9 each role in turn while pictures stream in, start it again, and take account at the end.

    python -m tests.system.kill_run --pictures 2000 --log kafka|sqlite [--processes three|up] [--rounds 2] [--rate 15]

Takes: a site (SQLite log and folder store, or Kafka and MinIO). Gives: a table of kills, and an account. Owns: nothing that stays.
Never: waits for quiet before a kill: the producer goes on at its rate throughout.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console
from rich.table import Table

from contracts.collection import CollectionRecord
from contracts.engines import Engines
from headwater.client import HeadwaterClient
from indexer.partition_source import ChainScan, PartitionSource
from tests.system.accounts import Account, doubled_in_pages, read_checkpoint, settled, take_account
from tests.system.processes import ROOT, Process, command, done, environment_of, running, until
from tests.system.sites import Site, open_site, unique
from tests.system.stream import Acknowledged, next_offsets, read_journal

SEAL_SECONDS = 2.0
PARTITIONS = 4
RECOVERY_SECONDS = 300.0
SETTLE_SECONDS = 2.0


@dataclass(frozen=True)
class Plan:
    """What to do: `roles` are the processes, killed in this order, `rounds` times each."""

    pictures: int = 2000
    rate: float = 15.0
    rounds: int = 2
    roles: tuple[str, ...] = ("embed", "index", "query")


@dataclass(frozen=True)
class Kill:
    """One kill: what the producer had acknowledged by then, and seconds from the kill until the role did new work on the first and on every
    partition; after a long pause the last partition also waits for the records that came meanwhile in the others.
    """

    role: str
    acknowledged: int
    was_streaming: bool
    first_seconds: float
    recovery_seconds: float
    doubled: int


@dataclass
class KillReport:
    """What happened, and whether everything is accounted for."""

    kills: list[Kill] = field(default_factory=list)
    account: Account = field(default_factory=Account)
    stream_seconds: float = 0.0
    drain_seconds: float = 0.0


class _Run:
    """One run: processes, the producer's journal, and the probes that tell when a role works again."""

    def __init__(self, site: Site, plan: Plan, engines: Engines, record: CollectionRecord, processes: dict[str, Process]) -> None:
        self.site, self.plan, self.engines, self.record, self.processes = site, plan, engines, record, processes
        self.journal, self.hurry = site.folder / "journal.jsonl", site.folder / "hurry"
        self.served = processes.get("query") or processes["up"]
        self.scans: dict[int, ChainScan] = {}

    def acknowledged(self) -> list[Acknowledged]:
        return read_journal(self.journal)[0]

    def chain_end(self, partition: int) -> int:
        """Media offset behind the last embedded record (every reader of the vectors topic computes the same)."""
        if partition not in self.scans:
            self.scans[partition] = PartitionSource(self.engines, self.record, self.record.index(), partition).chain_scan()
        return self.scans[partition].advance()

    def checkpoint(self, partition: int) -> int:
        return read_checkpoint(self.engines, self.record, partition)

    def seen(self, client: HeadwaterClient) -> Callable[[int], int]:
        """Media offset that the query service has read, by partition; nothing while it does not serve."""
        offsets = client.freshness(self.record.name).offsets if client.ready() else {}
        return lambda partition: offsets.get(partition, -1)

    def kill(self, role: str) -> Kill:
        process = self.processes[role]
        entries, is_done = read_journal(self.journal)
        began = time.monotonic()
        process.kill()
        before = {probe: self._positions(probe) for probe in ("embed", "index") if role in (probe, "up")}
        process.start()
        for probe, positions in before.items():
            self._wait_moved(probe, positions, process, any)
        first_seconds = time.monotonic() - began
        for probe, positions in before.items():
            self._wait_moved(probe, positions, process, all)
        if role in ("query", "up"):
            self._wait_served(next_offsets(entries), process)
        seconds = time.monotonic() - began
        first_seconds = first_seconds if before else seconds
        with self.served.client() as client:
            doubled = doubled_in_pages(client, self.record.name)
        return Kill(role, len(entries), not is_done, first_seconds, seconds, doubled)

    def _positions(self, probe: str) -> dict[int, int]:
        position = self.chain_end if probe == "embed" else self.checkpoint
        return {partition: position(partition) for partition in range(PARTITIONS)}

    def _wait_moved(self, probe: str, before: dict[int, int], process: Process, how_many: Callable[[Iterable[bool]], bool]) -> None:
        """Any partition, or all of them, is ahead of where the dead process left it, or at the end of its topic."""

        def has_moved() -> bool:
            ends = self.engines.log.bounds(self.record.source_topic)
            return how_many(now > before[p] or now == ends[p].next_offset for p, now in self._positions(probe).items())

        until(has_moved, RECOVERY_SECONDS, f"{probe} works again", 0.3, [process])

    def _wait_served(self, ends: dict[int, int], process: Process) -> None:
        """The service has at least what was acknowledged before the kill and embedded since."""
        with process.client() as client:

            def serves() -> bool:
                seen = self.seen(client)
                return all(seen(p) >= min(end, self.chain_end(p)) for p, end in ends.items())

            until(serves, RECOVERY_SECONDS, "the query service serves again", 0.2, [process])

    def start_producer(self) -> subprocess.Popen[bytes]:
        arguments = [self.record.name, "--pictures", str(self.plan.pictures), "--rate", str(self.plan.rate), "--journal", str(self.journal)]
        arguments += ["--hurry", str(self.hurry)]
        return subprocess.Popen(
            [sys.executable, "-m", "tests.system.stream", *arguments], cwd=ROOT, env=environment_of(self.site.environment), stdin=subprocess.DEVNULL
        )

    def wait_flowing(self) -> None:
        """The first pictures are embedded, committed and served: kills hit a working system."""
        alive = list(self.processes.values())
        until(lambda: all(self.checkpoint(p) > 0 for p in range(PARTITIONS)), RECOVERY_SECONDS, "the first commits", 0.3, alive)

    def drain(self, producer: subprocess.Popen[bytes]) -> list[Acknowledged]:
        """Wait for the producer's end, then until everything is committed and served."""
        assert producer.wait(600) == 0, "the producer failed"
        entries, is_done = read_journal(self.journal)
        assert is_done, "the journal is not complete"
        alive = list(self.processes.values())
        until(lambda: settled(self.engines, self.record, entries), RECOVERY_SECONDS, "everything is committed", 0.2, alive)
        with self.served.client() as client:
            client.wait_for(self.record.name, next_offsets(entries), RECOVERY_SECONDS)
        return entries


def kill_run(site: Site, plan: Plan, tell: Callable[[Kill], None] = lambda kill: None) -> KillReport:
    """Stream, kill, restart, account.

    Parameters
    ----------
    site : Site
        Opened with ``seal_seconds=SEAL_SECONDS``.
    plan : Plan
        How much, how fast, what to kill.
    tell : callable
        Called after each kill.
    """
    name, report = unique("kill"), KillReport()
    done(command(site, "collection", "create", name, "--partitions", str(PARTITIONS)))
    record = site.collection(name)
    with ExitStack() as stack:
        engines = stack.enter_context(site.engines())
        processes = stack.enter_context(running(site, *plan.roles, collection=name))
        run = _Run(site, plan, engines, record, processes)
        began = time.monotonic()
        producer = run.start_producer()
        stack.callback(producer.kill)
        run.wait_flowing()
        for _ in range(plan.rounds):
            for role in plan.roles:
                time.sleep(SETTLE_SECONDS)
                report.kills.append(run.kill(role))
                tell(report.kills[-1])
        run.hurry.touch()
        producer.wait(600)
        report.stream_seconds = time.monotonic() - began
        entries = run.drain(producer)
        report.drain_seconds = time.monotonic() - began - report.stream_seconds
        with run.served.client() as client:
            report.account = take_account(engines, record, client, entries)
    return report


def faults(report: KillReport) -> list[str]:
    """Everything that a run did not keep; none where it held."""
    late = [kill.role for kill in report.kills if not kill.was_streaming]
    found = list(report.account.faults)
    if late:
        found.append(f"the stream was over before {late} was killed: lower the rate")
    if any(kill.doubled for kill in report.kills):
        found.append("an id came twice in one page of a scan while the stream went on")
    return found


def show(report: KillReport, plan: Plan, kind: str, console: Console) -> None:
    """Print the tables."""
    table = Table(
        "killed -9", "records acknowledged by then", "streaming", "works again after (s)", "on every partition (s)", "ids twice in a page then"
    )
    for kill in report.kills:
        streaming = "yes" if kill.was_streaming else "NO"
        table.add_row(kill.role, str(kill.acknowledged), streaming, f"{kill.first_seconds:.1f}", f"{kill.recovery_seconds:.1f}", str(kill.doubled))
    console.print(table)
    account = report.account
    console.print(
        f"{kind}: {plan.pictures} pictures at up to {plan.rate:g} records/s in {report.stream_seconds:.0f} s, all committed and served "
        f"{report.drain_seconds:.1f} s later",
        soft_wrap=True,
    )
    console.print(
        f"acknowledged records {account.acknowledged}, distinct live ids {account.expected}; count {account.counted}, scan {account.scanned}, "
        f"stored live rows {account.stored}; lost {account.lost}, twice {account.doubled}",
        soft_wrap=True,
    )
    console.print(f"{account.segments} segments, {account.manifests} manifests, {account.claims} claims in {PARTITIONS} partitions", soft_wrap=True)
    found = faults(report)
    console.print("everything is accounted for" if not found else "\n".join(f"FAULT: {fault}" for fault in found), soft_wrap=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=2000)
    parser.add_argument("--log", choices=("sqlite", "kafka"), required=True)
    parser.add_argument("--processes", choices=("three", "up"), default="three", help="a process per role, or `headwater up`")
    parser.add_argument("--rounds", type=int, default=2, help="kills per process")
    parser.add_argument("--rate", type=float, default=15.0, help="records per second")
    asked = parser.parse_args()
    console = Console(width=140, highlight=False)
    plan = Plan(asked.pictures, asked.rate, asked.rounds, ("up",) if asked.processes == "up" else Plan.roles)
    with (
        tempfile.TemporaryDirectory(prefix="headwater-kill-") as folder,
        open_site(asked.log, Path(folder), seal_seconds=SEAL_SECONDS) as site,
    ):
        report = kill_run(
            site,
            plan,
            lambda kill: console.print(
                f"killed {kill.role}, back after {kill.first_seconds:.1f} s, on every partition after {kill.recovery_seconds:.1f} s"
            ),
        )
        show(report, plan, asked.log, console)
    return 1 if faults(report) else 0


if __name__ == "__main__":
    sys.exit(main())
