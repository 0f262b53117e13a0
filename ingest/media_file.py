"""One file of media, read whole: a picture known by its first bytes, or UTF-8 text.

Takes: a path, limits. Gives: its bytes and content type. Owns: the check that a file was not written to while it was read.
Never: reads more than the limit, blocks on a pipe, or trusts a file's name for a picture.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import BinaryIO

from contracts.media_record import TEXT_TYPE, picture_type
from ingest.input_item import InputError, InputRules

HEAD_BYTES = 16
TEXT_SUFFIX = ".txt"


def sniffed_type(path: Path) -> str:
    """Content type of a picture by its first bytes, or text by its suffix; empty for anything else. OSError where it cannot be read."""
    with _opened(path) as file:
        kind = picture_type(file.read(HEAD_BYTES))
    return kind or (TEXT_TYPE if path.suffix.lower() == TEXT_SUFFIX else "")


def read_media_file(path: Path, rules: InputRules) -> tuple[bytes, str]:
    """Bytes and content type of a picture or text file.

    Raises
    ------
    InputError
        ``missing_file``, ``unreadable``, ``too_large``, ``empty``, ``not_media`` or ``bad_text``.
    """
    data = read_file(path, rules.max_media_bytes)
    return data, media_type(data, path.name, rules)


def read_file(path: Path, max_bytes: int) -> bytes:
    """All bytes of a file; InputError where it is larger, cannot be read, or is being written to."""
    try:
        with _opened(path) as file:
            before = os.fstat(file.fileno())
            if before.st_size > max_bytes:
                raise InputError("too_large", f"{before.st_size} bytes, more than {max_bytes}")
            data = file.read(before.st_size + 1)  # a buffer of this size is taken at once
            after = os.fstat(file.fileno())
    except FileNotFoundError:
        raise InputError("missing_file", "there is no such file") from None
    except OSError as error:
        raise InputError("unreadable", f"cannot be read: {error.strerror}") from None
    if len(data) != before.st_size or (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
        raise InputError("unreadable", "it was written to while it was read")
    return data


def media_type(data: bytes, name: str, rules: InputRules, declared: str = "") -> str:
    """Content type of media bytes; `name` and `declared` only tell text from what is no media.

    Raises
    ------
    InputError
        ``empty``, ``not_media`` or ``bad_text``.
    """
    if not data:
        raise InputError("empty", "no bytes")
    kind = picture_type(data[:HEAD_BYTES])
    if kind:
        return kind
    if declared != TEXT_TYPE and not name.lower().endswith(TEXT_SUFFIX):
        raise InputError("not_media", "neither a picture that is indexed nor text")
    decoded_text(data, rules)
    return TEXT_TYPE


def decoded_text(data: bytes, rules: InputRules) -> str:
    """Text of UTF-8 bytes (a byte order mark is dropped); InputError ``bad_text`` where they are none, or too many."""
    if len(data) > rules.max_text_bytes:
        raise InputError("bad_text", f"the text has {len(data)} bytes, more than {rules.max_text_bytes}")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError("bad_text", f"not UTF-8 text at byte {error.start}") from None


def _opened(path: Path) -> BinaryIO:
    """The file, open for reading; without O_NONBLOCK, opening a pipe would wait for its writer."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(0, "not a file", str(path))
    return os.fdopen(descriptor, "rb")
