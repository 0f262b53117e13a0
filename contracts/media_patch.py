"""Patches: a record that changes an item's attributes and leaves the rest as it is (docs/formats/media_record.md, Patches).

The patch is an RFC 7396 merge patch over the attributes as a user sees them. The embed worker checks it and passes it on as it is; builder and tail
both apply it here, to the id's newest row below it, so that they agree. A declared attribute is replaced as a whole by a value of its type; the rest
lies in ``extra`` and is merged.

Takes: a patch's bytes, base rows wherever they lie. Gives: checked patches, stored rows with the patch's version. Owns: what a patch changes.
Never: fails once a patch was checked, or looks for a base row.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from contracts import canonical_json
from contracts.attributes import EXTRA, MAX_ATTRIBUTES_BYTES, coerce
from contracts.errors import CorruptError, RecordError
from contracts.vectors_batch import VECTOR_PREFIX, vector_matrix

PATCH_TYPES = ("", "application/json", "application/merge-patch+json")
MISSED = "missed"
"""Reason of a patch that found no live row."""

_OF_BASE = ("text", "event_time", "media_type", "media_sha256", "reason")
_OF_PATCH = ("offset", "item", "origin_offset", "origin_item", "id", "produced_at")

_PLACE, _MEDIA_PLACE = ("offset", "item"), ("media_offset", "media_item")

_Attributes = dict[str, Any]


def checked_patch(value: bytes, schema: Mapping[str, str]) -> str:
    """Canonical JSON of a merge patch whose declared attributes have their types.

    Raises
    ------
    RecordError
        ``bad_attributes``: not a JSON object, or an attribute of the wrong type, which the message names.
    """
    try:
        patch = canonical_json.load(value, MAX_ATTRIBUTES_BYTES)
    except ValueError as error:
        raise RecordError("bad_attributes", f"the patch: {error}") from None
    if not isinstance(patch, dict):
        raise RecordError("bad_attributes", "the patch is not a JSON object")
    for name in schema.keys() & patch.keys():
        try:
            coerce(patch[name], schema[name])
        except (ValueError, OverflowError) as error:
            raise RecordError("bad_attributes", f"attribute {name} ({schema[name]}): {error}") from None
    return canonical_json.dump(patch).decode("utf-8")


def merge_patch(target: Any, patch: Any) -> Any:
    """RFC 7396, section 2: objects are merged, null removes, everything else replaces."""
    if not isinstance(patch, dict):
        return patch
    merged = dict(target) if isinstance(target, dict) else {}
    for name, value in patch.items():
        if value is None:
            merged.pop(name, None)
        else:
            merged[name] = merge_patch(merged.get(name), value)
    return merged


def patched_attributes(stored: Mapping[str, Any] | None, patch: Mapping[str, Any], schema: Mapping[str, str]) -> _Attributes | None:
    """Stored attributes (columns of `contracts.attributes.struct_type`) after a patch; None where ``extra`` would pass the limit.

    A name that was declared after the patch was checked may have a value of another type: it is kept in ``extra``, as it would have been then.
    """
    out = {name: (stored or {}).get(name) for name in schema}
    held = (stored or {}).get(EXTRA)
    rest = {}
    for name, value in patch.items():
        try:
            out[name] = coerce(value, schema[name])
        except (KeyError, ValueError, OverflowError):
            rest[name] = value
    earlier = [name for name in patch if name not in rest and f'"{name}":' in (held or "")]  # from before the attribute was declared
    if not rest and not earlier:
        return out | {EXTRA: held}
    extra = canonical_json.load(held) if held else {}
    for name in earlier:
        extra.pop(name, None)
    merged = canonical_json.dump(merge_patch(extra, rest))
    if len(merged) > max(MAX_ATTRIBUTES_BYTES, len((held or "").encode())):
        return None
    return out | {EXTRA: None if merged == b"{}" else merged.decode("utf-8")}


@dataclass(frozen=True, slots=True)
class BaseRow:
    """A row that a patch may apply to: row `row` of `rows`, and `vector`, which gives its vector of a field, shape (d,), or None."""

    rows: pa.RecordBatch
    row: int
    vector: Callable[[str], NDArray[Any] | None]


@dataclass(frozen=True, slots=True)
class PatchedRow:
    """A row in the making: a base row, and its attributes and acl after all patches so far; `at` is the newest one's row in the batch."""

    base: BaseRow
    at: int
    attributes: _Attributes
    acl: list[str] | None


class Patcher:
    """Applies the patches of one vectors batch.

    Parameters
    ----------
    batch : pyarrow.RecordBatch
        n rows of the index's batch schema.
    schema : Mapping of str to str
        The collection's attributes.
    where : str
        Names the batch in errors.
    """

    def __init__(self, batch: pa.RecordBatch, schema: Mapping[str, str], where: str) -> None:
        self._batch, self._schema, self._where = batch, schema, where
        self._matrices: dict[str, tuple[NDArray[Any], NDArray[np.bool_]]] = {}
        self._cells: dict[str, list[Any]] = {}

    def row(self, at: int) -> BaseRow:
        """An upsert of this batch as a base."""
        return BaseRow(self._batch, at, lambda field: self._vector(field, at))

    def _vector(self, field: str, at: int) -> NDArray[Any] | None:
        if field not in self._matrices:
            self._matrices[field] = vector_matrix(self._batch.column(VECTOR_PREFIX + field))
        matrix, present = self._matrices[field]
        return matrix[at] if present[at] else None

    def _cell(self, column: str, at: int) -> Any:
        if column not in self._cells:  # as a whole: where one row is a patch, others are, and single values cost ten times as much
            self._cells[column] = self._batch.column(column).to_pylist()
        return self._cells[column][at]

    def apply(self, live: BaseRow | PatchedRow | None, at: int) -> PatchedRow | Literal["missed", "too_large"]:
        """Row `at` of the batch, a patch, on the id's newest live row; a reason where it changes nothing.

        Raises
        ------
        CorruptError
            The patch is not the JSON object that an embed worker writes.
        """
        try:
            patch = canonical_json.load(self._cell("patch", at) or "")
        except ValueError:
            patch = None
        if not isinstance(patch, dict):
            raise CorruptError(f"{self._where}: a patch is not a JSON object", hint="only headwater may write to a vectors topic")
        if live is None:
            return "missed"
        base = live.base if isinstance(live, PatchedRow) else live
        before = live.attributes if isinstance(live, PatchedRow) else _cell(base, "attributes")
        attributes = patched_attributes(before, patch, self._schema)
        if attributes is None:
            return "too_large"
        acl = self._cell("acl", at)
        if acl is None:
            acl = live.acl if isinstance(live, PatchedRow) else _cell(base, "acl")
        return PatchedRow(base, at, attributes, acl)

    def rows(self, plain: pa.RecordBatch, made: Mapping[int, PatchedRow]) -> pa.RecordBatch:
        """Stored rows with some replaced by what patches made: the version is the patch's, text, times and media are the base row's.

        Parameters
        ----------
        plain : pyarrow.RecordBatch
            n rows of `contracts.segment.rows_schema`.
        made : Mapping of int to PatchedRow
            What stands in which of their places.
        """
        if not made:
            return plain
        patched = list(made.values())
        own = self._batch.select(list(_OF_PATCH)).take(pa.array([row.at for row in patched], pa.int64()))
        columns = {name: own.column(name) for name in _OF_PATCH} | _of_bases([row.base for row in patched])
        columns["attributes"] = pa.array([row.attributes for row in patched], plain.schema.field("attributes").type)
        columns["acl"] = pa.array([row.acl for row in patched], plain.schema.field("acl").type)
        rows = pa.RecordBatch.from_arrays([columns[name] for name in plain.schema.names], schema=plain.schema)
        chosen = np.arange(plain.num_rows)
        chosen[list(made)] = plain.num_rows + np.arange(len(made))
        return pa.concat_batches([plain, rows]).take(pa.array(chosen))


def put_vectors(made: Mapping[int, PatchedRow], field: str, matrix: NDArray[Any], present: NDArray[np.bool_]) -> None:
    """Fill in the vectors, shape (n, d), of patched rows, and which of the rows have one, shape (n,); in place."""
    for place, row in made.items():
        vector = row.base.vector(field)
        present[place] = vector is not None
        matrix[place] = 0 if vector is None else vector


def _cell(base: BaseRow, column: str) -> Any:
    return base.rows.column(column)[base.row].as_py()


def _of_bases(bases: Sequence[BaseRow]) -> dict[str, pa.Array]:
    """What n patched rows have from their base rows, taken source by source; media lie where the base's do."""
    by_source: dict[int, list[int]] = {}
    for at, base in enumerate(bases):
        by_source.setdefault(id(base.rows), []).append(at)
    parts = []
    for chosen in by_source.values():
        rows = bases[chosen[0]].rows
        names = [name for name in (*_OF_BASE, *_PLACE, *_MEDIA_PLACE) if name in rows.schema.names]
        taken = rows.select(names).take(pa.array([bases[at].row for at in chosen], pa.int64()))
        parts.append([taken.column(name) for name in _OF_BASE] + [_media(taken, name) for name in _PLACE])
    back = np.argsort(np.concatenate([np.array(chosen, np.int64) for chosen in by_source.values()]))
    columns = [pa.concat_arrays(list(pieces)).take(pa.array(back)) for pieces in zip(*parts, strict=True)]
    return dict(zip((*_OF_BASE, *_MEDIA_PLACE), columns, strict=True))


def _media(taken: pa.RecordBatch, name: str) -> pa.Array:
    own = taken.column(name)
    return pc.coalesce(taken.column(f"media_{name}"), own) if f"media_{name}" in taken.schema.names else own
