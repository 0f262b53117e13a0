"""`python -m bench.filter_masks [ROWS]`: what a filter costs on one part, with an index and without.

Takes: a number of rows. Gives: a table: seconds and bytes of building, milliseconds of masks by selectivity. Owns: the skewed attributes.
Never: searches vectors.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from contracts.item import IdIndex, id_hashes
from contracts.segment import rows_schema
from query.filter_index import FilterIndex
from query.filter_masks import apply_filter, estimate_filter
from query.filter_tree import Condition
from query.filters import parse_filter
from query.parts import Part, RowColumns

SCHEMA = {"category": "keyword", "tags": "keyword[]", "number": "integer", "score": "float", "at": "datetime", "about": "text"}
SHARES = (1e-5, 1e-3, 0.1, 0.5, 0.99)
SEED = 20261123
REPEATS = 15


def make_part(rows: int) -> Part:
    """One part whose categories have the measured shares; the others come by Zipf's law, times ascend with a jitter, numbers are skewed."""
    random = np.random.default_rng(SEED)
    names = pa.array([f"share-{share}" for share in SHARES[:-2]] + [f"other-{number}" for number in range(1000)])
    shares = np.concatenate((SHARES[:-2], 1 / np.arange(1, 1001)))
    shares[3:] *= (1 - sum(SHARES[:-2])) / shares[3:].sum()
    words = names.take(pa.array(random.choice(len(names), 3 * rows, p=shares)))
    at = 1_790_000_000_000_000 + np.arange(rows) * 1_000_000 + random.integers(0, 60_000_000, rows)
    columns: dict[str, pa.Array] = {
        "category": names.take(pa.array(random.choice(len(names), rows, p=shares))),
        "tags": pa.ListArray.from_arrays(pa.array(np.arange(rows + 1, dtype=np.int32) * 3), words),
        "number": pa.array(np.minimum(random.zipf(1.2, rows), 10**9)),
        "score": pa.array(random.random(rows)),
        "at": pa.array(at).cast(pa.timestamp("us", tz="UTC")),
        "about": pc.binary_join_element_wise(words[0::3], words[1::3], words[2::3], " "),
        "extra": pa.nulls(rows, pa.utf8()),
    }
    schema = rows_schema(SCHEMA)
    struct = schema.field("attributes").type
    known: dict[str, pa.Array] = {
        "offset": pa.array(np.arange(rows)),
        "item": pa.array(np.zeros(rows, np.int32)),
        "id": pa.array([f"item-{number}" for number in range(rows)]),
        "attributes": pa.StructArray.from_arrays([columns[field.name] for field in struct], fields=list(struct)),
    }
    batch = pa.RecordBatch.from_arrays([known.get(field.name, pa.nulls(rows, field.type)).cast(field.type) for field in schema], schema=schema)
    index = FilterIndex(batch, IdIndex.of(id_hashes(batch.column("id").to_pylist())))
    return Part("bench", (batch,), (0,), RowColumns.of(batch), {}, np.ones(rows, np.bool_), filter_index=index)


def milliseconds(work: Callable[[], Any], repeats: int = REPEATS) -> float:
    """Median time of some work."""
    work()
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        work()
        times.append(time.perf_counter() - started)
    return float(np.median(times)) * 1000


def main(arguments: list[str]) -> None:
    """Measure and print."""
    rows = int(arguments[0]) if arguments else 1_000_000
    part = make_part(rows)
    bare = replace(part, filter_index=None)
    print("attribute   build s   bytes/row")
    for key, kind in SCHEMA.items():
        test = {"match": {"text": "other"}} if kind == "text" else {"match": {"value": _some(kind)}}
        chosen = parse_filter({"must": {"key": key, **test}}, SCHEMA)
        assert chosen is not None and isinstance(chosen.must[0], Condition)
        alone, started = FilterIndex(part.batches[0], IdIndex(np.zeros((0, 2), np.uint64), np.zeros(0, np.uint32))), time.perf_counter()
        alone.estimate(chosen.must[0])
        print(f"{key:10} {time.perf_counter() - started:8.3f} {alone.size_bytes / rows:11.1f}")
    print("filter                         share found   index ms    scan ms   estimate ms")
    for name, raw in filters(part):
        chosen = parse_filter({"must": raw}, SCHEMA)
        share = np.count_nonzero(apply_filter(chosen, part, part.live)) / rows
        with_index = milliseconds(lambda: apply_filter(chosen, part, part.live))  # noqa: B023 - called here
        without = milliseconds(lambda: apply_filter(chosen, bare, part.live), 5)  # noqa: B023
        estimated = milliseconds(lambda: estimate_filter(chosen, part))  # noqa: B023
        print(f"{name:30} {share:11.5f} {with_index:10.3f} {without:10.3f} {estimated:13.3f}")


def _some(kind: str) -> Any:
    return {"integer": 1, "float": 0.5, "datetime": "2026-11-01T00:00:00Z"}.get(kind, "other-0")


def filters(part: Part) -> list[tuple[str, Any]]:
    """Named filters of each selectivity."""
    columns = part.batches[0].column("attributes")
    number, times = (np.sort(np.asarray(columns.field(name).cast(pa.int64()))) for name in ("number", "at"))
    found: list[tuple[str, Any]] = []
    for share in SHARES:
        if share < 0.5:
            category: Any = {"key": "category", "match": {"value": f"share-{share}"}}
        else:
            others = [f"other-{at}" for at in range(1000)]
            category = {"key": "category", "match": {"any": others[: 18 if share == 0.5 else 1000] + (["share-0.1"] if share > 0.5 else [])}}
        last = len(times) - 1
        found += [
            (f"keyword {share}", category),
            (f"integer range {share}", {"key": "number", "range": {"gte": int(number[min(last, round((1 - share) * len(number)))])}}),
            (f"float range {share}", {"key": "score", "range": {"lt": share}}),
            (f"datetime range {share}", {"key": "at", "range": {"lt": int(times[round(share * last)]) / 1_000_000}}),
        ]
    tag, word = {"key": "tags", "match": {"value": "share-0.1"}}, {"key": "about", "match": {"text": "other 7"}}
    both = [{"key": "tags", "match": {"value": "share-0.001"}}, {"key": "score", "range": {"lt": 0.5}}]
    return [*found, ("array of keywords", tag), ("words", word), ("two conditions", both), ("not 0.001", {"must_not": both[0]})]


if __name__ == "__main__":
    main(sys.argv[1:])
