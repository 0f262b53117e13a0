"""Lines of a file that may hold anything: none is longer in memory than the limit.

Takes: a binary file. Gives: lines as bytes, with their line break. Owns: the count of lines and bytes read.
Never: keeps more of a line than the limit, or stops at one that is too long.
"""

from __future__ import annotations

from typing import BinaryIO

_CHUNK_BYTES = 256 * 1024


class LineTooLongError(ValueError):
    """A line is longer than the limit; it was passed over, and the next call gives the line after it."""


class LineReader:
    """Iterates over lines; after `LineTooLongError` it goes on with the next one.

    Parameters
    ----------
    file : BinaryIO
        Open for reading; stays open.
    max_line_bytes : int
        Longest line, with its line break.
    """

    def __init__(self, file: BinaryIO, max_line_bytes: int) -> None:
        self._file = file
        self._max_line_bytes = max_line_bytes
        self.read_bytes = 0
        self.number = 0

    def __iter__(self) -> LineReader:
        return self

    def __next__(self) -> bytes:
        line = self._file.readline(self._max_line_bytes + 1)
        self.read_bytes += len(line)
        if not line:
            raise StopIteration
        self.number += 1
        if len(line) <= self._max_line_bytes:
            return line
        ended = line.endswith(b"\n")
        while not ended and (rest := self._file.readline(_CHUNK_BYTES)):
            self.read_bytes += len(rest)
            ended = rest.endswith(b"\n")
        raise LineTooLongError(f"the line is longer than {self._max_line_bytes} bytes")
