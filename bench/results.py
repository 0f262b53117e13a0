"""results/bench.json: ``{workload: {mode: {value, unit, low, high, n}}}``, and beside the workloads ``_machine`` and ``_notes``.

A run replaces the workloads that it measured. Others stay if they were measured at the same commit; after a new commit the file begins anew, because
figures of two states of the code must not stand side by side.

Takes: outcomes, machine facts. Gives: the file's content. Owns: its shape and the rule above. Never: leaves half a file.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from bench.frame import Measure, Outcome

FILE_NAME = "bench.json"
MACHINE, NOTES = "_machine", "_notes"


def write_results(folder: Path, machine: Mapping[str, Any], outcomes: Mapping[str, Outcome]) -> dict[str, Any]:
    """Write (or extend) the file; returns what it holds now."""
    path = folder / FILE_NAME
    document = _kept(path, machine) | {MACHINE: dict(machine)}
    notes = document.setdefault(NOTES, {})
    for name, outcome in outcomes.items():
        document[name] = {mode: asdict(measure) for mode, measure in outcome.modes.items()}
        notes[name] = outcome.notes | {"measured_at": machine.get("measured_at")}
    folder.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(document, indent=2, ensure_ascii=False) + "\n")
    temporary.replace(path)
    return document


def measures(document: Mapping[str, Any]) -> dict[str, dict[str, Measure]]:
    """The workloads of a document, as measures."""
    return {name: {mode: Measure(**fields) for mode, fields in modes.items()} for name, modes in document.items() if not name.startswith("_")}


def _kept(path: Path, machine: Mapping[str, Any]) -> dict[str, Any]:
    try:
        before = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    then = before.get(MACHINE, {}) if isinstance(before, dict) else {}
    is_same = all(then.get(key) == machine.get(key) for key in ("commit", "cpu", "cores"))
    return before if then and is_same else {}
