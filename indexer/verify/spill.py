"""Sorted runs of numbers on disk: what does not fit into memory is put there segment by segment and read back by ranges of its key.

Takes: columns of equal length, sorted by the key. Gives: all rows with a key in a range. Owns: files in a folder that the caller deletes.
Never: holds more than what is asked for, or sorts.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

WINDOW_ROWS = 1_000_000
"""Rows that one window is made to hold, about."""


class Spill:
    """Rows of several columns in runs that are sorted by one of them.

    Parameters
    ----------
    folder : Path
        Where one file per column is written.
    columns : mapping of str to dtype
        Names and types.
    key : str
        The column by which each run is sorted, an integer.
    """

    def __init__(self, folder: Path, columns: Mapping[str, DTypeLike], key: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._types = {name: np.dtype(kind) for name, kind in columns.items()}
        self._paths = {name: folder / name for name in self._types}
        self._files: dict[str, IO[bytes]] = {name: path.open("wb") for name, path in self._paths.items()}
        self._key = key
        self._runs: list[tuple[int, int]] = []
        self._written = 0

    def __len__(self) -> int:
        return sum(end - start for start, end in self._runs)

    def add(self, columns: Mapping[str, NDArray[Any]]) -> None:
        """Append a run of n rows: each column has shape (n,), and the key rises."""
        rows = len(columns[self._key])
        if not rows:
            return
        for name, kind in self._types.items():
            self._files[name].write(np.ascontiguousarray(columns[name], dtype=kind).tobytes())
        self._runs.append((self._written, self._written + rows))
        self._written += rows

    def mark(self) -> int:
        """Where the runs stand now, for `rewind`."""
        return len(self._runs)

    def rewind(self, mark: int) -> None:
        """Forget the runs that were added since."""
        del self._runs[mark:]

    def between(self, low: int, high: int) -> dict[str, NDArray[Any]]:
        """Rows whose key is in ``[low, high)``, by column, each of shape (m,), run after run."""
        if not self._runs:
            return {name: np.empty(0, column) for name, column in self._types.items()}
        for file in self._files.values():
            file.flush()
        maps = {name: np.memmap(path, self._types[name], "r") for name, path in self._paths.items()}  # for this call: mapped pages are memory too
        kind = self._types[self._key].type
        pieces = []
        for start, end in self._runs:
            keys = maps[self._key][start:end]
            first = int(np.searchsorted(keys, kind(low)))
            last = len(keys) if high > np.iinfo(kind).max else int(np.searchsorted(keys, kind(high)))
            if last > first:
                pieces.append(slice(start + first, start + last))
        if not pieces:
            return {name: np.empty(0, column) for name, column in self._types.items()}
        return {name: np.concatenate([np.asarray(maps[name][piece]) for piece in pieces]) for name in self._types}

    def windows(self) -> Iterator[tuple[int, int]]:
        """Ranges that cut the whole span of a uint64 key into pieces of about `WINDOW_ROWS` rows, where keys lie evenly (hashes do)."""
        pieces = max(1, -(-len(self) // WINDOW_ROWS))
        edges = [number * 2**64 // pieces for number in range(pieces + 1)]
        yield from zip(edges, edges[1:], strict=False)

    def close(self) -> None:
        """Let go of the files."""
        for file in self._files.values():
            file.close()
