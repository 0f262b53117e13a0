"""What a source yields: an item to send, or an input that is rejected and why.

A source is made of units (a picture file, a manifest, a tar); a unit yields its entries in an order that is the same each time, so that
"the first n are done" means something when the command runs again.

Takes: nothing. Gives: `InputItem`, `RejectedInput`, `InputUnit`, `InputSource`. Owns: the reasons why an input is rejected before it is a record.
Never: sends, or decodes a picture.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from contracts.collection import CollectionRecord
from contracts.errors import REJECT_REASONS, HeadwaterError
from contracts.settings import Settings
from ingest.records import Annotations

INPUT_REASONS: dict[str, str] = {
    "missing_file": "a manifest names a file that is not there, or that lies outside its folder",
    "unreadable": "a file cannot be read, or was written to while it was read",
    "bad_row": "a row of a manifest or a line of JSON cannot be read",
    "bad_member": "a tar, or a member of it, cannot be read",
    "not_media": "the bytes are neither a picture that is indexed nor text",
}
"""Reasons beside `contracts.errors.REJECT_REASONS`: for what never becomes a record (docs/operations.md lists them)."""


class InputError(HeadwaterError):
    """One input cannot become a record: count it, tell it, go on.

    Parameters
    ----------
    reason : str
        Out of `INPUT_REASONS` or `contracts.errors.REJECT_REASONS`.
    message : str
        What is wrong, without the input's content.
    """

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        if reason not in INPUT_REASONS and reason not in REJECT_REASONS:
            raise ValueError(f"unknown reject reason {reason!r}")
        self.reason = reason


@dataclass(frozen=True, slots=True)
class RejectedInput:
    """An input that is not sent: what it is called, the reason code, and a sentence."""

    name: str
    reason: str
    message: str


@dataclass(frozen=True, slots=True)
class InputItem:
    """One item to send: `data` with its `content_type`, or `vectors` (one row, shape (d,) per field) with the caption as their text."""

    name: str
    item_id: str
    data: bytes = b""
    content_type: str = ""
    annotations: Annotations = field(default_factory=Annotations)
    vectors: Mapping[str, NDArray[np.floating[Any]]] | None = None


@dataclass(frozen=True, slots=True)
class InputRules:
    """What an item of the collection may be: attribute types, vector fields with their dimension, and limits."""

    attributes: Mapping[str, str]
    vector_fields: Mapping[str, int]
    max_media_bytes: int
    max_text_bytes: int

    @classmethod
    def of(cls, collection: CollectionRecord, settings: Settings) -> InputRules:
        """Rules of one collection under these settings."""
        fields = {field.name: field.dimension for index in collection.indexes for field in index.fields if field.source == "vector"}
        return cls(collection.attributes, fields, settings.max_picture_bytes, settings.max_text_bytes)


class InputUnit(Protocol):
    """A part of a source that is done, or done up to its n-th entry.

    Attributes
    ----------
    name : str
        Name within the source, the same in every run.
    stamp : str
        Changes when the unit's content changes; empty for what cannot be read twice (stdin).
    size_bytes : int
        How much of the source's size it is.
    changed_at : float
        When it was last written to, in seconds since 1970.
    batch_rows : int
        How many rows with own vectors may wait for each other to share a record.
    """

    name: str
    stamp: str
    size_bytes: int
    changed_at: float
    batch_rows: int

    def read(self, skip: int) -> Iterator[InputItem | RejectedInput]:
        """Entries from the `skip`-th on, without opening what the skipped ones name."""
        ...

    def read_bytes(self) -> int:
        """Bytes of it that are read so far, of `size_bytes`."""
        ...


class InputSource(Protocol):
    """What one PATH of `headwater ingest` names.

    Attributes
    ----------
    path : Path
        As it was given.
    """

    path: Path

    @property
    def identity(self) -> str:
        """The same for the same input in every run: what the resume state is kept under. Empty where there is nothing to resume."""
        ...

    def units(self) -> Iterator[InputUnit | RejectedInput]:
        """Units, in an order that is stable as long as nothing changes."""
        ...

    def size_bytes(self) -> int:
        """Size of all units together, for a progress bar; 0 where it is not known."""
        ...
