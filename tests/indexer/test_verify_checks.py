"""The pure checks of `verify` against the slow and plain way to say the same."""

from __future__ import annotations

import hashlib
from collections import Counter

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from contracts.archive_manifest import TarEntry
from contracts.archive_tar import IndexRow
from contracts.deletes import Tombstone
from contracts.item import id_hash, id_hashes
from contracts.ledger import VERDICTS, LedgerRun, merge_runs
from contracts.manifest import LedgerEntry, ObjectEntry
from contracts.media_origin import Items
from indexer.verify.chain_check import Link, broken_links
from indexer.verify.dead_letter_check import Letters, extra_letters, missing_letters
from indexer.verify.findings import CODES, Finding, Findings
from indexer.verify.id_check import check_ids, tombstone_columns
from indexer.verify.ledger_check import Runs, check_entries, check_runs, count_states
from indexer.verify.row_check import StoredRows, match_rows
from indexer.verify.segment_check import DEAD, ID_COLUMNS, LIVE, TOMBSTONE
from indexer.verify.spill import Spill
from indexer.verify.tar_check import check_tar, holes, joined, minus
from tests.examples import examples

KEY = "c/feed-01JD0PHT0S0000000000000000/i/main/p00000/b0000000001/01JD0SEGMENT00000000000000.ledger"
VERSION = st.tuples(st.integers(0, 3), st.integers(0, 2), st.integers(0, 9), st.sampled_from([LIVE, DEAD, TOMBSTONE]))
"""Number of the id, partition, offset, and what it is."""
KEYS = ["segment-0", "segment-1", "segment-2"]


def items_of(run: LedgerRun) -> list[tuple[int, int]]:
    return [(offset, item) for offset in range(run.start_offset, run.next_offset) for item in range(run.start_item, run.next_item)]


@st.composite
def verdicts(draw: st.DrawFn) -> list[list[str]]:
    """Of each offset the verdicts of its items; an offset without any is a gap."""
    word = st.sampled_from([word for word in VERDICTS if word not in ("gap", "lost")])
    return draw(st.lists(st.lists(word, max_size=6), min_size=1, max_size=12))


def runs_of(words: list[list[str]]) -> list[LedgerRun]:
    runs = []
    for offset, items in enumerate(words):
        runs += [LedgerRun(offset, offset + 1, item, item + 1, word) for item, word in enumerate(items)]
        runs += [] if items else [LedgerRun(offset, offset + 1, 0, 0, "gap")]
    return merge_runs(runs)


def stored_rows(places: list[tuple[int, int, int]]) -> StoredRows:
    offset, item, segment = np.array(places, np.int64).reshape(-1, 3).T
    return StoredRows(offset, item.astype(np.int32), segment.astype(np.uint32))


def missing_places(findings: list[Finding]) -> list[tuple[int, int]]:
    found: list[tuple[int, int]] = []
    for one in findings:
        assert one.start_offset is not None and one.next_offset is not None and one.start_item is not None and one.next_item is not None
        found += [(offset, item) for offset in range(one.start_offset, one.next_offset) for item in range(one.start_item, one.next_item)]
    return found


@settings(max_examples=examples(300), deadline=None)
@given(verdicts(), st.data())
def test_rows_are_matched_with_runs_as_sets_of_items_are(words: list[list[str]], data: st.DataObject) -> None:
    runs = runs_of(words)
    wanted = [place for run in runs if run.verdict == "row" for place in items_of(run)]
    kept = [place for place in wanted if data.draw(st.integers(0, 3))]
    strange = data.draw(st.lists(st.tuples(st.integers(0, 13), st.integers(0, 7)), max_size=4))
    stored = [(offset, item, data.draw(st.integers(0, 2))) for offset, item in [*kept, *strange]]
    findings = list(match_rows(Runs.of(runs), stored_rows(data.draw(st.permutations(stored))), KEYS))
    counts = Counter((offset, item) for offset, item, _ in stored)
    by_kind = {kind: [one for one in findings if one.kind == kind] for kind in ("row_missing", "row_twice", "row_without_verdict")}
    assert sorted(missing_places(by_kind["row_missing"])) == sorted(place for place in wanted if not counts[place])
    assert sorted(missing_places(by_kind["row_twice"])) == sorted((counts - Counter(set(counts))).elements())
    assert sorted(missing_places(by_kind["row_without_verdict"])) == sorted(place for place in counts.elements() if place not in wanted)


@settings(max_examples=examples(300), deadline=None)
@given(verdicts(), st.data())
def test_a_ledger_that_tiles_has_no_findings_and_a_run_that_is_dropped_or_doubled_has(words: list[list[str]], data: st.DataObject) -> None:
    runs = runs_of(words)
    entry = LedgerEntry(object=ObjectEntry.of(KEY, b""), start_offset=0, next_offset=len(words))
    assert not list(check_runs(Runs.of(runs), entry))
    assert not [f for start in range(len(words)) for f in check_runs(Runs.of(runs).within(start, start + 1), cut(entry, start, start + 1))]
    at = data.draw(st.integers(0, len(runs) - 1))
    rest = runs[:at] + runs[at + 1 :]
    dropped = list(check_runs(Runs.of(rest), entry))
    told = {offset for one in dropped if one.kind == "offsets_without_verdict" for offset in range(one.start_offset or 0, one.next_offset or 0)}
    assert told == set(range(len(words))) - {offset for run in rest for offset in range(run.start_offset, run.next_offset)}
    left = {place for run in rest for place in items_of(run)}
    highest = {offset: item for offset, item in sorted(left)}
    holes_of = {(offset, item) for offset, last in highest.items() for item in range(last)} - left
    assert set(missing_places([one for one in dropped if one.kind == "items_without_verdict"])) == holes_of
    assert {one.kind for one in dropped} <= {"offsets_without_verdict", "items_without_verdict"}
    if runs[at].items:
        doubled = list(check_runs(Runs.of([*runs, runs[at]]), entry))
        assert {one.kind for one in doubled} & {"items_with_two_verdicts", "offsets_with_two_verdicts"}
        assert all(one.start_offset is not None and runs[at].start_offset <= one.start_offset < runs[at].next_offset for one in doubled)


def cut(entry: LedgerEntry, start: int, end: int) -> LedgerEntry:
    return entry.model_copy(update={"start_offset": start, "next_offset": end})


def test_entries_that_leave_out_or_repeat_offsets_or_miss_the_checkpoint_are_told() -> None:
    whole = LedgerEntry(object=ObjectEntry.of(KEY, b""), start_offset=0, next_offset=1)

    def told(*spans: tuple[int, int]) -> list[tuple[str, int | None, int | None]]:
        return [(one.kind, one.start_offset, one.next_offset) for one in check_entries([cut(whole, *span) for span in spans], 10, 50)]

    assert told((10, 20), (20, 50)) == [] and told((20, 50), (10, 20)) == []
    assert told() == [("offsets_without_verdict", 10, 50)]
    assert told((10, 20), (30, 50)) == [("offsets_without_verdict", 20, 30)]
    assert told((10, 30), (20, 50)) == [("offsets_with_two_verdicts", 20, 30)]
    assert told((10, 60)) == [("offsets_with_two_verdicts", 50, 60)]
    assert told((5, 50)) == [("offsets_with_two_verdicts", 5, 10)]


def test_each_verdict_is_one_state_and_lost_offsets_count_one_each() -> None:
    runs = [
        LedgerRun(0, 4, 0, 2, "superseded"),
        LedgerRun(4, 5, 0, 3, "deleted"),
        LedgerRun(5, 7, 0, 1, "expired"),
        LedgerRun(7, 9, 0, 0, "lost"),
        LedgerRun(9, 19, 0, 0, "gap"),
        LedgerRun(19, 20, 0, 1, "delete"),
        LedgerRun(20, 21, 0, 1, "patch", "missed"),
        LedgerRun(21, 22, 0, 5, "reject", "empty"),
        LedgerRun(22, 23, 0, 1, "delete", "decode_failed"),
        LedgerRun(23, 30, 0, 9, "row"),
    ]
    assert count_states(runs) == {"superseded": 8, "deleted": 3, "expired": 2, "lost": 2, "gap": 10, "applied": 2, "dead_lettered": 6}


@settings(max_examples=examples(200), deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(0, 3), st.integers(0, 2), st.integers(0, 9), st.sampled_from([LIVE, DEAD, TOMBSTONE])),
        max_size=12,
        unique_by=lambda v: v[:3],
    )
)
def test_versions_of_ids_are_judged_as_one_by_one(versions: list[tuple[int, int, int, int]]) -> None:
    columns = {name: np.zeros(len(versions), kind) for name, kind in ID_COLUMNS.items()}
    for at, (number, _, offset, kind) in enumerate(versions):
        columns["high"][at], columns["low"][at] = id_hashes([f"id-{number}"])[0]
        columns["owner"][at], columns["effective_offset"][at], columns["own_offset"][at], columns["kind"][at] = at, offset, offset, kind
    verdict = check_ids(columns, np.array([partition for _, partition, _, _ in versions], np.int64))
    newer = {
        at: [other[3] for other in sorted(versions, key=lambda v: v[2]) if other[:2] == one[:2] and other[2] > one[2]]
        for at, one in enumerate(versions)
    }
    assert {held[0] for held in verdict.outlived} == {at for at, one in enumerate(versions) if one[3] == LIVE and TOMBSTONE in newer[at]}
    assert {held[0] for held in verdict.causeless} == {at for at, one in enumerate(versions) if one[3] == DEAD and not newer[at]}
    states = Counter((one[1], "deleted" if newer[at][:1] == [TOMBSTONE] else "superseded") for at, one in enumerate(versions) if one[3] == DEAD)
    assert verdict.dead == states
    live = Counter((number, partition) for number, partition, _, kind in versions if kind == LIVE)
    ids = Counter(number for number, _, _, kind in versions if kind == LIVE)
    assert len(verdict.twice) == sum(count - 1 for count in live.values())
    assert len(verdict.twice) + len(verdict.apart) == sum(count - 1 for count in ids.values())


def test_tombstones_become_versions_in_the_order_of_their_hashes() -> None:
    columns = tombstone_columns([Tombstone(id_hash(f"id-{n}"), n, 0, 0, origin_offset=None if n else 7) for n in range(5)], owner=3)
    assert (np.diff(columns["high"].astype(object)) > 0).all() and set(columns["kind"]) == {TOMBSTONE}
    hashes = {id_hash(f"id-{n}"): n for n in range(5)}
    own = [hashes[int(high).to_bytes(8) + int(low).to_bytes(8)] for high, low in zip(columns["high"], columns["low"], strict=True)]
    assert columns["own_offset"].tolist() == own and columns["effective_offset"].tolist() == [n or 7 for n in own]


@settings(max_examples=examples(100), deadline=None)
@given(st.lists(st.lists(st.integers(0, 2**64 - 1), max_size=20), max_size=6), st.tuples(st.integers(0, 2**64), st.integers(0, 2**64)))
def test_a_spill_gives_back_what_lies_in_a_range_and_forgets_what_is_taken_back(
    tmp_path_factory, runs: list[list[int]], span: tuple[int, int]
) -> None:  # type: ignore[no-untyped-def]
    spill = Spill(tmp_path_factory.mktemp("spill"), {"key": np.uint64, "value": np.int32}, "key")
    rows = []
    for number, keys in enumerate(runs):
        mark = spill.mark()
        spill.add({"key": np.array([5], np.uint64), "value": np.array([-1])})
        spill.rewind(mark)
        spill.add({"key": np.array(sorted(keys), np.uint64), "value": np.full(len(keys), number)})
        rows += [(key, number) for key in keys]
    low, high = sorted(span)
    found = spill.between(low, high)
    assert sorted(zip(found["key"].tolist(), found["value"].tolist(), strict=True)) == sorted(row for row in rows if low <= row[0] < high)
    windows = list(spill.windows())
    assert sum(len(spill.between(*window)["key"]) for window in windows) == len(spill) == len(rows)
    spill.close()


@settings(max_examples=examples(200), deadline=None)
@given(*[st.lists(st.tuples(st.integers(0, 20), st.integers(0, 20)).map(lambda pair: (min(pair), max(pair))), max_size=6)] * 2)
def test_intervals_are_subtracted_as_sets_are(intervals: list[tuple[int, int]], others: list[tuple[int, int]]) -> None:
    def offsets(spans: list[tuple[int, int]]) -> set[int]:
        return {offset for start, end in spans for offset in range(start, end)}

    left = minus(intervals, others)
    assert offsets(left) == offsets(intervals) - offsets(others) and left == joined(left)
    assert list(holes(sorted(offsets(intervals)), 0, 21)) == minus([(0, 21)], intervals)


def test_a_link_that_is_broken_names_the_version_that_was_replaced() -> None:
    def links(*shas: str, names: dict[int, str] | None = None) -> list[Link | None]:
        said = {version: (version - 1, f"sha-{version - 1}") for version in range(2, len(shas) + 1)} | {
            version: (version - 1, sha) for version, sha in (names or {}).items()
        }
        return [Link(f"v{version}", version, sha, said.get(version)) for version, sha in enumerate(shas, 1)]

    right = ["sha-1", "sha-2", "sha-3", "sha-4", "sha-5"]
    assert not list(broken_links(links(*right)))
    assert [key for key, _ in broken_links(links("sha-1", "other", *right[2:]))] == ["v2"]
    assert [key for key, _ in broken_links(links("sha-1", "other", *right[2:], names={2: "wrong"}))] == ["v2"]
    assert [key for key, _ in broken_links(links("other", *right[1:]))] == ["v1"]
    (last,) = broken_links(links(*right, names={5: "wrong"}))
    assert last[0] == "v4" and "or version 5 was replaced itself" in last[1]
    assert not list(broken_links([links(*right)[0], None, *links(*right)[2:]]))


def test_letters_are_missing_by_item_and_excused_by_retention() -> None:
    runs = [
        LedgerRun(3, 5, 0, 1, "reject", "empty"),
        LedgerRun(9, 10, 2, 6, "reject", "bad_vector"),
        LedgerRun(11, 12, 0, 1, "row", "bad_text", True),
    ]
    letters = Letters()
    letters.add(4, Items.of([0]))
    letters.add(9, Items.of([2, 5]))
    letters.add(7, Items.of([0]))
    missing, expired = missing_letters(runs, letters, 1)
    assert [(one.offset, dict(one.items)) for one in missing] == [
        (3, {0: ("empty", False)}), (9, {3: ("bad_vector", False), 4: ("bad_vector", False)}), (11, {0: ("bad_text", True)})
    ]  # fmt: skip
    assert expired == [] and extra_letters(runs, letters, 12) == 1 and extra_letters(runs, letters, 7) == 0
    letters.is_truncated = True
    missing, expired = missing_letters(runs, letters, 1)
    assert (expired, [one.offset for one in missing]) == ([3], [9, 11])
    assert missing_letters(runs, Letters(is_truncated=True), 1) == ([], [3, 4, 9, 11])


def test_findings_are_counted_beyond_what_is_kept_and_the_worst_decides() -> None:
    findings = Findings()
    assert (findings.level, findings.exit_code) == (None, 0)
    findings.extend(Finding("orphan", "x") for _ in range(1500))
    assert (len(findings.kept), findings.counts["orphan"], findings.exit_code) == (1000, 1500, 0)
    joined_findings = Findings()
    joined_findings.add(Finding("id_in_two_partitions", "x"))
    joined_findings.join(findings)
    assert (joined_findings.counts["orphan"], joined_findings.exit_code) == (1500, 1)
    joined_findings.add(Finding("row_missing", "x"))
    assert joined_findings.exit_code == 6 and all(code.meaning for code in CODES.values())


def test_a_tar_whose_index_points_elsewhere_is_told() -> None:
    names = [f"{offset:020d}.json".encode().ljust(512, b"\0") for offset in (5, 6)]
    data, sha = b"".join(names), [hashlib.sha256(name).digest() for name in names]
    tar = TarEntry(
        start_offset=5, next_offset=8, key=KEY, size_bytes=1024, sha256="0" * 64, records=2, index_start=1024, index_bytes=0, index_sha256="0" * 64
    )  # fmt: skip

    def told(*rows: IndexRow, records: int = 2) -> list[str]:
        return [one.what for one in check_tar(tar.model_copy(update={"records": records}), rows, data)]

    right = IndexRow(5, 0, 512, sha[0]), IndexRow(6, 512, 512, sha[1])
    assert told(*right) == [] and told(right[0], IndexRow(6, None, 0, b""), records=1) == []
    assert "the manifest says 2" in told(right[0])[0]
    assert (
        "another record lies" in told(right[0], IndexRow(6, 0, 512, sha[0]), records=2)[0]
        or "overlap" in told(right[0], IndexRow(6, 0, 512, sha[0]))[0]
    )
    assert "another record lies" in told(IndexRow(5, 512, 512, sha[1]), records=1)[0]
    assert "differ from the sha256" in told(right[0], IndexRow(6, 512, 512, sha[0]))[0]
    assert "comes after 6" in told(IndexRow(6, 512, 512, sha[1]), IndexRow(5, 0, 512, sha[0]))[0]
    assert "overlap" in told(right[0], IndexRow(6, 512, 1000, sha[1]))[0]
