"""One fault on one fresh collection: its load, its roles, the moment the fault is over, and the account afterwards.

Takes: the ground, a variant. Gives: an `Outcome`. Owns: the collection, the processes and the journals of the trial.
Never: leaves a process running; calls a fault survived before a second process has checked.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path
from signal import SIGCONT
from typing import Any

from backends.catalog.admin import CollectionRequest, create_collection, delete_collection
from backends.catalog.collections import CollectionCatalog
from contracts.collection import CollectionRecord
from contracts.engines import Engines
from contracts.errors import HeadwaterError
from headwater.wiring import open_engines
from tests.faults.checker import Account
from tests.faults.ground import Ground
from tests.faults.journal import Journal, read_journals
from tests.faults.load import ATTRIBUTES, DIMENSION, FIELD
from tests.query.writer import own_field
from tests.system.accounts import read_checkpoint
from tests.system.processes import ROOT, Process, environment_of, until
from tests.system.sites import unique

QUICK = {
    "seal_seconds": 0.7,
    "embed_watchdog_seconds": 0.5,
    "maintain_seconds": 0.3,
    "gc_seconds": 2.0,
    "compact_fan_in": 3,
    "compact_dead_share": 0.1,
    "log_level": "INFO",
}
"""Settings under which everything happens within seconds."""
RECOVER_SECONDS = 90.0
"""INV-10: after a fault is over, everything that was acknowledged by then is committed and served within this time."""


@dataclass(frozen=True)
class Variant:
    """One way of running a fault. `number` is the fault's in the matrix.

    `roles` are started before `run` is called; `rate` is 0 for faults without a stream: such a one states its own check, and its counts are null.
    `ids` bounds the ids of the stream: few of them make many updates of each. `request` makes another collection than the usual one,
    and `on` another ground, such as one with three brokers. Nothing runs beside one that `is_alone`, since it harms the servers, or measures.
    `allowed` are codes of `headwater verify` that are as they should be afterwards.
    `settings` come on top of `QUICK`. `recover_seconds` is the time within which INV-10 has to hold.
    """

    number: int
    name: str
    run: Callable[[Trial], None]
    roles: tuple[str, ...] = ("embed", "index")
    rate: float = 60.0
    ids: int = 1_000_000
    partitions: int = 2
    request: Callable[[Trial], CollectionRequest] | None = None
    is_alone: bool = False
    allowed: tuple[str, ...] = ()
    on: Callable[[Ground, Path], AbstractContextManager[Ground]] = lambda ground, folder: nullcontext(ground)
    settings: dict[str, object] = field(default_factory=dict)
    recover_seconds: float = RECOVER_SECONDS


@dataclass
class Outcome:
    """What became of one variant; a line of results/faults.json."""

    fault: int
    name: str
    status: str
    reason: str = ""
    acknowledged: int | None = None
    live: int | None = None
    lost: int | None = None
    duplicated: int | None = None
    recover_seconds: float | None = None
    ok: bool = False
    seconds: float = 0.0
    notes: list[str] = field(default_factory=list)
    sentences: list[str] = field(default_factory=list)


class Trial:
    """A fault's hands: `start`, `kill`, `checkpoint`, `load`, `over`.

    Parameters
    ----------
    ground : Ground
        Servers.
    variant : Variant
        What is run.
    folder : Path
        Journals and the processes' standard error.
    """

    def __init__(self, ground: Ground, variant: Variant, folder: Path) -> None:
        self.ground, self.variant = ground, variant
        self.site = ground.site(folder, **(QUICK | variant.settings))
        self.folder = folder
        self.engines: Engines
        self.record: CollectionRecord
        self.roles: dict[str, Process] = {}
        self.journals: list[Path] = []
        self.notes: list[str] = []
        self.recover_seconds: float | None = None
        self.given_up: dict[int, tuple[int, int]] = {}  # media offsets that an operator called lost, per partition
        self.account: Account | None = None  # of a fault that takes it by itself, before nothing more can be settled
        self.stack = ExitStack()  # what a fault opens and the trial closes, after its processes are gone
        self._loads: dict[Path, tuple[subprocess.Popen[bytes], Path]] = {}

    # ---- the collection ----------------------------------------------------------------------------------------------

    @contextmanager
    def opened(self) -> Iterator[None]:
        """Engines of this process, a fresh collection, the variant's roles; all processes are gone when the context ends."""
        with self.stack, open_engines(self.site.settings()) as self.engines:
            try:
                self.record = create_collection(self.engines, (self.variant.request or Trial.request)(self))
                for name in self.variant.roles:
                    self.role(name).start()
                if self.variant.rate:
                    self.start_load(self.variant.rate)
                for process in self.roles.values():
                    process.wait_ready()
                yield
            finally:
                for process in self.roles.values():
                    with suppress(AssertionError, ProcessLookupError):
                        os.kill(process.pid, SIGCONT)
                    process.end()
                for popen, _ in self._loads.values():
                    popen.kill()
                    popen.wait(30)

    def request(self) -> CollectionRequest:
        name = unique(f"f{self.variant.number}")
        fields = [own_field(FIELD, dimension=DIMENSION)]
        return CollectionRequest(name, fields, self.variant.partitions, partitioner="murmur2", archive="off", attributes=ATTRIBUTES)

    def drop(self) -> None:
        """Delete the collection, so that nobody works on it any longer."""
        if not hasattr(self, "record"):
            return
        with suppress(HeadwaterError), open_engines(self.site.settings()) as engines:
            if CollectionCatalog(engines.store).find(self.record.name) is not None:
                delete_collection(engines, self.record.name)

    # ---- roles -------------------------------------------------------------------------------------------------------

    def role(
        self,
        name: str,
        *,
        crash: Sequence[str] = (),
        parts: Sequence[str] = (),
        is_static: bool = True,
        label: str | None = None,
        collection: str | None = None,
        **settings: object,
    ) -> Process:
        """A role of this collection, not started yet; it takes the place of one with the same label that has ended.

        Parameters
        ----------
        name : str
            embed, index, maintain or archive.
        crash, parts : sequence of str
            ``--crash`` and ``--with`` of `tests.faults.role`.
        is_static : bool
            Give it a name in its group (`kafka_instance_id`), so that its successor need not wait for the session to time out.
        label : str, optional
            Name in `roles` and of its file; `name` where it is none.
        collection : str, optional
            Another collection than the trial's.
        settings
            Settings of this process alone.
        """
        label = label or name
        variables = {f"HEADWATER_{key.upper()}": str(value) for key, value in settings.items()} | {"PYTHONPATH": str(ROOT)}
        if is_static:
            variables["HEADWATER_KAFKA_INSTANCE_ID"] = label
        program = [sys.executable, "-m", "tests.faults.role"]
        for point in crash:
            program += ["--crash", point]
        for part in parts:
            program += ["--with", part]
        before = self.roles.get(label)
        if before is not None:
            before.end()
        self.roles[label] = Process(label, ["run", name, "--collection", collection or self.record.name], self.site, variables, [*program, "--"])
        return self.roles[label]

    def start(self, name: str, **options: Any) -> Process:
        """Start a role as `role` makes it, and wait until it runs."""
        process = self.role(name, **options)
        process.start()
        process.wait_ready()
        return process

    def crashes_at(self, name: str, point: str, seconds: float = 40.0) -> None:
        """Run a role in place of the one that runs until it kills itself at a point, then start a healthy one."""
        began = self.role(name, crash=[point])
        began.start()
        until(lambda: began.has_died() is not None, seconds, f"{name} dies at {point}")
        self.note(f"{name} died at {point}")
        self.start(name)

    def wait_stopped(self, process: Process, seconds: float = 60.0) -> None:
        """Wait until a process has stopped itself at a crash point (``=stop``)."""
        stat = Path(f"/proc/{process.pid}/stat")
        until(lambda: stat.read_text().rpartition(") ")[2][0] == "T", seconds, f"{process.name} stops", 0.05, [process])

    def wake(self, process: Process) -> None:
        """Let a stopped process go on where it was."""
        os.kill(process.pid, SIGCONT)

    def wait_logged(self, process: Process, text: str, seconds: float = 30.0) -> None:
        """Wait until a process has written this to its log."""
        until(lambda: text in process.stderr(), seconds, f"{process.name} says {text!r}", 0.1)

    def wait_advanced(self, seconds: float = 60.0) -> None:
        """Wait until every partition has committed further than now."""
        before = {partition: self.checkpoint(partition) for partition in range(self.record.partitions)}
        until(lambda: all(self.checkpoint(p) > offset for p, offset in before.items()), seconds, "every partition commits", 0.1)

    # ---- load --------------------------------------------------------------------------------------------------------

    def start_load(self, rate: float, records: int | None = None, ids: int | None = None) -> Path:
        """Start a producer of this collection; gives its journal. With `records` it ends by itself."""
        seed = len(self.journals) + 1
        journal, stop = self.folder / f"journal{seed}.jsonl", self.folder / f"stop{seed}"
        arguments = [self.record.name, "--journal", str(journal), "--stop", str(stop), "--rate", str(rate), "--seed", str(seed)]
        arguments += ["--ids", str(ids or self.variant.ids), *([] if records is None else ["--records", str(records)])]
        with (self.folder / f"load{seed}.stderr").open("wb") as stderr:
            popen = subprocess.Popen(
                [sys.executable, "-m", "tests.faults.load", *arguments],
                cwd=ROOT,
                env=environment_of(self.site.environment),
                stdin=subprocess.DEVNULL,
                stderr=stderr,
            )
        self._loads[journal] = (popen, stop)
        self.journals.append(journal)
        return journal

    def stop_loads(self, seconds: float = 120.0) -> None:
        """Let every producer finish what it has under way."""
        for _, stop in self._loads.values():
            stop.touch()
        for journal, (popen, _) in self._loads.items():
            assert popen.wait(seconds) == 0, f"the load of {journal.name} ended with {popen.returncode}"

    def acknowledged(self) -> Journal:
        return read_journals(self.journals)

    def wait_acknowledged(self, more: int, seconds: float = 60.0) -> None:
        """Wait until so many more items were acknowledged than now: the fault meets a stream that flows."""
        before = len(self.acknowledged().entries)
        until(lambda: len(self.acknowledged().entries) >= before + more, seconds, f"{more} more items are acknowledged")

    # ---- looking -----------------------------------------------------------------------------------------------------

    def note(self, sentence: str) -> None:
        """Say what happened; it stands in the results."""
        self.notes.append(sentence)

    def checkpoint(self, partition: int) -> int:
        return read_checkpoint(self.engines, self.record, partition)

    def wait_flowing(self, seconds: float = 60.0) -> None:
        """Wait until every partition has a commit of its own with records."""
        alive = [process for process in self.roles.values() if process.is_running()]
        until(lambda: all(self.checkpoint(p) > 0 for p in range(self.record.partitions)), seconds, "the first commits", 0.2, alive)

    def is_committed(self, ends: dict[int, int]) -> bool:
        return all(self.checkpoint(partition) >= end for partition, end in ends.items())

    def wait_committed(self, ends: dict[int, int], seconds: float) -> None:
        until(lambda: self.is_committed(ends), seconds, f"checkpoints reach {ends}", 0.1, [p for p in self.roles.values() if p.is_running()])

    def over(self) -> None:
        """The fault is over: from now on everything acknowledged so far has to be committed and served within the variant's time."""
        if self.recover_seconds is not None:
            return
        began, ends = time.monotonic(), self.acknowledged().ends()
        self.wait_committed(ends, self.variant.recover_seconds)
        with self.ground.query_service().client() as client:
            client.wait_for(self.record.name, ends, self.variant.recover_seconds)
        self.recover_seconds = time.monotonic() - began

    # ---- the account -------------------------------------------------------------------------------------------------

    def settle(self) -> Account:
        """Stop the load, wait until all of it is committed and served, and let another process take account."""
        self.stop_loads()
        ends = self.acknowledged().ends()
        self.wait_committed(ends, self.variant.recover_seconds)
        service = self.ground.query_service()
        with service.client() as client:
            client.wait_for(self.record.name, ends, self.variant.recover_seconds)
        answer = subprocess.run(
            [
                *(sys.executable, "-m", "tests.faults.checker", self.record.name, "--query", service.url),
                *(f"--allow={code}" for code in self.variant.allowed),
                *("--given-up", json.dumps(self.given_up), "--journal", *map(str, self.journals)),
            ],
            cwd=ROOT,
            env=environment_of(self.site.environment),
            capture_output=True,
            text=True,
            check=False,
            timeout=300,
        )
        assert answer.returncode in (0, 1) and answer.stdout, f"the checker failed: {answer.stderr[-3000:]}"
        return Account(**json.loads(answer.stdout))


def attempt(ground: Ground, variant: Variant, folder: Path) -> Outcome:
    """Run one variant to its account; whatever goes wrong is a sentence of its outcome."""
    outcome, began = Outcome(variant.number, variant.name, "run"), time.monotonic()
    try:
        with variant.on(ground, folder) as own:
            _attempt(Trial(own, variant, folder), outcome)
    except Exception as error:
        outcome.sentences.append(_told(error))
    outcome.seconds = round(time.monotonic() - began, 1)
    outcome.ok = not outcome.sentences and not outcome.lost and not outcome.duplicated
    return outcome


def _attempt(trial: Trial, outcome: Outcome) -> None:
    variant = trial.variant
    try:
        with trial.opened():
            variant.run(trial)
            if variant.rate or trial.journals:
                account = trial.account
                if account is None:
                    trial.over()
                    account = trial.settle()
                outcome.acknowledged, outcome.live, outcome.duplicated = account.acknowledged, account.live, account.duplicated
                outcome.lost = account.lost + account.resurrected
                outcome.sentences += account.sentences
    except Exception as error:
        outcome.sentences.append(_told(error))
        (trial.folder / "error.txt").write_text(traceback.format_exc())
    trial.drop()
    outcome.notes = trial.notes
    outcome.recover_seconds = None if trial.recover_seconds is None else round(trial.recover_seconds, 2)


def _told(error: Exception) -> str:
    text = str(error) or type(error).__name__
    return text if isinstance(error, AssertionError | HeadwaterError) else f"{type(error).__name__}: {text}"
