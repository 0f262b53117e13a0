"""Filters: from the JSON of a request to a typed tree (docs/filters.md).

Takes: the filter of a request, a schema. Gives: a `Filter`. Owns: the forms and their limits; Qdrant's names.
Never: ignores a form that it does not know, or guesses a type.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from contracts.errors import SettingsError
from query.filter_paths import parse_path
from query.filter_tests import read_test
from query.filter_tree import Condition, Empty, Filter, HasId, Key, Node, Null, Test

MAX_CONDITIONS = 256
"""Conditions of one filter, together."""
MAX_DEPTH = 8
"""Filters inside each other."""
MAX_VALUES = 10_000
"""Values of all lists of one filter, together."""
MAX_KEY_CHARACTERS = 512
ROW_COLUMNS = {"event_time": "datetime", "media_type": "keyword", "text": "text"}
"""Keys of the payload that no attribute has to be declared for."""

_CLAUSES = ("must", "should", "must_not")
_GROUP = (*_CLAUSES, "min_should")
_FORMS = 'a filter is {"must": [...], "should": [...], "must_not": [...], "min_should": {"conditions": [...], "min_count": N}}'
_CONDITIONS = (
    'a condition is {"key": NAME, "match" | "range" | ...: {...}}, {"is_empty": {"key": NAME}}, {"is_null": ...}, {"has_id": [...]} or a filter'
)
_NOT_HERE = ("nested", "has_vector")


@dataclass(slots=True)
class _Reader:
    """One filter being read: the schema, and what is left of its limits."""

    schema: Mapping[str, str]
    conditions: int = MAX_CONDITIONS
    values: int = MAX_VALUES

    def group(self, raw: Mapping[str, Any], where: str, depth: int) -> Filter:
        if depth > MAX_DEPTH:
            raise invalid(where, f"filters are nested deeper than {MAX_DEPTH}", "write the conditions in fewer levels")
        unknown = sorted(str(name)[:60] for name in set(raw) - set(_GROUP))
        if unknown:
            raise invalid(where, f"{unknown[0]!r} is not a part of a filter", _FORMS)
        must, should, must_not = (self._nodes(raw.get(name), _under(where, name), depth) for name in _CLAUSES)
        least = raw.get("min_should")
        if least is None:
            return Filter(must, should, must_not)
        where = _under(where, "min_should")
        if not isinstance(least, Mapping) or set(least) != {"conditions", "min_count"}:
            raise invalid(where, "not an object of `conditions` and `min_count`", _FORMS)
        count = least["min_count"]
        if isinstance(count, bool) or not isinstance(count, int) or count < 0:
            raise invalid(where, "min_count is not a whole number from 0", "say how many of the conditions must hold")
        nodes = self._nodes(least["conditions"], _under(where, "conditions"), depth)
        return Filter(must, should, must_not, nodes, count)

    def _nodes(self, raw: Any, where: str, depth: int) -> tuple[Node, ...]:
        if raw is None:
            return ()
        if isinstance(raw, Mapping):
            return (self._node(raw, where, depth),)
        if not isinstance(raw, list | tuple):
            raise invalid(where, "not a list of conditions", _CONDITIONS)
        return tuple(self._node(each, f"{where}[{at}]", depth) for at, each in enumerate(raw))

    def _node(self, raw: Any, where: str, depth: int) -> Node:
        self.conditions -= 1
        if self.conditions < 0:
            raise invalid(
                where, f"the filter has more than {MAX_CONDITIONS} conditions", 'use fewer, or one {"match": {"any": [...]}} for many values'
            )
        if not isinstance(raw, Mapping):
            raise invalid(where, "a condition is not an object", _CONDITIONS)
        given = {str(name): value for name, value in raw.items() if value is not None}
        refused = [name for name in _NOT_HERE if name in given]
        if refused:
            raise invalid(where, f"{refused[0]!r} is not supported", _CONDITIONS)
        if "key" in given:
            return self._condition(given, where)
        if "has_id" in given and len(given) == 1:
            return HasId(self._ids(given["has_id"], _under(where, "has_id")))
        for name, test in (("is_empty", Empty()), ("is_null", Null())):
            if name in given and len(given) == 1:
                return self._named(given[name], test, _under(where, name))
        if given and set(given) <= set(_GROUP):
            return self.group(given, where, depth + 1)
        raise invalid(where, f"a condition has {sorted(given)[0][:60]!r}, and no key" if given else "a condition is empty", _CONDITIONS)

    def _named(self, raw: Any, test: Test, where: str) -> Condition:
        if not isinstance(raw, Mapping) or set(raw) != {"key"}:
            raise invalid(where, "not an object with a key", _CONDITIONS)
        return Condition(self._key(raw["key"], where), test)

    def _condition(self, given: dict[str, Any], where: str) -> Node:
        key = self._key(given.pop("key"), where)
        if len(given) != 1:
            what = "has no test" if not given else f"has several tests ({', '.join(sorted(given))[:120]})"
            raise invalid(
                where,
                f"the condition on {key.name[:60]!r} {what}",
                "give one of match, range, geo_radius, geo_bounding_box, values_count, is_empty, is_null",
            )
        name, raw = next(iter(given.items()))
        if name in ("is_empty", "is_null"):
            if not isinstance(raw, bool):
                raise invalid(_under(where, name), "not true or false", "say whether there may be a value")
            found = Condition(key, Empty() if name == "is_empty" else Null())
            return found if raw else Filter(must_not=(found,))
        return Condition(key, read_test(name, raw, key, self._fail(key, _under(where, name)), self._spend))

    def _key(self, raw: Any, where: str) -> Key:
        if not isinstance(raw, str) or not 0 < len(raw) <= MAX_KEY_CHARACTERS:
            raise invalid(where, f"the key is not a string of 1 to {MAX_KEY_CHARACTERS} characters", "name an attribute")
        kind = self.schema.get(raw) or self.schema.get(raw.removesuffix("[]"), "")
        if kind and (raw in self.schema or kind.endswith("[]")):  # `tags[]` is `tags`
            return Key(raw.removesuffix("[]"), "attribute", kind.removesuffix("[]"), kind.endswith("[]"))
        if raw in ROW_COLUMNS:
            return Key(raw, "row", ROW_COLUMNS[raw])
        try:
            path = parse_path(raw)
        except ValueError as error:
            raise invalid(where, f"key {raw[:60]!r}: {error}", "declare the attribute, or write the path to it") from None
        if path[0] in self.schema:
            raise invalid(where, f"key {raw[:60]!r}: {path[0]!r} is declared, and has no parts", "name the attribute alone")
        return Key(raw, "extra", path=path)

    def _ids(self, raw: Any, where: str) -> tuple[str, ...]:
        if not isinstance(raw, list | tuple) or any(isinstance(each, bool) or not isinstance(each, str | int) for each in raw):
            raise invalid(where, "not a list of ids", "ids are strings or whole numbers")
        self._spend(len(raw))
        return tuple(dict.fromkeys(str(each) for each in raw))

    def _spend(self, values: int) -> None:
        self.values -= values
        if self.values < 0:
            raise SettingsError(f"the filter has more than {MAX_VALUES} values in its lists", hint="split the query", code="invalid_filter")

    def _fail(self, key: Key, where: str) -> Callable[[str, str], SettingsError]:
        kind = key.kind + ("[]" if key.is_array else "")
        name = f"attribute {key.name[:60]!r} ({kind})" if kind else f"undeclared attribute {key.name[:60]!r}"
        return lambda what, hint: invalid(where, f"{name}: {what}", hint)


def parse_filter(raw: Any, schema: Mapping[str, str]) -> Filter | None:
    """Read the filter of a request; None, null and an empty object are no filter.

    Parameters
    ----------
    raw : Any
        As it came out of JSON.
    schema : Mapping of str to str
        The collection's declared attributes.

    Raises
    ------
    SettingsError
        ``invalid_filter``: a form that is not known, a value of another type than the attribute, or more than a limit; the message says where.
    """
    if raw is None or raw == {}:
        return None
    if not isinstance(raw, Mapping):
        raise invalid("", "a filter is not an object", _FORMS)
    return _Reader(schema).group(raw, "", 1)


def invalid(where: str, what: str, hint: str) -> SettingsError:
    """The error of a filter that cannot be evaluated."""
    return SettingsError(f"filter{'.' if where else ''}{where}: {what}", hint=hint, code="invalid_filter")


def _under(where: str, name: str) -> str:
    return f"{where}.{name}" if where else name
