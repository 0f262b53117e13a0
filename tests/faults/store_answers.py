"""Faults 4, 8, 9, 10, 24, 25 and 29: what the store does and what it says are two things.

Takes: a trial, whose roles talk to the store through an HTTP proxy. Gives: `VARIANTS`. Owns: which requests are answered wrongly.
Never: spoils a request of the load or of the checker.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from backends.s3_store import S3Store
from contracts.store import PutOutcome
from tests.faults.http_proxy import Request, Rule
from tests.faults.lines import store_proxy, supervised, through
from tests.faults.store_faults import (
    HideNewest,
    IgnoreConditions,
    Refuse,
    Remember,
    SlowAnswer,
    StoreThen,
    StoreThenSilence,
    anything,
    is_listing,
    is_put,
)
from tests.faults.trial import Trial, Variant
from tests.indexer.audited import head
from tests.system.processes import command, until

MANIFEST = "/manifest/"
PATIENCE = 'tests.faults.parts:set_constant={"module": "backends.s3_answers", "name": "PUT_TIMEOUT_SECONDS", "value": 2.0}'
ROLES = ("embed", "index", "maintain")


def claims(trial: Trial) -> list[int]:
    """How often each partition was claimed by a builder."""
    return [head(trial.engines, trial.record, partition).epochs.builder for partition in range(trial.record.partitions)]


def killed_before_the_answer(role: str, trial: Trial) -> None:
    """INV-2, 3, 6: the commit is stored and its writer is dead before it has heard so; the successor finds it and goes on behind it."""
    trial.wait_flowing()
    for turn in range(3):
        died = trial.roles.pop(role)
        died.end()
        killed: list[str] = []
        rule = Rule(is_put(MANIFEST), StoreThen(None, lambda request: kill(trial, role, request, killed), only_stored=True), skip=1 + turn)  # noqa: B023
        proxy = store_proxy(trial, rule)
        doomed = trial.role(role, **through(store=proxy))
        doomed.start()
        until(lambda: doomed.has_died() is not None, 60, f"{role} is killed at the put of a manifest")  # noqa: B023
        assert killed, "the manifest was stored before its writer died"
        trial.note(f"{role} killed after {killed[0].rsplit('/', 3)[1:]} was stored")
        trial.start(role)
        trial.wait_acknowledged(30)


def kill(trial: Trial, role: str, request: Request, killed: list[str]) -> None:
    if not killed:
        os.kill(trial.roles[role].pid, signal.SIGKILL)
    killed.append(request.key)


def lost_answers(trial: Trial, *, status: int | None, part: str, share: float, seconds: float) -> None:
    """INV-2, 6: a commit whose answer is lost is recognised as one's own: nobody claims anew, nothing is committed twice."""
    rule = Rule(is_put(part), StoreThen(status), share=share)
    proxy = store_proxy(trial)
    for role in ROLES:
        trial.start(role, **through(store=proxy))
    trial.wait_flowing()
    before = claims(trial)
    proxy.rules = [rule]
    with supervised(trial, most=0):
        time.sleep(seconds)
        until(lambda: rule.done >= 5, 60, "five answers were lost")
    proxy.heal()
    stored = rule.action.statuses.count(200)  # type: ignore[attr-defined]
    trial.note(f"{rule.done} puts whose answer was lost, {stored} of them stored, {rule.action.statuses.count(412)} of them found themselves")  # type: ignore[attr-defined]
    assert stored, "no put was stored"
    assert claims(trial) == before, "a builder was fenced by its own commit"


def silent_answers(trial: Trial) -> None:
    """INV-2, 6: as above, where the answer does not come within the writer's patience."""
    rule = Rule(is_put(MANIFEST), StoreThenSilence(3.0), share=0.5)
    proxy = store_proxy(trial)
    for role in ROLES:
        trial.start(role, parts=[PATIENCE], **through(store=proxy))
    trial.wait_flowing()
    before = claims(trial)
    proxy.rules = [rule]
    with supervised(trial, most=0):
        until(lambda: rule.done >= 4, 60, "four answers did not come")
    proxy.heal()
    trial.note(f"{rule.done} manifests whose answer did not come in 2 s")
    assert claims(trial) == before, "a builder was fenced by its own commit"


def late_puts(trial: Trial) -> None:
    """INV-2, 6: a put lands long after its writer gave up and tried again."""
    rule = Rule(is_put(MANIFEST), SlowAnswer(4.0), share=0.4)
    proxy = store_proxy(trial)
    for role in ROLES:
        trial.start(role, parts=[PATIENCE], **through(store=proxy))
    trial.wait_flowing()
    proxy.rules = [rule]
    with supervised(trial, most=0):
        until(lambda: rule.done >= 4, 60, "four puts came late")
    proxy.heal()
    trial.note(f"{rule.done} manifests that were stored 2 s after their writer gave up")


def conflicts(trial: Trial) -> None:
    """INV-6: 409 says that nothing known landed; the same body is put under the same key again."""
    rule = Rule(is_put(""), Refuse(409), share=0.5)
    proxy = store_proxy(trial)
    for role in ROLES:
        trial.start(role, **through(store=proxy))
    trial.wait_flowing()
    before = claims(trial)
    proxy.rules = [rule]
    with supervised(trial, most=0):
        time.sleep(8)
        until(lambda: rule.done >= 10, 60, "ten conflicts")
    proxy.heal()
    trial.note(f"{rule.done} puts answered with 409")
    assert claims(trial) == before, "a builder was fenced by a conflict"


def race(trial: Trial) -> None:
    """INV-6: of 32 writers of one key exactly one creates it, and all others are told that it exists; three compactors race with the builder."""
    settings = trial.site.settings()
    endpoint, _, bucket = settings.store_url.partition("://")[2].partition("/")
    store = S3Store(endpoint, bucket, settings.store_access_key, settings.store_secret_key.get_secret_value())
    with ThreadPoolExecutor(32) as pool:
        for turn in range(20):
            key = f"race/{trial.record.name}/{turn}"
            outcomes = list(pool.map(lambda number: store.put_if_absent(key, str(number).encode()), range(32)))  # noqa: B023
            assert outcomes.count(PutOutcome.CREATED) == 1 and outcomes.count(PutOutcome.EXISTS) == 31, outcomes
            found = store.get(key)
            assert found is not None and int(found.data) == outcomes.index(PutOutcome.CREATED)
    store.close()
    watch = StoreStatuses()
    proxy = store_proxy(trial, Rule(is_put(MANIFEST), watch))
    for role in ("embed", "index"):
        trial.start(role, **through(store=proxy))
    for number in range(3):
        trial.start("maintain", label=f"maintain{number}", is_static=False, **through(store=proxy))
    trial.wait_flowing()
    with supervised(trial, most=0):
        until(lambda: watch.statuses.count(412) >= 3, 90, "three commits lost a race")
    trial.note(f"20 races of 32 writers; {watch.statuses.count(200)} commits, {watch.statuses.count(412)} lost their race")


class StoreStatuses(StoreThen):
    """Forwards, and notes what the store answers."""

    def __init__(self) -> None:
        super().__init__(None)

    async def __call__(self, request, forward):  # type: ignore[no-untyped-def]
        answer = await forward(request)
        self.statuses.append(answer.status)
        return answer


def errors(trial: Trial) -> None:
    """INV-1, 2, 10: a third of all requests is answered with 500, 503 or 429; requests stay bounded, and nobody dies of it."""
    proxy = store_proxy(trial)
    for role in ROLES:
        trial.start(role, **through(store=proxy))
    trial.wait_flowing()
    began = proxy.requests.total()
    time.sleep(8)
    normal = proxy.requests.total() - began
    proxy.rules = [Rule(anything, Refuse(status), share=share) for status, share in ((503, 0.1), (500, 0.12), (429, 0.13))]
    with supervised(trial, most=2):
        began = proxy.requests.total()
        time.sleep(8)
        asked = proxy.requests.total() - began
        time.sleep(8)
    refused = sum(rule.done for rule in proxy.rules)
    proxy.heal()
    trial.note(f"{refused} requests refused; in 8 s {asked} requests, {normal} without errors")
    assert asked <= 3 * normal + 100, f"{asked} requests in 8 s, {normal} without errors"


def stale_listing(trial: Trial) -> None:
    """INV-6: a listing that lacks the keys of the last three seconds: the next version is found by asking for it, not by listing."""
    remembered = Remember()
    hide = HideNewest(remembered, 3.0)
    proxy = store_proxy(trial, Rule(is_listing, hide), Rule(lambda request: request.method == "PUT", remembered))
    for role in ROLES:
        trial.start(role, **through(store=proxy))
    trial.wait_flowing()
    with supervised(trial, most=0):
        time.sleep(6)
    for role in ("index", "maintain", "embed"):
        trial.roles[role].kill()
        trial.start(role, **through(store=proxy))
        trial.wait_acknowledged(100)
    trial.note(f"{hide.hidden} times a key was hidden from a listing")
    assert hide.hidden, "no listing was stale"


def ignored_conditions(trial: Trial) -> None:
    """A store that ignores conditions, or looks before it writes, is refused at start: exit code 2 and a hint; nothing is written by that role."""
    settings = trial.site.settings()
    keys = settings.store_access_key, settings.store_secret_key.get_secret_value()
    for looks_first in (False, True):
        proxy = store_proxy(trial, Rule(lambda request: request.method == "PUT", IgnoreConditions(*keys, looks_first)))
        for role in ("index", "embed", "maintain"):
            store = str(through(store=proxy)["store_url"])
            answer: subprocess.CompletedProcess[str] = command(trial.site, "run", role, HEADWATER_STORE_URL=store)
            assert answer.returncode == 2, f"{role} ended with {answer.returncode}: {answer.stderr[-500:]}"
            assert "condition" in answer.stderr and "Traceback" not in answer.stderr, answer.stderr
            trial.note(f"{role}, {'looks before it writes' if looks_first else 'ignores conditions'}: {answer.stderr.splitlines()[-2][:200]}")


VARIANTS = [
    Variant(4, "builder", partial(killed_before_the_answer, "index")),
    Variant(4, "compactor", partial(killed_before_the_answer, "maintain"), ("embed", "index", "maintain")),
    Variant(8, "manifests", partial(lost_answers, status=503, part=MANIFEST, share=0.5, seconds=8), ()),
    Variant(8, "every object", partial(lost_answers, status=503, part="", share=0.3, seconds=8), ()),
    Variant(9, "reset", partial(lost_answers, status=None, part=MANIFEST, share=0.5, seconds=8), ()),
    Variant(9, "no answer in time", silent_answers, ()),
    Variant(9, "stored after the writer gave up", late_puts, ()),
    Variant(10, "409", conflicts, ()),
    Variant(10, "412, 32 writers", race, ()),
    Variant(24, "a third of all requests", errors, ()),
    Variant(25, "keys of three seconds", stale_listing, ()),
    Variant(29, "ignored, or looked at before", ignored_conditions, (), rate=0.0),
]
