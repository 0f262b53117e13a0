"""The quantizer of one field: inverted lists of product-quantized residuals, and a refine store; the one codec family behind one interface.

    Generation (stored bytes) -> Quantizer.open -> encode, decode, new_index, refine_scores

Takes: a generation, vectors, shape (n, d), as they are stored (length 1 for cosine). Gives: list numbers, codes, refine codes, empty faiss indexes.
Owns: the meaning of a generation's bytes, and the coarse quantizer that every index of it uses.
Never: knows an id or a segment; changes after it was opened, so any thread may use it.

Lists are probed by the field's own metric: inner product for cosine and dot, L2 for euclid. A vector belongs to the list of its closest centroid by
inner product for cosine (where all have length 1) and by L2 for dot and euclid: by inner product, the longest centroids would swallow all vectors.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

from contracts.codec import Codec, parse_codec
from contracts.encoder import Metric
from contracts.errors import CorruptError
from contracts.generation import Generation
from vectors.flat import as_float32, one_thread
from vectors.quantizer_bytes import QuantizerParts, read_quantizer
from vectors.refine import Float16Refine, RefineCodec, Sq8Refine

BLOCK_ROWS = 4096
"""Rows that are converted to float32 and encoded at once: bounds the memory of a large segment, and small enough that the allocator keeps it."""
CODE_BITS = 8
EachBlock = Callable[[int, NDArray[np.float32]], None]


@dataclass(frozen=True, slots=True)
class EncodedRows:
    """What n vectors became.

    `list_numbers` has shape (n,), dtype int64; `codes` shape (n, code_bytes) and `refine` shape (n, refine_bytes), both uint8.
    """

    list_numbers: NDArray[np.int64]
    codes: NDArray[np.uint8]
    refine: NDArray[np.uint8]


class Quantizer:
    """The trained quantizers of one field in one generation, ready to use.

    Parameters
    ----------
    generation : Generation
        Whose centroids are handed over to faiss; `open` checks its bytes first.
    codec : Codec
        What its codec's name says.
    parts : QuantizerParts
        What its quantizer bytes say.
    """

    def __init__(self, generation: Generation, codec: Codec, parts: QuantizerParts) -> None:
        self.field_name, self.number, self.space_id = generation.field_name, generation.number, generation.space_id
        self.metric: Metric = generation.metric  # type: ignore[assignment]
        self.codec, self.statistics = codec, generation.statistics
        self.trained_rows = generation.trained_rows
        self.trained_recall = {int(nprobe): float(share) for nprobe, share in generation.statistics.get("recall", {}).items()}
        self.nlist, self.dimension = generation.centroids.shape
        self.code_bytes = codec.subquantizers
        self.coarse = coarse_index(generation.centroids, self.metric)
        self.codebook = parts.codebook
        self._template = self.new_index()
        self._template.pq.sync_transposed_centroids()  # the same codes, in 0.7 of the time
        self._refine: RefineCodec = Float16Refine(self.dimension) if parts.ranges is None else Sq8Refine(parts.ranges)
        self.refine_bytes = self._refine.code_bytes

    @classmethod
    def open(cls, generation: Generation, where: str = "generation") -> Quantizer:
        """Make a generation ready to use; `where` names it in errors.

        Raises
        ------
        CorruptError
            Codec, metric, centroids and quantizer bytes do not fit together.
        """
        try:
            codec = parse_codec(generation.codec, generation.centroids.shape[1])
        except ValueError as error:
            raise CorruptError(f"{where}: {error}", hint="upgrade headwater on this machine", code="unknown_format") from None
        if codec is None or codec.name != generation.codec or generation.metric not in ("cosine", "dot", "euclid"):
            raise CorruptError(f"{where}: codec {generation.codec}, metric {generation.metric!r}: nothing that was trained")
        if not np.isfinite(generation.centroids).all():
            raise CorruptError(f"{where}: a centroid is not finite")
        return cls(generation, codec, read_quantizer(generation.quantizer, codec, generation.centroids.shape[1], where))

    @property
    def centroids(self) -> NDArray[np.float32]:
        """Centroids, shape (nlist, d): a view of the coarse quantizer's own."""
        view: NDArray[np.float32] = faiss.rev_swig_ptr(self.coarse.get_xb(), self.nlist * self.dimension).reshape(self.nlist, self.dimension)
        return view

    @property
    def size_bytes(self) -> int:
        """Bytes in memory of centroids and codebook."""
        return int(4 * self.dimension * (self.nlist + (1 << CODE_BITS)))

    # ---- encoding ----------------------------------------------------------------------------------------------------

    def encode(self, matrix: NDArray[Any], each_block: EachBlock | None = None) -> EncodedRows:
        """Encode vectors.

        Parameters
        ----------
        matrix : NDArray
            shape (n, d), float16 or float32; finite, and of length 1 for cosine.
        each_block : callable, optional
            Is shown every block as float32, with the place of its first row: so the conversion is paid once. Called by several threads, in any order;
            it must not change a block.

        Raises
        ------
        ValueError
            Another dimension.
        """
        if matrix.ndim != 2 or matrix.shape[1] != self.dimension:
            raise ValueError(f"vectors have shape {matrix.shape}, the quantizer of {self.field_name} takes (n, {self.dimension})")
        out = EncodedRows(
            np.empty(len(matrix), np.int64),
            np.empty((len(matrix), self.code_bytes), np.uint8),
            np.empty((len(matrix), self.refine_bytes), np.uint8),
        )
        threads = max(1, min(-(-len(matrix) // BLOCK_ROWS), faiss.omp_get_max_threads()))
        block_rows = _even_block_rows(len(matrix), threads)

        def encode_block(start: int) -> None:
            self._encode_block(matrix[start : start + block_rows], start, out, each_block)

        if threads > 1:  # a block a thread: faiss's own would wait for each other, at full speed, after every step of every block
            with ThreadPoolExecutor(threads, "encode", one_thread) as pool:
                for _ in pool.map(encode_block, range(0, len(matrix), block_rows)):
                    pass
        else:
            for start in range(0, len(matrix), block_rows):
                encode_block(start)
        return out

    def _encode_block(self, rows: NDArray[Any], start: int, out: EncodedRows, each_block: EachBlock | None) -> None:
        block = as_float32(rows)
        end = start + len(block)
        if each_block is not None:
            each_block(start, block)
        out.list_numbers[start:end] = self.assign(block)
        codes, lists = out.codes[start:end], out.list_numbers[start:end]
        self._template.encode_vectors(len(block), faiss.swig_ptr(block), faiss.swig_ptr(lists), faiss.swig_ptr(codes), False)
        out.refine[start:end] = self._refine.encode(block)

    def assign(self, matrix: NDArray[np.float32]) -> NDArray[np.int64]:
        """List of each vector, shape (n,), of vectors, shape (n, d), float32 in C order."""
        if self.metric == "dot":
            _, found = faiss.knn(matrix, self.centroids, 1, faiss.METRIC_L2)
        else:
            _, found = self.coarse.search(matrix, 1)
        return np.maximum(found[:, 0], 0)  # a distance beyond float32 finds no list: such a vector goes to the first one, its refine code is exact

    def reconstruct(self, list_numbers: NDArray[np.int64], codes: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Vectors, shape (n, d), that list numbers, shape (n,), and codes, shape (n, code_bytes), stand for; `decode` is finer."""
        lists, codes = np.ascontiguousarray(list_numbers, np.int64), np.ascontiguousarray(codes, np.uint8)
        out = np.empty((len(lists), self.dimension), np.float32)
        self._template.decode_vectors(len(lists), faiss.swig_ptr(codes), faiss.swig_ptr(lists), faiss.swig_ptr(out))
        return out

    # ---- searching ---------------------------------------------------------------------------------------------------

    def new_index(self) -> faiss.IndexIVFPQ:
        """An empty index of this generation, to add codes to and to search.

        All indexes of a generation use the same coarse quantizer: none of them owns it, each keeps it alive. faiss holds the codebook by value, so
        each has a copy (1 KiB a dimension). None has a precomputed table, which only L2 would use and which cannot be shared (nlist x M KiB each).
        """
        metric = faiss.METRIC_L2 if self.metric == "euclid" else faiss.METRIC_INNER_PRODUCT
        index = faiss.IndexIVFPQ(self.coarse, self.dimension, self.nlist, self.code_bytes, CODE_BITS, metric)
        index.own_fields = False
        index.use_precomputed_table = -1
        faiss.copy_array_to_vector(self.codebook.ravel(), index.pq.centroids)
        index.is_trained = True
        return index

    def new_lists(self) -> faiss.ArrayInvertedLists:
        """Empty inverted lists of this generation, as `new_index` has."""
        return faiss.ArrayInvertedLists(self.nlist, self.code_bytes)

    def decode(self, refine: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Vectors, shape (n, d), that refine codes, shape (n, refine_bytes), stand for. Encoding one again gives the same refine code."""
        return self._refine.decode(refine)

    def new_refine_index(self) -> faiss.IndexScalarQuantizer:
        """An empty index that compares queries with refine codes."""
        index = faiss.IndexScalarQuantizer(self.dimension, self._refine.kind, self._template.metric_type)
        faiss.copy_array_to_vector(self._refine.trained(), index.sq.trained)
        index.is_trained = True
        return index

    def refine_scores(self, queries: NDArray[np.float32], refine: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Exact scores of queries with the vectors that refine codes stand for.

        Parameters
        ----------
        queries : NDArray[np.float32]
            shape (q, d).
        refine : NDArray[np.uint8]
            shape (q, c, refine_bytes): the candidates of each query.

        Returns
        -------
        NDArray[np.float32]
            shape (q, c): similarities for cosine and dot, distances for euclid, as `vectors.flat` gives them.
        """
        if len(queries) == 0:
            return np.empty(refine.shape[:2], np.float32)
        return np.stack([self._refine.scores(query, codes, self.metric) for query, codes in zip(queries, refine, strict=True)])


def _even_block_rows(rows: int, threads: int) -> int:
    """Rows of a block, `BLOCK_ROWS` at most, of which each thread gets equally many: of full blocks, one thread would often code the last alone."""
    rounds = max(1, -(-rows // (BLOCK_ROWS * threads)))
    return max(1, -(-rows // (rounds * threads)))


def coarse_index(centroids: NDArray[np.float32], metric: Metric) -> faiss.IndexFlat:
    """The coarse quantizer over centroids, shape (nlist, d), that finds the lists to probe."""
    index = faiss.IndexFlatL2(centroids.shape[1]) if metric == "euclid" else faiss.IndexFlatIP(centroids.shape[1])
    index.add(np.ascontiguousarray(centroids, dtype=np.float32))
    return index
