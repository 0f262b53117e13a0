"""The encoder: media in, unit vectors out, in one named space.

Takes: decoded pictures and normalised text. Gives: float32 vectors. Owns: what makes two vectors comparable.
Never: knows a framework; torch lives in `embedding` only. Never imports numpy, but for types: the processes that decode
pictures read `PictureRecipe` here, and must be small.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Literal, Protocol

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Metric = Literal["cosine", "dot", "euclid"]
Fit = Literal["letterbox", "crop", "squash"]
Resampling = Literal["bilinear", "bicubic", "box"]


@dataclass(frozen=True, slots=True)
class PictureRecipe:
    """How a picture becomes what a network looks at. Data, not code: a process without the encoder's weights follows it.

    Every recipe begins with the same steps: first frame, RGB, transparency on white, upright by EXIF (`embedding.pictures`).

    Parameters
    ----------
    width_pixels, height_pixels : int
        Size of the result.
    fit : {"letterbox", "crop", "squash"}
        ``letterbox``: all of the picture, centred on `background`. ``crop``: scaled until it covers the size, then the centre cut
        out (with a square, torchvision's ``Resize(side)`` and ``CenterCrop(side)``). ``squash``: both sides scaled on their own.
    resampling : {"bilinear", "bicubic", "box"}
        Filter, as Pillow has it (antialiased when it makes smaller).
    is_exact : bool
        Decode at full size and filter in one step, as model authors' own code does. Otherwise a JPEG is decoded at the smallest of its scales
        that has twice the pixels needed, and large pictures are halved by averages first: two to three times as fast.
    background : tuple of int
        RGB around a letterbox.
    """

    width_pixels: int
    height_pixels: int
    fit: Fit
    resampling: Resampling = "bicubic"
    is_exact: bool = False
    background: tuple[int, int, int] = (255, 255, 255)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(height, width, 3) of the result."""
        return (self.height_pixels, self.width_pixels, 3)

    @property
    def size_bytes(self) -> int:
        """Bytes of the result: one for each pixel and colour."""
        return 3 * self.width_pixels * self.height_pixels

    @property
    def description(self) -> str:
        """One line for `EmbeddingSpace.preprocessing`: two recipes that give other pixels have other descriptions."""
        width, height = self.width_pixels, self.height_pixels
        size = f"{width}" if width == height else f"{width}x{height}"
        scale = "" if self.is_exact else f"jpeg scale >= {2 * max(width, height)}, "
        around = "white" if self.background == (255, 255, 255) else "rgb({},{},{})".format(*self.background)
        where = f" on {around}" if self.fit == "letterbox" else ""
        return f"{scale}exif orientation, alpha on white, {self.fit} {size} {self.resampling}{where}"

    def to_json(self) -> str:
        """The recipe as one JSON object; `from_json` reads it back."""
        return json.dumps(asdict(self), sort_keys=True, separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str) -> PictureRecipe:
        """Read what `to_json` wrote."""
        values = json.loads(text)
        return cls(**{**values, "background": tuple(values["background"])})


@dataclass(frozen=True, slots=True)
class EmbeddingSpace:
    """Identity of a vector space: vectors of two spaces are never compared.

    Parameters
    ----------
    encoder : str
        Name as in settings, for example ``lite`` or ``open_clip:ViT-B-32/laion2b_s34b_b79k``.
    weights_sha256 : str
        Hex sha256 over the sha256 of every weights file, in the encoder's own order; empty for own vectors.
    preprocessing : str
        Canonical description of what happens to pixels and text before the network.
    dimension : int
        Length of a vector.
    metric : {"cosine", "dot", "euclid"}
        How two vectors are compared.
    """

    encoder: str
    weights_sha256: str
    preprocessing: str
    dimension: int
    metric: Metric

    @property
    def space_id(self) -> str:
        """Short stable name, ``<encoder>@<16 hex>``, stored with every vector field."""
        body = json.dumps(asdict(self), sort_keys=True, separators=(",", ":")).encode()
        return f"{self.encoder}@{hashlib.sha256(body).hexdigest()[:16]}"


class Encoder(Protocol):
    """Turns pictures and text into vectors of one space. Thread-safe; calls may run at the same time."""

    @property
    def space(self) -> EmbeddingSpace:
        """The space of every vector this encoder gives."""
        ...

    @property
    def picture_recipe(self) -> PictureRecipe:
        """How pictures are prepared for this encoder; services follow it in `embedding.decode_pool`, outside their own process."""
        ...

    def prepare_picture(self, data: bytes) -> NDArray[np.uint8]:
        """Decode and resize one picture by `picture_recipe` in this process: for tools, and pictures that one trusts.

        Returns
        -------
        NDArray[np.uint8]
            shape ``picture_recipe.shape``, RGB.

        Raises
        ------
        RecordError
            ``decode_failed``, ``too_many_pixels``, ``too_large``, ``unsupported_content_type``.
        """
        ...

    def encode_pictures(self, pictures: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Encode prepared pictures, shape (n, height, width, 3), to unit vectors, shape (n, dimension)."""
        ...

    def encode_texts(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Encode n normalised texts to unit vectors, shape (n, dimension)."""
        ...
