"""Map files: a trained map as safetensors, with what it was trained on in its metadata.

Takes: a map and facts about it; a path and the sha256 that is expected. Gives: the file's bytes and hash; the map. Owns: the file's form.
Never: parses bytes whose hash is not the expected one, unpickles, or takes a map that was trained for other weights of `lite`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from contracts import canonical_json
from contracts.errors import CorruptError, HeadwaterError, SettingsError
from embedding.ridge_map import RidgeMap

FORMAT = "headwater-lite-map-1"
MAX_BYTES = 16 << 20
_SHAPES = {"weights": (1000, 384), "offset": (384,)}


def map_bytes(made: RidgeMap, base_space_id: str, facts: Mapping[str, str]) -> bytes:
    """The file of a map that was trained on vectors of the space `base_space_id`."""
    metadata = {**facts, "format": FORMAT, "base_space": base_space_id, "prior": repr(made.prior), "strength": repr(made.strength)}
    return save({"weights": made.weights, "offset": made.offset}, metadata)


def read_map_bytes(path: Path, sha256: str | None) -> tuple[bytes, str]:
    """A map file's bytes and hex sha256.

    Raises
    ------
    SettingsError
        The file cannot be read or is too large, or (``space_mismatch``) it has another hash than `sha256`.
    """
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise SettingsError(f"map {path} cannot be read: {error.strerror}", hint="copy it here, or into the folder of model_dir") from None
    if len(data) > MAX_BYTES:
        raise SettingsError(f"map {path} has more than {MAX_BYTES} bytes", hint="name a file that `headwater train map` wrote")
    found = hashlib.sha256(data).hexdigest()
    if sha256 is not None and found != sha256:
        raise SettingsError(
            f"map {path} is another file than the collection was created with (sha256 {found[:16]}..., not {sha256[:16]}...)",
            hint="copy the right map here; a newly trained one needs a new collection",
            code="space_mismatch",
        )
    return data, found


def parse_map(data: bytes, where: Path, base_space_id: str) -> RidgeMap:
    """The map in a file's bytes, for `lite` in the space `base_space_id`.

    Raises
    ------
    CorruptError
        The bytes are no map.
    SettingsError
        The map was trained for another `lite` (``space_mismatch``).
    """
    try:
        metadata = canonical_json.load(data[8 : 8 + int.from_bytes(data[:8], "little")])["__metadata__"]
        if metadata["format"] != FORMAT:
            raise _no_map(where, f"its format is {str(metadata['format'])[:40]!r}")
        tensors = load(data)
        made = RidgeMap(tensors["weights"], tensors["offset"], float(metadata["prior"]), float(metadata["strength"]))
        base = metadata["base_space"]
    except HeadwaterError:
        raise
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        raise _no_map(where, type(error).__name__) from None
    for name, shape in _SHAPES.items():
        tensor = getattr(made, name)
        if tensor.shape != shape or tensor.dtype != np.float32 or not np.isfinite(tensor).all():
            raise _no_map(where, f"its {name} are {tensor.dtype} of shape {tensor.shape}")
    if not 0.0 <= made.prior <= 1.0:
        raise _no_map(where, "its prior is not between 0 and 1")
    if base != base_space_id:
        raise SettingsError(
            f"map {where} was trained for {str(base)[:60]!r}, this machine has {base_space_id}", hint="train it again here", code="space_mismatch"
        )
    return made


def _no_map(where: Path, why: str) -> CorruptError:
    return CorruptError(f"{where} is no map: {why}", hint="name a file that `headwater train map` wrote")
