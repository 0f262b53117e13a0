"""WebDataset tars: consecutive members with the same name up to the first dot are one sample (`.tar`, `.tar.gz`).

    .jpg .jpeg .png .webp .gif .bmp .tif .tiff   the picture (known by its bytes)
    .txt                                         its caption, or a text of its own
    .json                                        id, caption, text, attributes, acl, time; other names are attributes
    .cls                                         attribute `cls`, a whole number where it is one
    .npy, .FIELD.npy                             own vector of the collection's one vector field, or of that field

Takes: a tar, the collection's rules. Gives: items sample by sample. Owns: what a member means.
Never: writes to disk, follows a member's name anywhere, or reads a member that is larger than its limit.
"""

from __future__ import annotations

import gzip
import io
import tarfile
import zlib
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Self, cast

import numpy as np
from numpy.typing import NDArray

from contracts import canonical_json
from contracts.attributes import MAX_ATTRIBUTES_BYTES
from contracts.errors import SettingsError
from ingest.input_item import InputError, InputItem, InputRules, RejectedInput
from ingest.manifest_source import SHARED_ROWS
from ingest.media_file import decoded_text, media_type
from ingest.row_item import annotations_of, checked_vector, item_identity, media_item

PICTURE_SUFFIXES = frozenset({"jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff"})
_SMALL_LIMIT_BYTES = MAX_ATTRIBUTES_BYTES * 4
_NAME_LIMIT_BYTES = 64 * 1024  # of a pax header or long name, which tarfile reads into memory
_LONG_TYPES = (tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK)
_NPY_SLACK_BYTES = 16 * 1024
_GZIP_MAGIC = b"\x1f\x8b"
_TAR_ERRORS = (tarfile.TarError, EOFError, OSError, zlib.error, ValueError, OverflowError)


class _Member(tarfile.TarInfo):
    """A member whose header is checked: tarfile takes a damaged one in the middle for the end of the archive."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        info = super().frombuf(buf, encoding, errors)
        if info.type in _LONG_TYPES and info.size > _NAME_LIMIT_BYTES:
            raise tarfile.ReadError(f"a member's name or header has {info.size} bytes")
        return info

    @classmethod
    def fromtarfile(cls, tarfile: tarfile.TarFile) -> Self:
        try:
            return super().fromtarfile(tarfile)
        except _HeaderError as error:
            if type(error).__name__ == "EOFHeaderError":  # the two zero blocks of a whole tar
                raise
            raise _ReadError(f"the header at byte {tarfile.offset} cannot be read ({error}); the tar is damaged or cut short") from None


_HeaderError, _ReadError = tarfile.HeaderError, tarfile.ReadError


@dataclass(slots=True)
class _Sample:
    """Members of one key, read as far as they mean something."""

    key: str
    members: dict[str, bytes] = field(default_factory=dict)
    error: InputError | None = None


@dataclass(slots=True)
class TarUnit:
    """A tar as the one unit of its source (`ingest.input_item.InputUnit`)."""

    path: Path
    rules: InputRules
    name: str
    stamp: str
    size_bytes: int
    changed_at: float
    batch_rows: int = SHARED_ROWS
    _raw: BinaryIO | None = None
    _read_bytes: int = 0

    def check(self) -> None:
        """Read the first member's header; SettingsError where it is no tar."""
        try:
            with ExitStack() as stack:
                _open_tar(self.path, stack)
        except _TAR_ERRORS as error:
            said = getattr(error, "strerror", None) or str(error) or type(error).__name__
            raise SettingsError(f"{self.path}: not a tar that can be read: {said}", hint="name a .tar or .tar.gz in WebDataset's layout") from None

    def read_bytes(self) -> int:
        """Bytes of the file that are read so far."""
        if self._raw is not None and not self._raw.closed:
            self._read_bytes = self._raw.tell()
        return min(self._read_bytes, self.size_bytes)

    def read(self, skip: int) -> Iterator[InputItem | RejectedInput]:
        """Items of the samples from the `skip`-th on."""
        count = 0
        try:
            for sample in self._samples(skip):
                count += 1
                if count > skip:
                    yield self._item(sample)
        except _TAR_ERRORS as error:
            said = str(error) or type(error).__name__
            yield RejectedInput(str(self.path), "bad_member", f"after {count} samples: {said}; the rest of the tar was not read")

    def _samples(self, skip: int) -> Iterator[_Sample]:
        sample: _Sample | None = None
        count = 0
        with ExitStack() as stack:
            tar, self._raw = _open_tar(self.path, stack)
            while (member := tar.next()) is not None:
                tar.members = []  # type: ignore[attr-defined]  # tarfile keeps every header it has seen
                key, suffix = _key_and_suffix(member.name)
                if not member.isfile() or not key:
                    continue
                if sample is None or key != sample.key:
                    if sample is not None:
                        yield sample
                    sample = _Sample(key)
                    count += 1
                if count > skip:
                    self._add(sample, suffix, tar, member)
            if sample is not None:
                yield sample

    def _add(self, sample: _Sample, suffix: str, tar: tarfile.TarFile, member: tarfile.TarInfo) -> None:
        limit = self._limit(suffix)
        if limit is None or sample.error is not None:
            return
        if suffix in sample.members:
            sample.error = InputError("bad_member", f"two members are named .{suffix}")
        elif member.size > limit:
            sample.error = InputError("too_large", f"member .{suffix} has {member.size} bytes, more than {limit}")
        else:
            opened = tar.extractfile(member)
            data = b"" if opened is None else opened.read()
            if len(data) != member.size:
                raise tarfile.ReadError(f"member {member.name[:200]!r} is cut short")
            sample.members[suffix] = data

    def _limit(self, suffix: str) -> int | None:
        """Most bytes of a member; None for one that means nothing to us."""
        if suffix in PICTURE_SUFFIXES:
            return self.rules.max_media_bytes
        if (vector := self._vector_field(suffix)) is not None:
            return self.rules.vector_fields[vector] * 8 + _NPY_SLACK_BYTES
        return {"txt": self.rules.max_text_bytes, "json": _SMALL_LIMIT_BYTES, "cls": 1024}.get(suffix)

    def _vector_field(self, suffix: str) -> str | None:
        if suffix == "npy":
            return next(iter(self.rules.vector_fields)) if len(self.rules.vector_fields) == 1 else None
        name = suffix.removesuffix(".npy")
        return next((field for field in self.rules.vector_fields if suffix.endswith(".npy") and field.lower() == name), None)

    def _item(self, sample: _Sample) -> InputItem | RejectedInput:
        name = f"{self.path}: {sample.key}"
        try:
            if sample.error is not None:
                raise sample.error
            return self._whole_item(name, sample)
        except InputError as error:
            return RejectedInput(name, error.reason, error.message)

    def _whole_item(self, name: str, sample: _Sample) -> InputItem:
        values = _described(sample, self.rules)
        item_id = item_identity(values, sample.key)
        annotations = annotations_of(values, self.rules)
        vectors = {}
        for suffix, data in sample.members.items():
            if (vector := self._vector_field(suffix)) is not None:
                vectors[vector] = checked_vector(_npy_vector(data, vector), vector, self.rules.vector_fields[vector])
        if vectors:
            return InputItem(name, item_id, annotations=annotations, vectors=vectors)
        pictures = [suffix for suffix in sample.members if suffix in PICTURE_SUFFIXES]
        if len(pictures) > 1:
            raise InputError("too_many_parts", f"more than one picture: {', '.join(f'.{suffix}' for suffix in pictures)}")
        data = sample.members[pictures[0]] if pictures else b""
        kind = media_type(data, "", self.rules) if pictures else ""
        return media_item(name, item_id, data, kind, annotations)


def _open_tar(path: Path, stack: ExitStack) -> tuple[tarfile.TarFile, BinaryIO]:
    """The open tar and the file below it; a compressed one is read as a stream, which never seeks back."""
    raw = stack.enter_context(path.open("rb"))
    is_gzip = raw.read(2) == _GZIP_MAGIC
    raw.seek(0)
    if is_gzip:
        unpacked = cast(BinaryIO, stack.enter_context(gzip.GzipFile(fileobj=raw)))
        return stack.enter_context(tarfile.open(fileobj=unpacked, mode="r|", tarinfo=_Member)), raw
    return stack.enter_context(tarfile.open(fileobj=raw, mode="r:", tarinfo=_Member)), raw


def _key_and_suffix(name: str) -> tuple[str, str]:
    """Key and suffix of a member as WebDataset splits them: the name up to its first dot, and what follows in lower case; no key without both."""
    folder, slash, base = name.removeprefix("./").rpartition("/")
    stem, _, suffix = base.partition(".")
    return (f"{folder}{slash}{stem}" if stem and suffix else ""), suffix.lower()


def _described(sample: _Sample, rules: InputRules) -> dict[str, Any]:
    """What .json, .txt and .cls say, as columns of a row."""
    values: dict[str, Any] = {}
    if (data := sample.members.get("json")) is not None:
        values = json_columns(data)
    if (data := sample.members.get("txt")) is not None:
        values["caption"] = decoded_text(data, rules).strip()
    if (data := sample.members.get("cls")) is not None:
        text = decoded_text(data, rules).strip()
        values.setdefault("cls", int(text) if text.isascii() and text.isdecimal() else text)
    return {name: value for name, value in values.items() if value is not None}


def json_columns(data: bytes) -> dict[str, Any]:
    """Columns of a sidecar's JSON object; InputError ``bad_attributes`` where it is none. Paths in it mean nothing here."""
    try:
        found = canonical_json.load(data, _SMALL_LIMIT_BYTES)
    except ValueError as error:
        raise InputError("bad_attributes", f"the .json beside it: {error}") from None
    if not isinstance(found, dict):
        raise InputError("bad_attributes", "the .json beside it is not a JSON object")
    return {name: value for name, value in found.items() if name not in ("path", "file", "data", "data_base64")}


def _npy_vector(data: bytes, name: str) -> NDArray[np.floating[Any]]:
    """Array of an .npy member: its header is read before any memory is taken for what it claims."""
    file = io.BytesIO(data)
    try:
        version = np.lib.format.read_magic(file)
        read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, dtype = read_header(file)
    except Exception as error:  # noqa: BLE001 - numpy parses the header as Python, and that parser raises many kinds
        raise InputError("bad_vector", f"vector {name}: not an .npy file: {str(error)[:100]}") from None
    body = data[file.tell() :]
    if dtype.kind != "f" or len(shape) != 1 or shape[0] * dtype.itemsize != len(body):
        raise InputError("bad_vector", f"vector {name}: the .npy file does not hold one row of floats")
    return np.frombuffer(body, dtype)
