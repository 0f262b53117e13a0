"""`lite+map:FILE`: `lite`, with pictures moved to where captions like theirs are, by a map that was trained on captioned pictures.

Takes: prepared pictures, normalised text. Gives: unit vectors of 384 numbers, in a space of its own. Owns: where a map is looked for.
Never: takes another file than the one whose sha256 stands in the name, or touches vectors of `lite` itself.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from contracts.encoder import EmbeddingSpace, PictureRecipe
from contracts.errors import SettingsError
from contracts.settings import Settings
from embedding.lite import LiteEncoder, lite_space
from embedding.map_file import parse_map, read_map_bytes
from embedding.ridge_map import RidgeMap

PIN = "#sha256="
_FORM = re.compile(r"lite\+map:(?P<path>[^#]{1,1000})(?:#sha256=(?P<sha256>[0-9a-f]{64}))?")


class LiteMapEncoder:
    """`lite` with a map; implements `contracts.encoder.Encoder`.

    Parameters
    ----------
    lite : LiteEncoder
        What the map was trained for.
    ridge_map : RidgeMap
        The map.
    sha256 : str
        Hex sha256 of the map's file.
    """

    def __init__(self, lite: LiteEncoder, ridge_map: RidgeMap, sha256: str) -> None:
        self._lite, self._map = lite, ridge_map
        self._space = _mapped_space(lite.space, sha256)

    @property
    def space(self) -> EmbeddingSpace:
        """The space of every vector this encoder gives."""
        return self._space

    @property
    def picture_recipe(self) -> PictureRecipe:
        """As `lite`."""
        return self._lite.picture_recipe

    def prepare_picture(self, data: bytes) -> NDArray[np.uint8]:
        """Decode one picture as `lite` does; shape (224, 224, 3), RGB."""
        return self._lite.prepare_picture(data)

    def encode_pictures(self, pictures: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Encode n prepared pictures, shape (n, 224, 224, 3), to unit vectors, shape (n, 384)."""
        logits = self._lite.class_logits(pictures)
        return self._map.apply(logits, self._lite.mixed_names(logits))

    def encode_texts(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Encode n normalised texts to unit vectors, shape (n, 384); the map moves pictures only."""
        return self._lite.encode_texts(texts)


def open_named(name: str, settings: Settings) -> LiteMapEncoder:
    """Load `lite` and the map; see `embedding.open_encoder.open_encoder`."""
    path, pinned = _find(name, settings)
    data, sha256 = read_map_bytes(path, pinned)
    ridge_map = parse_map(data, path, lite_space().space_id)
    return LiteMapEncoder(LiteEncoder(settings), ridge_map, sha256)


def space_named(name: str, settings: Settings) -> EmbeddingSpace:
    """The space of `lite` with this map; the file is parsed, so that a wrong one is told when a collection is created."""
    path, pinned = _find(name, settings)
    data, sha256 = read_map_bytes(path, pinned)
    base = lite_space()
    parse_map(data, path, base.space_id)
    return _mapped_space(base, sha256)


def full_name(name: str, settings: Settings, with_pictures: bool) -> str:
    """The name with the map's hash, so that every machine takes this map or none."""
    path, pinned = _find(name, settings)
    return f"{name.partition(PIN)[0]}{PIN}{read_map_bytes(path, pinned)[1]}"


def _find(name: str, settings: Settings) -> tuple[Path, str | None]:
    """Path and pinned hash: the path as it is written, else its last part in `model_dir`, for machines that keep maps elsewhere."""
    match = _FORM.fullmatch(name)
    if match is None:
        raise SettingsError(f"encoder {name[:100]!r} cannot be read", hint="write lite+map:FILE, with #sha256=HEX behind it to pin the file")
    written = Path(match["path"])
    elsewhere = settings.model_dir / written.name
    return (elsewhere if not written.exists() and elsewhere.exists() else written), match["sha256"]


def _mapped_space(base: EmbeddingSpace, sha256: str) -> EmbeddingSpace:
    both = hashlib.sha256(f"{base.weights_sha256}{sha256}".encode()).hexdigest()
    return replace(base, encoder="lite+map", weights_sha256=both, preprocessing=f"{base.preprocessing}; map: centred unit logits, ridge")
