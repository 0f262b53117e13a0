"""The generation object: the trained quantizers of one field (docs/formats/generation.md).

Created once by put-if-absent; whoever loses the race loads the winner's. Codes of two generations are not comparable. No manifest names the object
with its hash, since any builder of the index may have made it; so the footer, which has a checksum, holds the sha256 of each section.

Takes: centroids and a codec's own bytes. Gives: one object. Owns: its meta. Never: is changed; retraining makes the next number.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from contracts.errors import CorruptError
from contracts.footer_file import FooterFile, write_footer_file

_DTYPES = {"float16": "<f2", "float32": "<f4"}
"""What centroids are stored in: float16 where it holds them exactly."""


@dataclass(frozen=True, slots=True)
class Generation:
    """Trained state of one field.

    `centroids` has shape (nlist, d), dtype float32; `quantizer` holds the codec's own bytes (codebooks), read only by that codec.
    """

    field_name: str
    number: int
    space_id: str
    metric: str
    codec: str
    centroids: NDArray[np.float32]
    quantizer: bytes
    trained_rows: int
    statistics: Mapping[str, Any] = field(default_factory=dict)


def encode_generation(generation: Generation) -> bytes:
    """Bytes of a generation object."""
    nlist, dimension = generation.centroids.shape
    with np.errstate(over="ignore"):  # what float16 cannot hold is not equal afterwards
        half = generation.centroids.astype("<f2")
    dtype = "float16" if np.array_equal(half, generation.centroids) else "float32"
    centroids = half if dtype == "float16" else generation.centroids.astype("<f4")
    sections: dict[str, bytes | memoryview] = {"centroids": centroids.tobytes(), "quantizer": generation.quantizer}
    meta = {
        "field": generation.field_name,
        "generation": generation.number,
        "space_id": generation.space_id,
        "metric": generation.metric,
        "codec": generation.codec,
        "nlist": nlist,
        "dimension": dimension,
        "centroids_dtype": dtype,
        "trained_rows": generation.trained_rows,
        "statistics": dict(generation.statistics),
        "sections_sha256": {name: hashlib.sha256(section).hexdigest() for name, section in sections.items()},
    }
    return write_footer_file("generation", sections, meta)


def decode_generation(data: bytes | memoryview, where: str) -> Generation:
    """Read a generation object; CorruptError where a section's hash differs, or sections and meta disagree."""
    file = FooterFile.read(data, where, "generation")
    meta = file.meta
    try:
        for name in ("centroids", "quantizer"):
            if hashlib.sha256(file.section(name, where)).hexdigest() != meta["sections_sha256"][name]:
                raise CorruptError(f"{where}: section {name} differs from its sha256", hint="restore the object from a backup")
        stored = np.frombuffer(file.section("centroids", where), dtype=_DTYPES[meta["centroids_dtype"]])
        centroids = stored.reshape(meta["nlist"], meta["dimension"]).astype(np.float32, copy=False)
        return Generation(
            meta["field"],
            meta["generation"],
            meta["space_id"],
            meta["metric"],
            meta["codec"],
            centroids,
            bytes(file.section("quantizer", where)),
            meta["trained_rows"],
            meta["statistics"],
        )
    except (ValueError, TypeError) as error:
        raise CorruptError(f"{where}: centroids and meta disagree: {error}") from None
    except KeyError as error:
        raise CorruptError(f"{where}: meta lacks {error}, or a type that is known") from None
