"""Random rows and filters, and the plainest evaluator there can be: one row, one condition at a time, from the JSON of the filter."""

from __future__ import annotations

import json
import math
import re
from typing import Any

import pyarrow as pa
from hypothesis import strategies as st

from contracts import attributes as typed
from contracts.item import IdIndex, id_hashes
from contracts.segment import rows_schema
from query.filter_index import FilterIndex
from query.parts import Part, RowColumns

SCHEMA = {
    "colour": "keyword", "tags": "keyword[]", "ok": "bool", "oks": "bool[]", "size": "integer", "sizes": "integer[]", "weight": "float",
    "weights": "float[]", "when": "datetime", "whens": "datetime[]", "place": "geo", "places": "geo[]", "about": "text", "notes": "text[]",
}  # fmt: skip
WORDS = ["cat", "Cats", "dog", "Ähre", "naïve", "7up", ""]
TIMES = [f"2026-11-0{day}T0{hour}:00:00Z" for day in range(1, 5) for hour in range(3)]
INTEGERS = st.integers(-3, 6) | st.sampled_from([2**63 - 1, -(2**63), 2**53 + 1])
FLOATS = st.sampled_from([-1.5, -0.0, 0.0, 0.5, 1.0, 2.0, 1e300])
PLACES = st.fixed_dictionaries(
    {"lat": st.sampled_from([-90.0, -10.0, 0.0, 10.0, 10.5, 90.0]), "lon": st.sampled_from([-180.0, -179.0, 0.0, 5.0, 179.0])}
)
TEXTS = st.lists(st.sampled_from(WORDS), max_size=4).map(lambda words: ", ".join(words))
JSON_VALUES: dict[str, st.SearchStrategy[Any]] = {
    "keyword": st.sampled_from(["red", "green", "blue", "", "Ä", "7"]),
    "bool": st.booleans(),
    "integer": INTEGERS,
    "float": FLOATS,
    "datetime": st.sampled_from(TIMES),
    "geo": PLACES,
    "text": TEXTS,
}


def values_of(kind: str) -> st.SearchStrategy[Any]:
    base = kind.removesuffix("[]")
    stored = JSON_VALUES[base] | st.just(math.nan) if base == "float" else JSON_VALUES[base]
    return st.none() | (st.lists(stored, max_size=3) if kind.endswith("[]") else stored)


LEAVES = st.none() | st.booleans() | st.integers(0, 3) | st.sampled_from([1.0, 0.5, "red", "cat dog", TIMES[0], TIMES[5]]) | PLACES
BOXES = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["a", "b"]), inner, max_size=2), max_leaves=4
)
ROWS = st.fixed_dictionaries(
    {
        "attributes": st.fixed_dictionaries({name: values_of(kind) for name, kind in SCHEMA.items()}),
        "extra": st.dictionaries(st.sampled_from(["a", "b", "colour.x", "d"]), BOXES, max_size=3),
        "text": st.none() | TEXTS,
        "media_type": st.sampled_from([None, "image/png", "text/plain"]),
        "event_time": st.none() | st.sampled_from(TIMES),
    }
)


def make_batch(rows: list[dict[str, Any]], first: int = 0) -> pa.RecordBatch:
    schema = rows_schema(SCHEMA)
    stored = []
    for at, row in enumerate(rows):
        attributes = {name: _stored(value, SCHEMA[name]) for name, value in row["attributes"].items()}
        attributes[typed.EXTRA] = json.dumps(row["extra"], sort_keys=True, ensure_ascii=False, separators=(",", ":")) if row["extra"] else None
        event = None if row["event_time"] is None else typed.parse_time(row["event_time"])
        whole = {field.name: None for field in schema} | {"offset": first + at, "item": 0, "id": f"id{first + at}", "attributes": attributes}
        stored.append(whole | {"text": row["text"], "media_type": row["media_type"], "event_time": event, "produced_at": 0})
    return pa.RecordBatch.from_pylist(stored, schema)


def _stored(value: Any, kind: str) -> Any:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return value
    if isinstance(value, list):
        return [_stored(each, kind.removesuffix("[]")) for each in value]
    return typed.coerce(value, kind)


def make_part(batches: list[pa.RecordBatch], live: Any, indexed: bool) -> Part:
    starts = tuple(sum(batch.num_rows for batch in batches[:at]) for at in range(len(batches)))
    index = FilterIndex(batches[0], IdIndex.of(id_hashes(batches[0].column("id").to_pylist()))) if indexed else None
    columns = RowColumns.of(pa.concat_batches(batches) if batches else make_batch([]))
    return Part("part", tuple(batches), starts, columns, {}, live, filter_index=index)


# ---- the plain evaluator ------------------------------------------------------------------------------------------
def passes(row: dict[str, Any], item_id: str, raw: dict[str, Any]) -> bool:
    def each(clause: Any) -> list[bool]:
        nodes = [] if clause is None else clause if isinstance(clause, list) else [clause]
        return [_node(row, item_id, node) for node in nodes]

    least = raw.get("min_should")
    if least and least["conditions"] and sum(each(least["conditions"])) < least["min_count"]:
        return False
    should = each(raw.get("should"))
    return all(each(raw.get("must"))) and not any(each(raw.get("must_not"))) and (not should or any(should))


def _node(row: dict[str, Any], item_id: str, node: dict[str, Any]) -> bool:
    if "has_id" in node:
        return item_id in [str(wanted) for wanted in node["has_id"]]
    for name in ("is_empty", "is_null"):
        if name in node and "key" not in node:
            return _test(row, node[name]["key"], name, True)
    if "key" not in node:
        return passes(row, item_id, node)
    ((name, body),) = [(name, body) for name, body in node.items() if name != "key"]
    return _test(row, node["key"], name, body)


def _found(row: dict[str, Any], key: str) -> tuple[list[Any], str]:
    """What is at a key, and its type: nothing where it is missing."""
    if key in SCHEMA:
        return [row["attributes"][key]], SCHEMA[key].removesuffix("[]")
    if key in ("text", "media_type", "event_time"):
        return [row[key]], {"text": "text", "media_type": "keyword", "event_time": "datetime"}[key]
    boxes: list[Any] = [row["extra"]]
    for name, bracket in re.findall(r'"?([a-z]+(?:\.x(?="))?)"?(\[\d*\])?', key):
        boxes = [box[name] for box in boxes if isinstance(box, dict) and name in box]
        if bracket:
            boxes = [child for box in boxes if isinstance(box, list) for child in (box if bracket == "[]" else box[int(bracket[1:-1]) :][:1])]
    return boxes, ""


def _test(row: dict[str, Any], key: str, name: str, body: Any) -> bool:
    found, kind = _found(row, key)
    if name == "is_empty":
        return all(value in (None, []) for value in found) is body
    if name == "is_null":
        return any(value is None or (isinstance(value, list) and None in value) for value in found) is body
    if name == "values_count":
        counts = [0 if value is None else len(value) if isinstance(value, list) else 1 for value in found or [None]]
        return any(_between(count, body) for count in counts)
    values = [value for box in found for value in (box if isinstance(box, list) else [box]) if value is not None]
    return any(_one(value, kind, name, body) for value in values)


def _one(value: Any, kind: str, name: str, body: Any) -> bool:
    if name == "match":
        ((form, wanted),) = body.items()
        if form in ("text", "text_any"):
            if not isinstance(value, str):
                return False
            has = [word in _words(value) for word in _words(wanted)]
            return all(has) if form == "text" else any(has)
        equal = [_equal(value, each, kind) for each in (wanted if form in ("any", "except") else [wanted])]
        return not any(equal) if form == "except" else any(equal)
    if name == "range":
        if kind == "datetime" or any(isinstance(bound, str) for bound in body.values()):
            try:
                return _between(typed.parse_time(value), {side: typed.parse_time(bound) for side, bound in body.items()})
            except (ValueError, TypeError):
                return False
        return isinstance(value, int | float) and not isinstance(value, bool) and _between(value, body)
    try:
        place = typed.coerce(value, "geo")
    except ValueError:
        return False
    if name == "geo_radius":
        return _metres(place, body["center"]) <= body["radius"]
    west, east = body["top_left"]["lon"], body["bottom_right"]["lon"]
    inside = west <= place["lon"] <= east if west <= east else place["lon"] >= west or place["lon"] <= east
    return bool(inside and body["bottom_right"]["lat"] <= place["lat"] <= body["top_left"]["lat"])


def _words(text: str) -> list[str]:
    return re.findall(r"[^\W_]+", text.lower())


def _equal(value: Any, wanted: Any, kind: str) -> bool:
    if isinstance(value, float) and math.isnan(value):
        return False
    if kind:
        return bool(typed.coerce(value, kind) == typed.coerce(wanted, kind))
    return isinstance(value, bool) == isinstance(wanted, bool) and bool(value == wanted)


def _between(value: Any, bounds: dict[str, Any]) -> bool:
    tests = {
        "gt": value > bounds.get("gt", 0),
        "gte": value >= bounds.get("gte", 0),
        "lt": value < bounds.get("lt", 0),
        "lte": value <= bounds.get("lte", 0),
    }
    return all(tests[side] for side in bounds)


def _metres(place: dict[str, float], to: dict[str, float]) -> float:
    phi, psi, turn = math.radians(place["lat"]), math.radians(to["lat"]), math.radians(place["lon"] - to["lon"])
    inner = math.sin(phi) * math.sin(psi) + math.cos(phi) * math.cos(psi) * math.cos(turn)
    return 6_371_008.8 * math.acos(max(-1.0, min(1.0, inner)))


# ---- random filters -----------------------------------------------------------------------------------------------
def _match(kind: str) -> st.SearchStrategy[Any]:
    value = JSON_VALUES[kind] if kind else st.sampled_from([1, 1.0, True, "red", "cat dog", 0.5])
    many = st.lists(value, max_size=6)
    forms = [st.fixed_dictionaries({"value": value}), st.fixed_dictionaries({"any": many}), st.fixed_dictionaries({"except": many})]
    if kind in ("text", ""):
        words = st.lists(st.sampled_from(["cat", "DOG", "cats", "ähre", "naïve!", "7up"]), min_size=1, max_size=3).map(" ".join)
        forms += [st.fixed_dictionaries({"text": words}), st.fixed_dictionaries({"text_any": words})]
    return st.one_of(forms).map(lambda body: {"match": body})


def _bounds(bound: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    low = st.none() | st.tuples(st.sampled_from(["gt", "gte"]), bound)
    high = st.none() | st.tuples(st.sampled_from(["lt", "lte"]), bound)
    return st.tuples(low, high).map(lambda sides: dict(side for side in sides if side)).filter(bool)


def _tests(kind: str) -> st.SearchStrategy[Any]:
    counts = _bounds(st.integers(0, 3) | st.just(1.5)).map(lambda body: {"values_count": body})
    flags = st.sampled_from(["is_empty", "is_null"]).flatmap(lambda name: st.booleans().map(lambda flag: {name: flag}))
    options = [_match(kind), counts, flags]
    if kind in ("integer", "float", ""):
        numbers = st.integers(-4, 7) | st.sampled_from([0.5, -1.5, 1e19, 2.0])
        options.append(_bounds(numbers).map(lambda body: {"range": body}))
    if kind in ("datetime", ""):
        options.append(_bounds(st.sampled_from(TIMES)).map(lambda body: {"range": body}))
    if kind in ("geo", ""):
        radius = st.sampled_from([0.5, 60_000.0, 600_000.0, 1.2e6, 2.1e7])
        options.append(st.fixed_dictionaries({"center": PLACES, "radius": radius}).map(lambda body: {"geo_radius": body}))
        corners = st.tuples(PLACES, PLACES).map(lambda two: sorted(two, key=lambda place: place["lat"]))
        options.append(corners.map(lambda two: {"geo_bounding_box": {"bottom_right": two[0], "top_left": two[1]}}))
    return st.one_of(options)


KEYS = [(name, kind.removesuffix("[]")) for name, kind in SCHEMA.items()] + [("text", "text"), ("media_type", "keyword"), ("event_time", "datetime")]
PATHS = ["a", "b", "a.b", "a[]", "a[].b", "a[0]", "a.b[]", '"colour.x"', "d"]
CONDITIONS = st.sampled_from(KEYS + [(path, "") for path in PATHS]).flatmap(lambda key: _tests(key[1]).map(lambda test: {"key": key[0], **test}))
NODES: st.SearchStrategy[Any] = (
    CONDITIONS
    | st.fixed_dictionaries({"has_id": st.lists(st.integers(0, 12).map(lambda number: f"id{number}"), max_size=4)})
    | st.sampled_from([{name: {"key": key}} for name in ("is_empty", "is_null") for key in ("tags", "a.b", "size")])
)


def _filters(nodes: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    clause = st.lists(nodes, max_size=3)
    least = st.fixed_dictionaries({"conditions": clause, "min_count": st.integers(0, 4)})
    return st.fixed_dictionaries({}, optional={"must": clause | nodes, "should": clause, "must_not": clause, "min_should": least})


FILTERS = _filters(NODES | _filters(NODES | _filters(NODES).filter(bool)).filter(bool))
