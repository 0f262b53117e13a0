"""The soak: random faults under a stream that does not pause, for as long as one likes; then everything has to be accounted for.

    python -m tests.faults --soak --minutes 30 [--rate 100] [--seed 1]

Takes: a ground, minutes, a rate, a seed. Gives: a `SoakReport`. Owns: which fault comes when; a supervisor that starts again what ended.
Never: waits for quiet before the next fault.
"""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from contracts.errors import HeadwaterError
from tests.faults.ground import Ground
from tests.faults.http_proxy import Rule
from tests.faults.journal import Acknowledged
from tests.faults.lines import log_line, store_proxy, through
from tests.faults.store_faults import Refuse, SlowAnswer, StoreThen, Truncate, anything, is_get, is_put
from tests.faults.trial import Trial, Variant
from tests.simulation.faults import CRASH_POINTS
from tests.system.processes import Process

SHORT = "tests.faults.odd_parts:short_sessions"
ROLES = ("embed-a", "embed-b", "index-a", "index-b", "maintain-a")
PROBE_SECONDS = 0.05
PARTITIONS = 4
IDS = 20_000
"""Most ids of the stream: afterwards its updates, patches and deletes meet ids of any age."""
POINTS = {
    "embed": [*(p for p in CRASH_POINTS if p.startswith(("send vectors", "poll media"))), "commit media"],
    "index": [*(p for p in CRASH_POINTS if p.startswith(("put manifest", "put rows", "put ledger", "put deletes", "send notice"))), "put rows, half"],
    "maintain": [p for p in CRASH_POINTS if p.startswith(("put manifest", "put rows", "swap gc", "delete"))],
}
"""Crash points of each role, those of the simulation."""


@dataclass
class SoakReport:
    """What happened in a soak; results/soak.json."""

    minutes: float
    seed: int
    rate: float
    faults: dict[str, int] = field(default_factory=dict)
    restarts: int = 0
    acknowledged: int = 0
    live: int = 0
    lost: int = 0
    duplicated: int = 0
    searchable_p50_seconds: float | None = None
    searchable_p99_seconds: float | None = None
    searchable_max_seconds: float | None = None
    never_searchable: int = 0
    recover_seconds: float | None = None
    ok: bool = False
    sentences: list[str] = field(default_factory=list)


class Probe:
    """Asks the query service all the time how far it has read; a service that does not answer has read nothing new."""

    def __init__(self, trial: Trial) -> None:
        self._trial = trial
        self.seen: dict[int, tuple[list[int], list[float]]] = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Probe:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        self._thread.join(30)

    def _run(self) -> None:
        service = self._trial.ground.query_service()
        with service.client() as client:
            while not self._stop.wait(PROBE_SECONDS):
                with suppress(HeadwaterError):
                    offsets, now = client.freshness_or_nothing(self._trial.record.name).offsets, time.time()
                    for partition, offset in offsets.items():
                        known, at = self.seen.setdefault(partition, ([], []))
                        if not known or offset > known[-1]:
                            known.append(offset)
                            at.append(now)

    def seconds(self, entries: Sequence[Acknowledged]) -> list[float | None]:
        """Of each item, from its sending to the first answer that held it."""
        out: list[float | None] = []
        for entry in entries:
            known, at = self.seen.get(entry.partition, ([], []))
            place = bisect_right(known, entry.offset)
            out.append(at[place] - entry.at if place < len(known) else None)
        return out


class Soak:
    """Draws faults and lets them happen.

    Parameters
    ----------
    trial : Trial
        An opened one, without roles.
    seed : int
        Of all draws.
    """

    def __init__(self, trial: Trial, seed: int) -> None:
        self.trial, self.ground, self.rng = trial, trial.ground, random.Random(seed)
        self.counts: Counter[str] = Counter()
        self.restarts = 0
        self._asleep: dict[str, float] = {}  # label -> when to wake it
        self._healed_at: dict[str, float] = {}  # line -> when it is good again
        self.store, self.log = store_proxy(trial), log_line(trial)
        self.kinds: dict[str, Callable[[], None]] = {
            "kill a role": self.kill_role,
            "kill at a crash point": self.crash_role,
            "stop a role for a while": self.sleep_role,
            "SIGTERM a role": self.stop_role,
            "kill the query service": self.kill_query,
            "kill the broker": lambda: self.restart("kafka"),
            "kill the store": lambda: self.restart("minio"),
            "freeze the broker": lambda: self.freeze("kafka"),
            "freeze the store": lambda: self.freeze("minio"),
            "old records again": self.redeliver,
            "the store refuses a third": lambda: self.spoil(*(Rule(anything, Refuse(status), share=0.12) for status in (500, 503, 429))),
            "answers to puts are lost": lambda: self.spoil(Rule(is_put(""), StoreThen(self.rng.choice([None, 503])), share=0.4)),
            "answers are cut short": lambda: self.spoil(Rule(is_get(""), Truncate(), share=0.2)),
            "a store of half a second": lambda: self.spoil(Rule(anything, SlowAnswer(0.5))),
            "the line to the broker is reset": lambda: (self.log.reset(), None)[1],
            "the line to the broker is silent": self.silence,
        }
        self._weights = [4, 5, 3, 2, 1, 1, 1, 1, 1, 1, 1, 2, 1, 1, 1, 1]

    # ---- supervising -------------------------------------------------------------------------------------------------

    def begin(self, label: str, crash: Sequence[str] = (), parts: Sequence[str] = ()) -> Process:
        """Start a role without waiting for it."""
        self._asleep.pop(label, None)
        role = label.partition("-")[0]
        is_static = self.rng.random() < 0.5
        lines = through(store=self.store, log=self.log if label.endswith("-a") else None)
        process = self.trial.role(role, label=label, is_static=is_static, crash=crash, parts=[SHORT, *parts], stop_seconds=5.0, **lines)
        process.start()
        return process

    def supervise(self) -> None:
        """Start what ended, wake up what has slept enough."""
        now = time.monotonic()
        for label in [label for label, due in self._asleep.items() if due <= now]:
            del self._asleep[label]
            with suppress(ProcessLookupError, AssertionError):
                os.kill(self.trial.roles[label].pid, signal.SIGCONT)
        for line in [line for line, due in self._healed_at.items() if due <= now]:
            self.mend(line)
        for label in ROLES:
            process = self.trial.roles[label]
            if not process.is_running():
                self.restarts += 1
                self.begin(label)
        self.ground.query_service()

    def run(self, seconds: float) -> None:
        """Let faults happen for so long, then heal everything."""
        for label in ROLES:
            self.begin(label)
        for label in ROLES:
            self.trial.roles[label].wait_ready()
        self.trial.wait_flowing(120)
        deadline, due = time.monotonic() + seconds, time.monotonic()
        while time.monotonic() < deadline:
            if time.monotonic() >= due:
                kind = self.rng.choices(list(self.kinds), self._weights)[0]
                self.counts[kind] += 1
                self.kinds[kind]()
                due = time.monotonic() + self.rng.uniform(2.0, 10.0)
            self.supervise()
            time.sleep(0.2)
        self.heal()

    def heal(self) -> None:
        """The faults are over: everything is awake, healthy, and runs."""
        for line in list(self._healed_at):
            self.mend(line)
        for label in ROLES:
            with suppress(ProcessLookupError, AssertionError):
                os.kill(self.trial.roles[label].pid, signal.SIGCONT)
            self.trial.roles[label].end()
            self.begin(label)
        for label in ROLES:
            self.trial.roles[label].wait_ready()

    # ---- faults ------------------------------------------------------------------------------------------------------

    def one(self) -> str:
        return self.rng.choice(ROLES)

    def kill_role(self) -> None:
        self.trial.roles[self.one()].end()

    def crash_role(self) -> None:
        label = self.one()
        point = self.rng.choice(POINTS[label.partition("-")[0]])
        self.trial.roles[label].end()
        self.begin(label, crash=[f"{point}:{self.rng.randint(2, 6)}"])  # never at its first record: that is how a worker finds poison

    def sleep_role(self) -> None:
        label = self.one()
        with suppress(ProcessLookupError, AssertionError):
            os.kill(self.trial.roles[label].pid, signal.SIGSTOP)
            self._asleep[label] = time.monotonic() + self.rng.uniform(0.5, 15.0)

    def stop_role(self) -> None:
        label = self.one()
        if self.trial.roles[label].is_running() and label not in self._asleep:
            self.trial.roles[label].terminate()

    def kill_query(self) -> None:
        if self.ground.query is not None:
            self.ground.query.end()

    def restart(self, server: str) -> None:
        self.ground.kill(server)
        time.sleep(self.rng.uniform(0.0, 3.0))
        self.ground.start()

    def freeze(self, server: str) -> None:
        with self.ground.frozen(server):
            time.sleep(self.rng.uniform(0.5, 8.0))

    def spoil(self, *rules: Rule) -> None:
        """The roles' store behaves so for a while."""
        self.store.rules = list(rules)
        self._healed_at["store"] = time.monotonic() + self.rng.uniform(2.0, 10.0)

    def silence(self) -> None:
        """Nothing comes through the line to the broker for a while, and then all of it."""
        self.log.up.is_silent = self.log.down.is_silent = True
        self._healed_at["log"] = time.monotonic() + self.rng.uniform(2.0, 15.0)

    def mend(self, line: str) -> None:
        del self._healed_at[line]
        (self.store if line == "store" else self.log).heal()

    def redeliver(self) -> None:
        label = self.rng.choice([label for label in ROLES if not label.startswith("maintain")])
        self.trial.roles[label].end()
        self.begin(label, parts=["tests.faults.odd_parts:redeliver=0.2"])


def soak(ground: Ground, folder: Path, minutes: float, rate: float, seed: int, tell: Callable[[str], None]) -> SoakReport:
    """One collection, a stream, faults, and the account at the end."""
    report = SoakReport(minutes, seed, rate)
    variant = Variant(0, "soak", lambda trial: None, roles=(), rate=rate, partitions=PARTITIONS, ids=IDS, recover_seconds=180.0)
    trial = Trial(ground, variant, folder)
    trial.site.environment["HEADWATER_SEAL_SECONDS"] = "2.0"
    try:
        with trial.opened():
            ground.query_service()
            with Probe(trial) as probe:
                work = Soak(trial, seed)
                work.run(60 * minutes)
                tell(f"{sum(work.counts.values())} faults in {minutes:g} minutes, now everything has to settle")
                report.faults, report.restarts = dict(work.counts), work.restarts
                trial.over()
                account = trial.settle()
            report.acknowledged, report.live = account.acknowledged, account.live
            report.lost, report.duplicated = account.lost + account.resurrected, account.duplicated
            report.sentences += account.sentences
            took = probe.seconds(trial.acknowledged().entries)
            known = [each for each in took if each is not None]
            report.never_searchable = len(took) - len(known)
            report.searchable_p50_seconds, report.searchable_p99_seconds = (round(float(np.quantile(known, q)), 3) for q in (0.5, 0.99))
            report.searchable_max_seconds = round(max(known), 3)
    except Exception as error:
        report.sentences.append(f"{type(error).__name__}: {error}")
    report.recover_seconds = trial.recover_seconds
    report.ok = not (report.lost or report.duplicated or report.never_searchable or report.sentences)
    return report
