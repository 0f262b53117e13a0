"""Faults 1, 2, 3, 5, 6 and 7: a role kills itself at a named point, and its successor goes on."""

from __future__ import annotations

from tests.faults.trial import Trial, Variant


def crash(role: str, *points: str) -> object:
    """A fault that kills `role` at each of these points in turn."""

    def run(trial: Trial) -> None:
        trial.wait_flowing()
        for point in points:
            trial.crashes_at(role, point)
            trial.wait_acknowledged(30)

    return run


VARIANTS = [
    Variant(1, "embed worker, after its poll", crash("embed", "poll media", "poll media:5")),
    Variant(1, "builder, after its poll", crash("index", "poll vectors", "poll vectors:5")),
    Variant(2, "builder, rows half uploaded", crash("index", "put rows, half", "put rows, half:2")),
    Variant(3, "builder, before the manifest", crash("index", "put manifest:3", "put manifest:5")),
]
