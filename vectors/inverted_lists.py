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


def read_lists(data: bytes | memoryview, quantizer: Quantizer, ids: NDArray[np.integer[Any]], where: str) -> faiss.IndexIVFPQ:
    """Read the bytes of `write_lists`, which were compared with their sha256.

    Parameters
    ----------
    data : bytes or memoryview
        The section; it is copied.
    quantizer : Quantizer
        Of the part's generation.
    ids : NDArray[np.integer]
        shape (n,), ascending: exactly the ids that the lists must hold, each once.
    where : str
        Names the object in errors.

    Returns
    -------
    faiss.IndexIVFPQ
        An index of the generation that owns the lists (faiss hands them out without an owner); ``other.merge_from(index, 0)`` moves them elsewhere.

    Raises
    ------
    CorruptError
        A size differs, the bytes end early or late, or the lists hold other ids.
    """
    view, vectors = _checked(data, quantizer, ids, where)[0], len(ids)
    reader = faiss.VectorIOReader()
    faiss.copy_array_to_vector(np.frombuffer(view, np.uint8), reader.data)
    return holding(quantizer, faiss.read_InvertedLists(reader), vectors, owns=True)


def unpack_lists(
    data: bytes | memoryview, quantizer: Quantizer, ids: NDArray[np.integer[Any]], where: str
) -> tuple[NDArray[np.int64], NDArray[np.uint8]]:
    """List numbers, shape (n,), and codes, shape (n, code_bytes), in the order of `ids`; parameters and errors as `read_lists`."""
    view, found = _checked(data, quantizer, ids, where)
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


def _checked(data: bytes | memoryview, quantizer: Quantizer, ids: NDArray[np.integer[Any]], where: str) -> tuple[memoryview, ListSizes]:
    view = memoryview(data).cast("B")
    found = list_sizes(view, quantizer.nlist, quantizer.code_bytes, where)
    vectors = int(found.sizes.sum())
    if found.start + vectors * (quantizer.code_bytes + _ID_BYTES) != len(view) or vectors != len(ids):
        raise CorruptError(f"{where}: the lists hold {vectors} vectors in {len(view)} bytes, the part says {len(ids)} vectors")
    if not np.array_equal(np.sort(stored_ids(view, found, quantizer.code_bytes)), ids):
        raise CorruptError(f"{where}: the lists hold other rows than the part")
    return view, found


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


def stored_ids(view: memoryview, found: ListSizes, code_bytes: int) -> NDArray[np.int64]:
    """Ids of all lists, shape (n,), list after list; the sizes were compared with the section's."""
    data = np.frombuffer(view, np.uint8)[found.start :]
    sizes = found.sizes[found.sizes > 0]
    ends = np.cumsum(sizes * (code_bytes + _ID_BYTES))
    chosen = [data[end - size * _ID_BYTES : end] for size, end in zip(sizes.tolist(), ends.tolist(), strict=True)]
    ids: NDArray[np.int64] = (np.concatenate(chosen) if chosen else data[:0]).view("<i8")
    return ids.astype(np.int64, copy=False)
