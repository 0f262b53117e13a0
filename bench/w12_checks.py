"""W12, the cost of the checks: CPU-seconds per 1,000 items of embedding and building with all checks, divided by those without any.

A process of its own (`bench.checked_stream`) runs a fixed stream again and again, A B B A; without checks its functions are replaced by ones that
believe everything (`bench.checks`). Ratios are of the pairs that stand beside each other. docs/benchmarks.md says how to read it.

Takes: `Bench`; the local stack, else a file and a folder. Gives: a ratio by kind of items. Owns: the order. Never: turns a check off elsewhere.
"""

from __future__ import annotations

import json
from typing import Any

from bench.checked_stream import BLOCKS, PICTURES, VECTORS
from bench.checks import SWITCHES
from bench.frame import Bench, Goal, Measure, Outcome
from bench.intervals import abba, mean, percentile
from bench.places import open_place, stack_values
from bench.processes import BenchProcess, machine_cpu_seconds, module_command
from bench.trained import generation
from contracts.generation import encode_generation
from contracts.settings import load_settings

KINDS = {"cpu": PICTURES, "cpu_vectors": VECTORS, "cpu_blocks": BLOCKS}
UNIT = "CPU-seconds per 1,000"
TRAIN_ROWS = 65_536
WATCHDOG_SECONDS = 0.5
"""Instead of 5 s: each run ends when the watchdog has read back all of it, as it does in a stream that goes on."""
GENERATION_FILE = "generation"


class CostOfChecks:
    """The workload."""

    name = "W12"
    title = "CPU-seconds per 1,000 items, all checks / none"
    goals = dict.fromkeys(KINDS, Goal(1.03))

    def run(self, bench: Bench) -> Outcome:
        """See `bench.frame.Workload.run`."""
        lengths = bench.lengths(self.name)
        place_name = "embedded" if stack_values() is None else "kafka"
        checks = {switch.place: switch.checks for switch in SWITCHES}
        outcome = Outcome(notes={"lengths": lengths, "place": place_name, "order": "A B B A", "checks": checks})
        with bench.steps("W12: train"):
            trained = encode_generation(generation(TRAIN_ROWS, bench.seed))
        for mode, kind in KINDS.items():
            with open_place(place_name) as place:
                seals = {"seal_rows": str(lengths[kind]), "seal_seconds": "3600", "embed_watchdog_seconds": str(WATCHDOG_SECONDS)}
                place.values = dict(place.values) | seals
                place.settings = load_settings(**place.values)
                (place.folder / GENERATION_FILE).write_bytes(trained)
                command = ["env", "OMP_NUM_THREADS=1", *module_command("bench.checked_stream", str(bench.seed), GENERATION_FILE)]
                with BenchProcess("checked_stream", command, place.values, place.folder, talks=True) as stream:
                    stream.read_line()
                    modes, outcome.notes[mode] = _compare(bench, stream, mode, lengths[kind], lengths["pairs"])
                    stream.finish()
            outcome.modes |= modes
        return outcome


def _compare(bench: Bench, stream: BenchProcess, mode: str, count: int, pairs: int) -> tuple[dict[str, Measure], dict[str, Any]]:
    spent: dict[str, list[float]] = {"A": [], "B": []}
    embedding: dict[str, list[float]] = {"A": [], "B": []}
    lines = {turn: f"{switch} {KINDS[mode]} {count}" for turn, switch in (("A", "on"), ("B", "off"))}
    with bench.steps(f"W12: {KINDS[mode]}, all checks and none", 2 * pairs) as step:
        for line in lines.values():
            stream.ask(line)  # to warm up
        machine = machine_cpu_seconds()
        for turn in abba(pairs):
            answer = json.loads(stream.ask(lines[turn]))
            spent[turn].append(1000 * answer["cpu_seconds"] / count)
            embedding[turn].append(1000 * answer["embed_cpu_seconds"] / count)
            step.done()
        machine = machine_cpu_seconds() - machine
    modes = {
        mode: mean([on / off for on, off in zip(spent["A"], spent["B"], strict=True)], "ratio", bench.seed),
        f"{mode}_on": percentile(spent["A"], 50, UNIT, bench.seed),
        f"{mode}_off": percentile(spent["B"], 50, UNIT, bench.seed),
    }
    notes = {
        "items": count,
        "on": [round(each, 5) for each in spent["A"]],
        "off": [round(each, 5) for each in spent["B"]],
        "embedding_on": [round(each, 5) for each in embedding["A"]],
        "embedding_off": [round(each, 5) for each in embedding["B"]],
        "share_of_cpu_that_was_measured": round((sum(spent["A"]) + sum(spent["B"])) * count / 1000 / machine, 2) if machine else 0.0,
    }
    return modes, notes
