"""How an audit is told: tables for a tired operator, and the stable JSON of docs/verify.md.

Takes: an `AuditReport`, a plan, what was done. Gives: JSON values, tables. Owns: how findings are ordered and shortened.
Never: judges; shows more than `most` findings of one code on a terminal.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from rich.table import Table
from rich.text import Text

from headwater.console import cell
from indexer.verify.audit import AuditReport
from indexer.verify.findings import CODES, EXIT_CODES, Finding
from indexer.verify.ledger_check import STATES
from indexer.verify.partition_check import PartitionAudit
from indexer.verify.repair import RepairPlan, RepairReport

_STYLES = {"fault": "bold red", "warning": "yellow", "note": "dim"}
_LEVELS = list(EXIT_CODES)


def repaired_kinds(report: AuditReport, done: RepairReport | None) -> Counter[str]:
    """How many findings of each code a repair has settled."""
    return Counter() if done is None else Counter({"dead_letter_missing": len(done.sent), "orphan": len(done.deleted)})


def exit_code(report: AuditReport, done: RepairReport | None) -> int:
    """Exit code of what is left: 6 for faults, 1 for warnings, 0."""
    left = report.findings.counts - repaired_kinds(report, done)
    return max((EXIT_CODES[CODES[kind].level] for kind in left), default=0)


# ---- JSON ------------------------------------------------------------------------------------------------------------


def as_json(report: AuditReport, plan: RepairPlan | None, done: RepairReport | None) -> dict[str, Any]:
    """The document that docs/verify.md describes."""
    code = exit_code(report, done)
    return {
        "collection": report.collection.name,
        "incarnation": report.collection.incarnation,
        "ok": code == 0,
        "exit_code": code,
        "checked": {"objects": report.objects, "bytes": report.size_bytes, "seconds": round(report.seconds, 3), "log": report.has_log},
        "partitions": [_partition(report, audit) for audit in report.partitions],
        "archive": [
            {
                "partition": audit.partition,
                "version": audit.manifest.version,
                "origin_offset": audit.manifest.origin_offset,
                "archived_offset": audit.manifest.checkpoint.media_offset,
                "tars": len(audit.manifest.tars),
                "records": audit.manifest.records,
                "bytes": audit.size_bytes,
            }
            for audit in report.archives
            if audit.manifest is not None
        ],
        "counts": {kind: count for kind, count in sorted(report.findings.counts.items()) if count},
        "findings": [_finding(finding) for finding in _ordered(report)],
        "repair": None if plan is None else _repair(plan, done),
    }


def _partition(report: AuditReport, audit: PartitionAudit) -> dict[str, Any]:
    manifest, position = audit.manifest, report.positions.get((audit.index, audit.partition))
    return {
        "index": audit.index,
        "partition": audit.partition,
        "version": None if manifest is None else manifest.version,
        "versions": audit.walked.versions,
        "origin_offset": None if manifest is None else manifest.origin_offset,
        "checkpoint_offset": None if manifest is None else manifest.checkpoint.media_offset,
        "embedded_offset": None if position is None else position.embedded_offset,
        "log_start_offset": None if position is None else position.start_offset,
        "log_next_offset": None if position is None else position.next_offset,
        "segments": 0 if manifest is None else len(manifest.segments),
        "states": {state: audit.states.get(state, 0) for state in STATES},
        "unknown_rows": audit.states.get("unknown", 0),
        "gap_offsets": sum(end - start for start, end in audit.gaps),
        "objects": audit.objects,
        "bytes": audit.size_bytes,
    }


def _finding(finding: Finding) -> dict[str, Any]:
    names = ("index", "partition", "object", "start_offset", "next_offset", "start_item", "next_item", "id")
    places = {name: getattr(finding, name) for name in names}
    return {"code": finding.kind, "level": finding.code.level, "what": finding.what, "hint": finding.code.hint, **places}


def _repair(plan: RepairPlan, done: RepairReport | None) -> dict[str, Any]:
    return {
        "dead_letters": [
            {"index": one.index, "partition": one.letter.partition, "offset": one.letter.offset, "source": one.source} for one in plan.letters
        ],
        "orphans": [orphan.key for orphan in plan.orphans],
        "kept_orphans": plan.kept_orphans,
        "done": None
        if done is None
        else {
            "dead_letters": [{"index": index, "partition": partition, "offset": offset} for index, partition, offset in done.sent],
            "orphans": done.deleted,
            "failed": done.failed,
        },
    }


def _ordered(report: AuditReport) -> list[Finding]:
    """Worst first; within a level by place."""
    return sorted(
        report.findings.kept,
        key=lambda one: (_LEVELS.index(one.code.level), one.index or "", -1 if one.partition is None else one.partition, one.start_offset or 0),
    )


# ---- tables ----------------------------------------------------------------------------------------------------------


def partition_table(report: AuditReport) -> Table:
    """One line per partition: where it stands, and its items by state."""
    table = Table(title="items by state", title_justify="left")
    totals: Counter[str] = Counter()
    for audit in report.partitions:
        totals.update(audit.states)
    states = (*STATES, "unknown") if totals["unknown"] else STATES
    for name in ("index", "partition", "offsets", *(state.replace("_", "-") for state in states), "not committed yet"):
        table.add_column(name, justify="left" if name == "index" else "right")
    for audit in report.partitions:
        table.add_row(cell(audit.index), str(audit.partition), _offsets(audit), *_counts(audit.states, states), _waiting(report, audit))
    if len(report.partitions) > 1:
        table.add_section()
        table.add_row("all", "", "", *_counts(totals, states), "")
    return table


def _counts(counts: Counter[str], states: Sequence[str]) -> Iterator[str]:
    return (f"{counts.get(state, 0):,}" for state in states)


def _offsets(audit: PartitionAudit) -> str:
    manifest = audit.manifest
    return "?" if manifest is None else f"{manifest.origin_offset} to {manifest.checkpoint.media_offset}"


def _waiting(report: AuditReport, audit: PartitionAudit) -> str:
    position = report.positions.get((audit.index, audit.partition))
    return "?" if position is None or audit.manifest is None else f"{max(0, position.next_offset - audit.manifest.checkpoint.media_offset):,}"


def findings_table(report: AuditReport, most: int) -> Table | None:
    """Findings, worst first, at most `most` of each code; None where there are none."""
    if not report.findings.kept:
        return None
    table = Table("", "what", "where", "object, id", title="findings", title_justify="left", show_lines=True)
    shown: Counter[str] = Counter()
    for finding in _ordered(report):
        shown[finding.kind] += 1
        if shown[finding.kind] > most:
            continue
        what = Text(finding.kind, style=_STYLES[finding.code.level]).append(f"\n{cell(finding.what)}", style="default")
        named = [text for text in (finding.object, None if finding.id is None else f"id {finding.id}") if text]
        table.add_row(Text(finding.code.level, style=_STYLES[finding.code.level]), what, _where(finding), cell_lines(named))
    for kind, count in report.findings.counts.items():
        if count > min(most, shown[kind]):
            table.add_row(CODES[kind].level, f"{count - min(most, shown[kind]):,} more {kind}", "", "--json lists more of them")
    return table


def cell_lines(texts: list[str]) -> Text:
    """Stored texts, a line each, never read as markup; keys break anywhere, so that no part of them is cut."""
    return Text("\n", overflow="fold").join(Text(str(cell(text)), overflow="fold") for text in texts)


def _where(finding: Finding) -> str:
    parts = []
    if finding.partition is not None:
        owner = "archive" if finding.index is None else finding.index
        parts.append(f"{owner} partition {finding.partition}")
    if finding.start_offset is not None and finding.next_offset is not None:
        one = finding.next_offset == finding.start_offset + 1
        parts.append(f"offset {finding.start_offset}" if one else f"offsets {finding.start_offset} to {finding.next_offset - 1}")
    if finding.start_item is not None and finding.next_item is not None:
        one = finding.next_item == finding.start_item + 1
        parts.append(f"item {finding.start_item}" if one else f"items {finding.start_item} to {finding.next_item - 1}")
    return "\n".join(parts)


def verdict_line(report: AuditReport, done: RepairReport | None) -> Text:
    """The last word: what was checked, and what came of it."""
    checked = f"{report.objects:,} objects, {report.size_bytes / 1e6:,.1f} MB, in {report.seconds:.1f} s"
    left = report.findings.counts - repaired_kinds(report, done)
    faults, warnings = (sum(count for kind, count in left.items() if CODES[kind].level == level) for level in ("fault", "warning"))
    if faults:
        return Text(f"FAULTS: {faults:,}; warnings: {warnings:,}; {checked}", style="bold red")
    if warnings:
        return Text(f"warnings: {warnings:,}; no faults; {checked}", style="yellow")
    return Text(f"ok: every item is in exactly one state; {checked}", style="green")


def advice(report: AuditReport) -> list[str]:
    """What to do, once per code that is no note."""
    kinds = sorted((kind for kind, count in report.findings.counts.items() if count and CODES[kind].level != "note"), key=_rank)
    return [f"{kind}: {CODES[kind].meaning}. {_sentence(CODES[kind].hint)}" for kind in kinds]


def _rank(kind: str) -> tuple[int, str]:
    return _LEVELS.index(CODES[kind].level), kind


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}." if text else ""


def plan_lines(plan: RepairPlan) -> list[str]:
    """What a repair would do."""
    lines = []
    for one in plan.letters:
        place = f"{one.letter.partition}/{one.letter.offset}"
        if one.source is None:
            lines.append(f"cannot send the dead letter of {place} again: its record is neither in the media topic nor in the archive")
        else:
            lines.append(f"send the dead letter of {place} (index {one.index}) again, from the {one.source}")
    lines += [f"delete {orphan.key} ({orphan.size_bytes:,} bytes)" for orphan in plan.orphans]
    return [*lines, *([plan.kept_orphans] if plan.kept_orphans else [])]
