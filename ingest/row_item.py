"""A row becomes an item: columns of a manifest, fields of a JSON line, a sidecar, the members of a tar's sample.

    id                   the item's id; else its path
    path | file          a local file, relative to the manifest (never a URL)
    data | data_base64   the media bytes themselves
    caption, text        caption of a picture; a text without media is an item of its own
    attributes           JSON object; `attributes.NAME`, and every other column, is one attribute
    acl, time            JSON list of strings (or one name); RFC 3339 time
    NAME OF A FIELD      own vector of that field; the row is then sent as an Arrow row

Takes: a mapping of values, the collection's rules. Gives: an `InputItem`. Owns: which columns mean what.
Never: guesses: what has the wrong type is an error that names the column. Never follows a path out of its folder.
"""

from __future__ import annotations

import base64
import binascii
import math
import os
from collections.abc import Mapping
from datetime import UTC, date, datetime, time
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from contracts import canonical_json
from contracts.attributes import MAX_ATTRIBUTES_BYTES, coerce_all, parse_time
from contracts.errors import RecordError
from contracts.media_item import TEXT_TYPE, check_id
from ingest.input_item import InputError, InputItem, InputRules
from ingest.media_file import media_type, read_media_file
from ingest.records import Annotations, rfc3339

PATH_COLUMNS = ("path", "file")
CONTENT_COLUMNS = (*PATH_COLUMNS, "data", "data_base64", "caption", "text")
OWN_COLUMNS = frozenset({"id", *CONTENT_COLUMNS, "attributes", "acl", "time", "content_type"})
ATTRIBUTE_PREFIX = "attributes."
MAX_ACL_NAMES = 10_000


def item_of_row(row: Mapping[str, Any], name: str, rules: InputRules, root: Path | None, *, is_text: bool = False) -> InputItem:
    """Item of one row.

    Parameters
    ----------
    row : Mapping
        Values by column; None and absent are the same.
    name : str
        What a message calls it.
    rules : InputRules
        Of the collection.
    root : Path or None
        Folder that paths are relative to, and may not leave; None refuses paths.
    is_text : bool
        Values are text (CSV), so attributes are read by their declared types.

    Raises
    ------
    InputError
        With the reason and the column that is wrong.
    """
    values = {column: value for column, value in row.items() if value is not None and not (is_text and value == "")}
    path = _path(values, root)
    item_id = item_identity(values, path)
    annotations = annotations_of(values, rules, is_text=is_text)
    vectors = own_vectors(values, rules)
    if vectors:
        return InputItem(name, item_id, annotations=annotations, vectors=vectors)
    data, content_type = _media(values, path, root, rules)
    return media_item(name, item_id, data, content_type, annotations)


def media_item(name: str, item_id: str, data: bytes, content_type: str, annotations: Annotations) -> InputItem:
    """Item of media bytes; without any, its caption is the text. InputError ``empty`` where there is neither."""
    if data:
        return InputItem(name, item_id, data, content_type, annotations)
    if not annotations.caption:
        raise InputError("empty", "no media and no text")
    return InputItem(
        name,
        item_id,
        annotations.caption.encode("utf-8"),
        TEXT_TYPE,
        Annotations(None, annotations.attributes, annotations.acl, annotations.time),
    )


def item_identity(values: Mapping[str, Any], otherwise: str | None) -> str:
    """The row's id, or what stands in for it; InputError ``bad_id`` or ``missing_id``."""
    found = values.get("id", otherwise)
    if found is None:
        raise InputError("missing_id", "neither an id nor a path; an id makes sending it twice harmless")
    if isinstance(found, bool) or not isinstance(found, str | int):
        raise InputError("bad_id", "the id is neither text nor a whole number")
    try:
        return check_id(str(found))
    except RecordError as error:
        raise InputError(error.reason, error.message) from None


def annotations_of(values: Mapping[str, Any], rules: InputRules, *, is_text: bool = False) -> Annotations:
    """Caption (with the text below it), attributes, acl and time of a row, checked as the stream will check them.

    Raises
    ------
    InputError
        ``bad_text``, ``bad_attributes``, ``bad_acl`` or ``bad_time``.
    """
    texts = [_text(values[column], column, rules) for column in ("caption", "text") if column in values]
    caption = "\n".join(text for text in texts if text) or None
    if caption is not None:
        _check_length(caption, rules)
    return Annotations(caption, _attributes(values, rules, is_text), _acl(values.get("acl")), _time(values.get("time")))


def _text(value: Any, column: str, rules: InputRules) -> str:
    if not isinstance(value, str):
        raise InputError("bad_text", f"column {column} is not text")
    _check_length(value, rules)
    return value


def _check_length(text: str, rules: InputRules) -> None:
    try:
        size_bytes = len(text.encode("utf-8"))
    except UnicodeEncodeError:
        raise InputError("bad_text", "the text is not valid UTF-8") from None
    if size_bytes > rules.max_text_bytes:
        raise InputError("bad_text", f"the text has {size_bytes} bytes, more than {rules.max_text_bytes}")


def _attributes(values: Mapping[str, Any], rules: InputRules, is_text: bool) -> dict[str, Any] | None:
    found = _attribute_object(values.get("attributes"))
    single: dict[str, Any] = {}
    for column, value in values.items():
        if column.startswith(ATTRIBUTE_PREFIX):
            single[column.removeprefix(ATTRIBUTE_PREFIX)] = value
        elif column not in OWN_COLUMNS and column not in rules.vector_fields:
            single.setdefault(column, value)
    if is_text:
        single = {name: parsed_cell(text, rules.attributes.get(name, "text")) for name, text in single.items()}
    try:
        found |= {name: plain for name, value in single.items() if (plain := json_value(value)) is not None}
        coerce_all(found, rules.attributes)
        size_bytes = len(canonical_json.dump(found))
    except (ValueError, TypeError, RecursionError) as error:
        raise InputError("bad_attributes", str(error)) from None
    if size_bytes > MAX_ATTRIBUTES_BYTES:
        raise InputError("bad_attributes", f"the attributes are {size_bytes} bytes of JSON, more than {MAX_ATTRIBUTES_BYTES}")
    return found or None


def _attribute_object(value: Any) -> dict[str, Any]:
    if value is None:
        return {}
    try:
        if isinstance(value, str):
            value = canonical_json.load(value, MAX_ATTRIBUTES_BYTES)
        value = json_value(dict(value) if isinstance(value, list) else value)  # a Parquet map is a list of pairs
    except (ValueError, TypeError) as error:
        raise InputError("bad_attributes", f"column attributes: {error}") from None
    if not isinstance(value, dict):
        raise InputError("bad_attributes", "column attributes is not a JSON object")
    return {name: entry for name, entry in value.items() if entry is not None}


def parsed_cell(text: str, kind: str) -> Any:
    """A CSV cell as JSON where its type asks for more than text; what is no JSON stays text and fails the type check."""
    wants_json = kind in ("integer", "float", "bool", "geo") or (kind.endswith("[]") and text.lstrip().startswith("["))
    if not wants_json:
        return text
    try:
        return canonical_json.load(text.strip().lower() if kind == "bool" else text)
    except ValueError:
        return text


def json_value(value: Any) -> Any:
    """A Parquet value as JSON has it: times in RFC 3339 (UTC where they have no zone), NaN as null, decimals as numbers."""
    if isinstance(value, float):
        return None if math.isnan(value) else value
    if isinstance(value, datetime):
        return rfc3339(value if value.tzinfo else value.replace(tzinfo=UTC))
    if isinstance(value, date | time):
        return value.isoformat()
    if isinstance(value, Decimal):
        return int(value) if value == value.to_integral_value() else float(value)
    if isinstance(value, Mapping):
        return {str(name): json_value(entry) for name, entry in value.items()}
    if isinstance(value, list | tuple):
        return [json_value(entry) for entry in value]
    if isinstance(value, bytes):
        raise ValueError("an attribute holds bytes")
    return value


def _acl(value: Any) -> list[str] | None:
    if value is None:
        return None
    if isinstance(value, str) and value.lstrip().startswith("["):
        try:
            value = canonical_json.load(value, MAX_ATTRIBUTES_BYTES)
        except ValueError as error:
            raise InputError("bad_acl", f"column acl: {error}") from None
    elif isinstance(value, str) and not set(value) & set(",;"):
        value = [value]
    if not isinstance(value, list) or len(value) > MAX_ACL_NAMES or not all(isinstance(entry, str) for entry in value):
        raise InputError("bad_acl", 'column acl is not a list of names; write ["a","b"], or one name')
    try:
        canonical_json.dump(value)
    except ValueError:
        raise InputError("bad_acl", "column acl is not valid UTF-8") from None
    return value


def _time(value: Any) -> str | None:
    if value is None:
        return None
    if isinstance(value, datetime):
        value = json_value(value)
    if not isinstance(value, str):
        raise InputError("bad_time", "column time is not an RFC 3339 time")
    try:
        parse_time(value)
        value.encode("ascii")
    except ValueError as error:
        raise InputError("bad_time", f"column time: {error}") from None
    return value


def own_vectors(values: Mapping[str, Any], rules: InputRules) -> dict[str, NDArray[np.floating[Any]]]:
    """The row's own vectors by field, shape (d,) each; InputError ``bad_vector`` where one has another length or is not finite."""
    found: dict[str, NDArray[np.floating[Any]]] = {}
    for name, dimension in rules.vector_fields.items():
        if values.get(name) is not None:
            found[name] = checked_vector(values[name], name, dimension)
    return found


def checked_vector(value: Any, name: str, dimension: int) -> NDArray[np.floating[Any]]:
    """A vector of shape (dimension,), float16 or float32; InputError ``bad_vector`` where it is none."""
    try:
        if isinstance(value, str):
            value = canonical_json.load(value)
        vector = np.asarray(value)
    except (ValueError, TypeError, OverflowError) as error:
        raise InputError("bad_vector", f"vector {name}: {error}") from None
    if vector.dtype.kind not in "fiu" or vector.ndim != 1:
        raise InputError("bad_vector", f"vector {name} is not a list of numbers")
    if len(vector) != dimension:
        raise InputError("bad_vector", f"vector {name} has {len(vector)} numbers, not {dimension}")
    with np.errstate(over="ignore"):  # what overflows is found below
        vector = vector if vector.dtype in (np.float16, np.float32) else vector.astype(np.float32)
    if not np.isfinite(vector).all():
        raise InputError("bad_vector", f"vector {name} has a number that is not finite")
    return vector


def _path(values: Mapping[str, Any], root: Path | None) -> str | None:
    """The row's path, below the root where it lies there: what is the id of a row that has none."""
    found = next((values[column] for column in PATH_COLUMNS if column in values), None)
    if found is None:
        return None
    if not isinstance(found, str):
        raise InputError("bad_row", "the path is not text")
    if "://" in found:
        return found
    path = os.path.normpath(found.replace("\\", "/"))
    return os.path.relpath(path, root) if root is not None and Path(path).is_absolute() else path


def _media(values: Mapping[str, Any], path: str | None, root: Path | None, rules: InputRules) -> tuple[bytes, str]:
    declared = values.get("content_type", "")
    data = _inline(values, rules)
    if data is not None:
        return data, media_type(data, "", rules, declared if isinstance(declared, str) else "")
    if path is None:
        return b"", ""
    return read_media_file(path_below(root, path), rules)


def _inline(values: Mapping[str, Any], rules: InputRules) -> bytes | None:
    data = values.get("data")
    if data is None and (text := values.get("data_base64")) is not None:
        try:
            data = base64.b64decode(text, validate=True)
        except (ValueError, TypeError, binascii.Error):
            raise InputError("bad_row", "column data_base64 is not base64") from None
    if data is None:
        return None
    if not isinstance(data, bytes):
        raise InputError("bad_row", "column data does not hold bytes; in JSON, use data_base64")
    if len(data) > rules.max_media_bytes:
        raise InputError("too_large", f"{len(data)} bytes, more than {rules.max_media_bytes}")
    return data


def path_below(root: Path | None, path: str) -> Path:
    """The named file, which must lie below `root`: a manifest from elsewhere must not choose files of this machine.

    Raises
    ------
    InputError
        ``missing_file``: it leads out of the folder, or cannot be a path; ``bad_row``: it is a URL.
    """
    if "://" in path:
        raise InputError("bad_row", "the path is a URL; only local files are read")
    if root is None or "\0" in path:
        raise InputError("missing_file", "paths cannot be used here")
    joined = Path(os.path.normpath(root / path))
    if not joined.is_relative_to(os.path.normpath(root)):
        raise InputError("missing_file", f"the path leads out of {root}; name a folder that holds the files with --root")
    return joined
