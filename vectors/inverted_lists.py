"""The section `lists` of a coded field part: inverted lists alone, as `faiss.write_InvertedLists` lays them out (docs/formats/segment.md).

    "ilar" | nlist u64 | code bytes u64 | "full" | nlist u64 | size of each list u64       where most lists hold something
                                        | "sprs" | 2 s u64   | (list, size) u64 each       where few (s) do
    then, for each list that holds something: its codes | its ids, int64 each

Takes: list numbers, codes and ids. Gives: bytes; indexes of faiss over lists whose bytes were checked. Owns: this layout, and the checks.
Never: hands bytes to faiss whose sizes were not compared: faiss loads damaged ones without a word.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

from contracts.errors import CorruptError
from vectors.quantizer import Quantizer

_HEAD = struct.Struct("<4sQQ4sQ")
_ID_BYTES = 8


@dataclass(frozen=True, slots=True)
class ListSizes:
    """Where the lists lie in the bytes: `sizes`, shape (nlist,), and `start`, at which the first list's codes begin."""

    sizes: NDArray[np.int64]
    start: int


def build_lists(nlist: int, list_numbers: NDArray[np.int64], codes: NDArray[np.uint8], ids: NDArray[np.int64]) -> faiss.ArrayInvertedLists:
    """Inverted lists of n vectors, each list in the order of `ids`.

    Parameters
    ----------
    nlist : int
        Lists, empty ones included.
    list_numbers : NDArray[np.int64]
        shape (n,), below nlist.
    codes : NDArray[np.uint8]
        shape (n, code_bytes).
    ids : NDArray[np.int64]
        shape (n,).
    """
    lists = faiss.ArrayInvertedLists(nlist, codes.shape[1])
    order = np.argsort(list_numbers, kind="stable")
    sorted_codes, sorted_ids = np.ascontiguousarray(codes[order]), np.ascontiguousarray(ids[order], dtype=np.int64)
    numbers, starts = np.unique(list_numbers[order], return_index=True)
    bounds = [*starts.tolist(), len(order)]
    for number, start, end in zip(numbers.tolist(), bounds[:-1], bounds[1:], strict=True):
        lists.add_entries(number, end - start, faiss.swig_ptr(sorted_ids[start:end]), faiss.swig_ptr(sorted_codes[start:end]))
    return lists


def write_lists(lists: faiss.InvertedLists) -> bytes:
    """Bytes of inverted lists."""
    writer = faiss.VectorIOWriter()
    faiss.write_InvertedLists(lists, writer)
    data: bytes = faiss.vector_to_array(writer.data).tobytes()
    return data


@dataclass(frozen=True, slots=True, eq=False)
class RaisedLists:
    """A segment's lists, to be searched and never changed: what `lists` say lies in `data`, and `owner` keeps them."""

    lists: Any
    owner: Any
    data: NDArray[np.uint8]
    rows: int


class StoredLists:
    """A section of lists whose sizes and ids were checked; the bytes stay where they are.

    Parameters
    ----------
    data : bytes or memoryview
        The section, as `write_lists` made it; compared with its sha256.
    quantizer : Quantizer
        Of the part's generation.
    ids : NDArray[np.integer]
        shape (n,), ascending: exactly the ids that the lists must hold, each once.
    where : str
        Names the object in errors.

    Raises
    ------
    CorruptError
        A size differs, the bytes end early or late, or the lists hold other ids.
    """

    def __init__(self, data: bytes | memoryview, quantizer: Quantizer, ids: NDArray[np.integer[Any]], where: str) -> None:
        self._view, self._quantizer = memoryview(data).cast("B"), quantizer
        self._found = list_sizes(self._view, quantizer.nlist, quantizer.code_bytes, where)
        self._code_bytes, self.rows = quantizer.code_bytes, int(self._found.sizes.sum())
        if self._found.start + self.rows * (self._code_bytes + _ID_BYTES) != len(self._view) or self.rows != len(ids):
            raise CorruptError(f"{where}: the lists hold {self.rows} vectors in {len(self._view)} bytes, the part says {len(ids)} vectors")
        if not _are(self._ids(self._view)[self._id_places()], ids):
            raise CorruptError(f"{where}: the lists hold other rows than the part")

    def copy_into(self, lists: Any, first_id: int) -> None:
        """Add all entries to other inverted lists of the generation, their ids raised by `first_id`; mostly without the interpreter's lock."""
        if self.rows:
            held = self.raised(first_id)
            held.lists.copy_subset_to(lists, lists.SUBSET_TYPE_INVLIST, 0, lists.nlist)

    def raised(self, first_id: int) -> RaisedLists:
        """The lists in memory of their own, their ids raised by `first_id`: one copy of the section, of which faiss makes no other."""
        data = np.frombuffer(self._view, np.uint8).copy()
        self._ids(data.data)[self._id_places()] += first_id
        kind: Any = faiss  # its stubs lack the class
        lists = faiss.read_InvertedLists(kind.ZeroCopyIOReader(faiss.swig_ptr(data), len(data)))
        return RaisedLists(lists, holding(self._quantizer, lists, self.rows, owns=True), data, self.rows)  # faiss hands them out without an owner

    def _ids(self, view: memoryview) -> NDArray[np.int64]:
        """The eight bytes at every place of the section as a number: codes and ids lie behind each other, at any place."""
        return np.ndarray(len(view) - _ID_BYTES + 1, "<i8", view, strides=(1,))

    def _id_places(self) -> NDArray[np.int64]:
        """Where the ids lie in the section, shape (n,), list after list."""
        sizes = self._found.sizes
        codes_before = self._found.start + self._code_bytes * np.repeat(np.cumsum(sizes), sizes)
        places: NDArray[np.int64] = codes_before + _ID_BYTES * np.arange(self.rows)
        return places


def read_lists(data: bytes | memoryview, quantizer: Quantizer, ids: NDArray[np.integer[Any]], where: str) -> faiss.IndexIVFPQ:
    """An index of the generation that owns a copy of stored lists; parameters and errors as `StoredLists`, with `ids` of shape (n,)."""
    stored, index = StoredLists(data, quantizer, ids, where), quantizer.new_index()
    stored.copy_into(index.invlists, 0)
    index.ntotal = stored.rows
    return index


def unpack_lists(
    data: bytes | memoryview, quantizer: Quantizer, ids: NDArray[np.integer[Any]], where: str
) -> tuple[NDArray[np.int64], NDArray[np.uint8]]:
    """List numbers, shape (n,), and codes, shape (n, code_bytes), in the order of `ids`; parameters and errors as `StoredLists`."""
    StoredLists(data, quantizer, ids, where)
    view = memoryview(data).cast("B")
    found = list_sizes(view, quantizer.nlist, quantizer.code_bytes, where)
    stored, width = np.frombuffer(view, np.uint8), quantizer.code_bytes
    numbers, codes = np.empty(len(ids), np.int64), np.empty((len(ids), width), np.uint8)
    at = found.start
    for number in np.flatnonzero(found.sizes).tolist():
        size = int(found.sizes[number])
        ids_at, end = at + size * width, at + size * (width + _ID_BYTES)
        rows = np.searchsorted(ids, stored[ids_at:end].view("<i8"))
        numbers[rows], codes[rows] = number, stored[at:ids_at].reshape(size, width)
        at = end
    return numbers, codes


def _are(found: NDArray[np.int64], ids: NDArray[np.integer[Any]]) -> bool:
    """Whether ids, shape (n,), are these, shape (n,), ascending, in any order."""
    if not len(ids):
        return True
    first, last = int(ids[0]), int(ids[-1])
    if last - first >= 8 * len(ids):  # few rows of many have a vector
        return bool(np.array_equal(np.sort(found), ids))
    if int(found.min()) < first or int(found.max()) > last:
        return False
    met = np.zeros(last - first + 1, np.bool_)
    met[found - first] = True
    return int(np.count_nonzero(met)) == len(ids) and bool(met[ids - ids[0]].all())


def holding(quantizer: Quantizer, lists: faiss.InvertedLists, vectors: int, *, owns: bool) -> faiss.IndexIVFPQ:
    """An index of the generation over inverted lists; where it does not own them, it must not live longer than they do."""
    index = quantizer.new_index()
    index.replace_invlists(lists, owns)
    index.ntotal = vectors
    return index


def list_sizes(view: memoryview, nlist: int, code_bytes: int, where: str) -> ListSizes:
    """Sizes of the lists; CorruptError where the head is not that of `nlist` lists of codes of that size."""
    if len(view) < _HEAD.size:
        raise CorruptError(f"{where}: the lists are cut off")
    magic, stored_nlist, stored_code_bytes, kind, count = _HEAD.unpack_from(view)
    if (magic, stored_nlist, stored_code_bytes) != (b"ilar", nlist, code_bytes):
        raise CorruptError(f"{where}: {stored_nlist} lists of {stored_code_bytes} bytes a code, the generation has {nlist} of {code_bytes}")
    start = _HEAD.size + 8 * count
    limit = len(view) // (code_bytes + _ID_BYTES)
    if (
        count > 2 * nlist
        or start > len(view)
        or (kind, count % 2) not in ((b"full", nlist % 2), (b"sprs", 0))
        or (kind == b"full" and count != nlist)
    ):
        raise CorruptError(f"{where}: the sizes of the lists cannot be read")
    numbers = np.frombuffer(view[_HEAD.size : start], dtype="<u8")
    given = numbers[1::2] if kind == b"sprs" else numbers
    if (given > limit).any():
        raise CorruptError(f"{where}: a list is larger than the section")
    if kind == b"full":
        return ListSizes(given.astype(np.int64), start)
    lists = numbers[::2]
    if (lists >= nlist).any() or (lists[1:] <= lists[:-1]).any():
        raise CorruptError(f"{where}: the lists are not in order")
    sizes = np.zeros(nlist, np.int64)
    sizes[lists.astype(np.int64)] = given.astype(np.int64)
    return ListSizes(sizes, start)
