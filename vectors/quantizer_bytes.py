"""The bytes in a generation's section `quantizer` (docs/formats/generation.md): a footer-indexed file of our own, never a faiss index.

    codebook        M x 256 x (d / M) float32, little-endian
    refine_ranges   2 x d float32, little-endian: lowest value and width per dimension; only with sq8
    meta            subquantizers: M

Takes: trained arrays. Gives: bytes, and arrays whose sizes were checked. Owns: this layout. Never: hands stored bytes to a parser of faiss.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from contracts.codec import Codec
from contracts.errors import CorruptError
from contracts.footer_file import FooterFile, write_footer_file

KIND = "ivf_pq"
CODEBOOK_SIZE = 256


@dataclass(frozen=True, slots=True)
class QuantizerParts:
    """Codebook, shape (M, 256, d / M), and the ranges of `sq8`, shape (2, d); None with `float16`."""

    codebook: NDArray[np.float32]
    ranges: NDArray[np.float32] | None


def write_quantizer(parts: QuantizerParts) -> bytes:
    """Bytes of trained arrays."""
    sections: dict[str, bytes | memoryview] = {"codebook": parts.codebook.astype("<f4").tobytes()}
    if parts.ranges is not None:
        sections["refine_ranges"] = parts.ranges.astype("<f4").tobytes()
    return write_footer_file(KIND, sections, {"subquantizers": len(parts.codebook)})


def read_quantizer(data: bytes | memoryview, codec: Codec, dimension: int, where: str) -> QuantizerParts:
    """Read the bytes of a codec for vectors of that dimension.

    Raises
    ------
    CorruptError
        Another layout, sizes that do not fit codec and dimension, or numbers that are not finite.
    """
    file = FooterFile.read(data, where, KIND)
    if file.meta.get("subquantizers") != codec.subquantizers:  # the codebook of another number of them has the same size
        raise CorruptError(f"{where}: {file.meta.get('subquantizers')!r} sub-quantizers, codec {codec.name} has {codec.subquantizers}")
    width = dimension // codec.subquantizers
    codebook = _array(file, "codebook", (codec.subquantizers, CODEBOOK_SIZE, width), where)
    ranges = _array(file, "refine_ranges", (2, dimension), where) if codec.refine == "sq8" else None
    if ranges is not None and (ranges[1] <= 0).any():
        raise CorruptError(f"{where}: a range of the refine store is empty")
    return QuantizerParts(codebook, ranges)


def _array(file: FooterFile, name: str, shape: tuple[int, ...], where: str) -> NDArray[np.float32]:
    section = file.section(name, where)
    if len(section) != 4 * int(np.prod(shape)):
        raise CorruptError(f"{where}: section {name} has {len(section)} bytes, float32 of shape {shape} has {4 * int(np.prod(shape))}")
    found = np.frombuffer(section, dtype="<f4").reshape(shape)
    if not np.isfinite(found).all():
        raise CorruptError(f"{where}: section {name} holds a number that is not finite")
    return found.astype(np.float32, copy=False)
