"""E2E: own vectors from a producer through Kafka and MinIO into an index that is searched: minutes, memory, recall and latency.

Takes: `Bench`, the local stack. Gives: what `bench.prepared` saw. Owns: nothing more. Never: goes around a role.
"""

from __future__ import annotations

from bench.frame import Bench, Goal, Measure, Outcome
from bench.intervals import mean, percentile
from bench.places import stack_values
from bench.prepared import LIMIT, PreparedIndex


class EndToEnd:
    """The workload.

    Parameters
    ----------
    prepared : PreparedIndex
        Shared with workloads that look at the same index.
    """

    name = "E2E"
    title = "vectors end to end: minutes, recall and latency"
    goals = {"recall": Goal(0.95, smaller_is_better=False)}

    def __init__(self, prepared: PreparedIndex) -> None:
        self._prepared = prepared

    def run(self, bench: Bench) -> Outcome:
        """See `bench.frame.Workload.run`. Nothing is measured without the local stack."""
        if stack_values() is None:
            return Outcome(notes={"not measured": "no local stack (make stack)"})
        made = self._prepared.open(bench)
        outcome = Outcome(notes={"rows": made.rows, "partitions": made.record.partitions, "limit": LIMIT, "warm": True} | made.notes)
        for name, minutes in made.minutes.items():
            outcome.modes[f"{name}_minutes"] = Measure(minutes, "minutes", minutes, minutes, 1)
        outcome.modes["recall"] = mean(made.recalls, "recall@10", bench.seed)
        for percent in (50, 99):
            outcome.modes[f"p{percent}"] = percentile(made.latencies, percent, "seconds", bench.seed)
        return outcome
