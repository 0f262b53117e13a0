"""The bare reference of searches: all rows in one faiss index, with the same quantizer, codes and refine codes.

It is what a program would use that has all rows at hand and needs none of ids, segments, tails, snapshots and deletes but faiss's own: `IndexIVFPQ`
under `IndexRefine`, a bitmap for deleted rows, and the graph over the centroids that our search has. Called through faiss's Python interface.

Takes: coded parts in the order of their rows. Gives: the closest row numbers. Owns: its index. Never: shares lists with what it is compared with.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

from contracts.segment import CodedPart
from vectors import coarse_graph
from vectors.inverted_lists import read_lists
from vectors.quantizer import Quantizer


class MergedIndex:
    """One index over the rows of many segments.

    Parameters
    ----------
    quantizer : Quantizer
        Of the parts' generation.
    parts : sequence of CodedPart
        Part after part: their rows are numbered through.
    """

    def __init__(self, quantizer: Quantizer, parts: Sequence[CodedPart]) -> None:
        self.quantizer, self.rows = quantizer, sum(part.segment_rows for part in parts)
        self._lists = quantizer.new_index()
        first = 0
        for part in parts:
            self._lists.merge_from(read_lists(part.lists, quantizer, part.rows, "merged"), first)
            first += part.segment_rows
        self._refine = quantizer.new_refine_index()
        faiss.copy_array_to_vector(np.concatenate([part.refine for part in parts]).ravel(), self._refine.codes)
        self._refine.ntotal = self.rows
        self._graph = coarse_graph.build(quantizer) if coarse_graph.pays(quantizer) else None
        self._by_all = faiss.IndexRefine(self._lists, self._refine)
        self._with_graph: Any = None
        if self._graph is not None:
            lists = quantizer.new_index()
            lists.replace_invlists(self._lists.invlists, False)
            lists.ntotal, lists.quantizer = self.rows, self._graph
            self._graph_lists, self._with_graph = lists, faiss.IndexRefine(lists, self._refine)

    def searcher(self, nprobe: int, factor: float, allowed: NDArray[np.bool_] | None, *, by_graph: bool) -> MergedSearch:
        """Ready to search so many lists, with `factor` candidates per hit that are refined, among the allowed rows, shape (n,)."""
        return MergedSearch(self._with_graph if by_graph and self._with_graph is not None else self._by_all, nprobe, factor, allowed, by_graph)


class MergedSearch:
    """One way to search the merged index; holds what faiss only points to."""

    def __init__(self, index: Any, nprobe: int, factor: float, allowed: NDArray[np.bool_] | None, by_graph: bool) -> None:
        self._index = index
        self._bits = None if allowed is None else np.packbits(allowed, bitorder="little")
        self._selector = None if self._bits is None else faiss.IDSelectorBitmap(len(self._bits), faiss.swig_ptr(self._bits))
        walk = coarse_graph.parameters(nprobe) if by_graph else None
        lists = faiss.SearchParametersIVF(nprobe=nprobe, sel=self._selector, quantizer_params=walk)  # type: ignore[call-arg]
        self._parameters = faiss.IndexRefineSearchParameters(k_factor=factor, base_index_params=lists)  # type: ignore[call-arg]

    def closest(self, queries: NDArray[np.float32], limit: int) -> NDArray[np.int64]:
        """Closest rows, shape (q, limit), of queries, shape (q, d)."""
        found: NDArray[np.int64] = self._index.search(queries, limit, params=self._parameters)[1]
        return found
