"""Faults 1, 2, 3, 5, 6, 7, 44: a role kills itself at a named point, or is asked to stop amid its work, and its successor goes on."""

from __future__ import annotations

import time
from collections.abc import Callable

from tests.faults.trial import Trial, Variant
from tests.system.processes import until

ALL = ("embed", "index", "maintain")
STOP_SECONDS = 10.0


def crash(role: str, *points: str, more: int = 20) -> Callable[[Trial], None]:
    """A fault that kills `role` at each of these points in turn."""

    def run(trial: Trial) -> None:
        trial.wait_flowing()
        for point in points:
            trial.crashes_at(role, point)
            trial.wait_acknowledged(more)

    return run


def stop_amid(*roles: str) -> Callable[[Trial], None]:
    """A fault that ends each role by SIGTERM while the stream goes on; each must say goodbye within ten seconds."""

    def run(trial: Trial) -> None:
        trial.wait_flowing()
        for name in roles:
            time.sleep(0.7)
            began = time.monotonic()
            code = trial.roles[name].stop(3 * STOP_SECONDS)
            took = time.monotonic() - began
            trial.note(f"{name} stopped in {took:.1f} s")
            assert code == 0 and took < STOP_SECONDS, f"{name} ended with {code} after {took:.1f} s: {trial.roles[name].stderr()[-1000:]}"
            trial.start(name)

    return run


def killed_mid_stop(trial: Trial) -> None:
    """What Kubernetes does when its patience is over: SIGTERM, and SIGKILL while the role still says goodbye."""
    trial.wait_flowing()
    for name in ("embed", "index", "maintain"):
        process = trial.roles[name]
        process.terminate()
        time.sleep(0.05)
        process.end()
        trial.start(name)
        trial.wait_acknowledged(20)


def waits_for_its_session(trial: Trial) -> None:
    """A member without a name in its group: its partitions are given out again only when its session has timed out."""
    trial.wait_flowing()
    trial.roles["index"].kill()
    began = time.monotonic()
    before = {partition: trial.checkpoint(partition) for partition in range(trial.record.partitions)}
    trial.start("index", is_static=False)
    until(lambda: all(trial.checkpoint(p) > offset for p, offset in before.items()), 60, "a new member commits", 0.2)
    trial.note(f"the successor without a name commits {time.monotonic() - began:.1f} s after the kill")


VARIANTS = [
    Variant(1, "embed worker: after its poll; before it sends a batch", crash("embed", "poll media:2", "send vectors:2")),
    Variant(1, "builder: after its poll; a successor that waits for the session", crash("index", "poll vectors:3")),
    Variant(1, "builder killed, its session has to time out", waits_for_its_session),
    Variant(2, "builder: rows half uploaded; ledger half uploaded", crash("index", "put rows, half:2", "put ledger, half")),
    Variant(2, "compactor: rows half uploaded", crash("maintain", "put rows, half"), roles=ALL),
    Variant(
        3, "builder: after the uploads, before the manifest", crash("index", "put manifest:3", "put ledger, answered:2", "put deletes, answered")
    ),
    Variant(5, "builder: manifest answered, nobody told", crash("index", "put manifest, answered:4", "send notice:2", "commit vectors:2")),
    Variant(5, "embed worker: batch acknowledged, nothing else; before its offset", crash("embed", "send vectors, answered:3", "commit media")),
    Variant(6, "compactor: amid uploads, between upload and commit", crash("maintain", "put ledger", "put manifest:3"), roles=ALL),
    Variant(6, "compactor: committed, nobody told", crash("maintain", "put manifest, answered:3", "send notice"), roles=ALL),
    Variant(7, "collector: boundary raised, nothing deleted; amid deletes", crash("maintain", "swap gc, answered:2", "delete rows:2"), roles=ALL),
    Variant(7, "collector: between parts and manifests; before truncation", crash("maintain", "delete manifest:2", "truncate vectors"), roles=ALL),
    Variant(44, "SIGTERM amid the stream", stop_amid("embed", "index", "maintain", "embed", "index"), roles=ALL),
    Variant(44, "SIGTERM and SIGKILL 50 ms later", killed_mid_stop, roles=ALL),
]
