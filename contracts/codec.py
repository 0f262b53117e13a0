"""Codec names: how the vectors of an index are stored (docs/formats/generation.md).

    auto                 flat below the training size, then the default codec of the field's dimension
    flat                 every vector as it is, for ever
    ivf_pq<M>x8+<refine> flat below the training size, then inverted lists of M-byte codes beside a refine store, `sq8` or `float16`

Takes: a name, a dimension. Gives: `Codec`, or None for `flat`. Owns: the grammar of the names and what `auto` means.
Never: encodes a vector; `vectors.quantizer` does.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

AUTO, FLAT = "auto", "flat"
CODEC_PATTERN = r"^(auto|flat|ivf_pq[1-9][0-9]{0,4}x8\+(sq8|float16))$"
"""Names that an index may have as its codec."""
SUBVECTOR_DIMENSION = 8
"""Widest sub-vector of the default codec: one byte for eight dimensions, whose loss the refine store makes good."""
_IVF_PQ = re.compile(r"ivf_pq([1-9][0-9]{0,4})x8\+(sq8|float16)\Z")


@dataclass(frozen=True, slots=True)
class Codec:
    """Product quantization inside inverted lists: `subquantizers` bytes a vector, and what the refine store holds."""

    subquantizers: int
    refine: Literal["sq8", "float16"]

    @property
    def name(self) -> str:
        """The codec's name, which `parse_codec` reads back."""
        return f"ivf_pq{self.subquantizers}x8+{self.refine}"


def parse_codec(name: str, dimension: int) -> Codec | None:
    """Codec of that name for vectors of that dimension; None for ``flat``.

    ``auto`` cuts a vector into equal pieces of at most 8 dimensions, as wide as the dimension's divisors allow: 512 becomes 64 bytes, 100 becomes 20
    (pieces of 5). A dimension without such divisors gets a byte for each of its numbers, as the refine store does; it is never refused.

    Raises
    ------
    ValueError
        Not a codec's name, or one whose pieces do not divide the dimension.
    """
    if name == FLAT:
        return None
    if name == AUTO:
        widest = max(width for width in range(1, SUBVECTOR_DIMENSION + 1) if dimension % width == 0)
        return Codec(dimension // widest, "sq8")
    match = _IVF_PQ.match(name)
    if not match:
        raise ValueError(f"codec {name[:40]!r} is not known; there are auto, flat, and ivf_pq<M>x8+sq8 or +float16 with M bytes a vector")
    subquantizers = int(match[1])
    if dimension % subquantizers:
        raise ValueError(f"codec {name}: {subquantizers} does not divide the dimension {dimension}")
    return Codec(subquantizers, "sq8" if match[2] == "sq8" else "float16")
