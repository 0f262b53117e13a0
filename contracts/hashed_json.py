"""Stored JSON that carries its own hash: two lines, the canonical JSON of a record and the sha256 of that line (ADR 0015).

Takes: a line of canonical JSON, or the bytes of a stored object. Gives: the object's bytes, or the line that was hashed.
Owns: the second line. Never: parses; a line is given only after its hash was compared.
"""

from __future__ import annotations

import hashlib

from contracts.errors import CorruptError


def with_hash(line: bytes) -> bytes:
    """The two lines of an object whose JSON is `line`, which holds no line feed (canonical JSON never does)."""
    return b"%s\n%s" % (line, _second_line(line))


def without_hash(data: bytes, where: str) -> bytes:
    """The first line of a stored object, after its hash was compared.

    Parameters
    ----------
    data : bytes
        The whole object.
    where : str
        Names the object in the error.

    Raises
    ------
    CorruptError
        The second line is missing, or is not the hash of the first.
    """
    line, _, told = data.partition(b"\n")
    if told != _second_line(line):
        raise CorruptError(f"{where}: its bytes are not those that were hashed when it was written", hint="restore the object from a backup")
    return line


def _second_line(line: bytes) -> bytes:
    return b'"sha256:%s"\n' % hashlib.sha256(line).hexdigest().encode("ascii")
