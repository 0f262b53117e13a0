"""The captions file of a folder: a CSV with the columns ``file`` (path below the folder) and ``caption``; its other columns are attributes.

Takes: a path. Gives: rows by file. Owns: what is refused in it: this file is the operator's own, so a mistake ends the command.
Never: guesses which file a row means.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from contracts.errors import SettingsError

CAPTIONS_FILE = "captions.csv"


@dataclass(frozen=True, slots=True)
class CaptionRow:
    """What the captions file says of one file: its other columns as text, by name."""

    caption: str | None
    cells: Mapping[str, str]


def read_captions(path: Path) -> dict[str, CaptionRow]:
    """Rows of a captions file by their ``file`` column.

    Raises
    ------
    SettingsError
        Not readable, not UTF-8, no ``file`` column, or a file named twice; the message names the line.
    """
    rows: dict[str, CaptionRow] = {}
    try:
        with path.open(encoding="utf-8-sig", newline="") as lines:
            reader = csv.DictReader(lines, strict=True)
            if "file" not in (reader.fieldnames or ()):
                raise SettingsError(f"{path}: no column `file` in the first line", hint="the columns are file, caption and attributes")
            for row in reader:
                _add_row(rows, row, f"{path}:{reader.line_num}")
    except OSError as error:
        raise SettingsError(f"{path}: cannot be read: {error.strerror}", hint="name a readable CSV file with --captions") from None
    except (csv.Error, UnicodeDecodeError) as error:
        raise SettingsError(f"{path}: not a CSV file in UTF-8: {error}", hint="save it as CSV, UTF-8") from None
    return rows


def _add_row(rows: dict[str, CaptionRow], row: dict[Any, Any], where: str) -> None:
    if None in row or None in row.values():
        raise SettingsError(f"{where}: the line has another number of columns than the first", hint="put text with commas in double quotes")
    name = row.pop("file").replace("\\", "/").removeprefix("./")
    if not name:
        return
    if name in rows:
        raise SettingsError(f"{where}: {name!r} is named twice", hint="keep one line per file")
    caption = row.pop("caption", "") or None
    rows[name] = CaptionRow(caption, {key: value for key, value in row.items() if value != ""})
