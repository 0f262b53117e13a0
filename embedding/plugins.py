"""Encoders from other packages, by the entry-point group `headwater.encoders` (docs/encoders.md, "Plug-ins").

The entry point's name is what stands before the first colon of its encoders' names; it loads to a module or object with
``open_encoder(name, settings) -> Encoder`` and ``describe_space(name, settings) -> EmbeddingSpace``.

Takes: the names of installed packages' entry points. Gives: their encoders, checked. Owns: the blame: every error names the distribution.
Never: imports a plug-in that no name asks for, lets one replace another or one of ours, or trusts the shape of what it gives.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from contracts.encoder import EmbeddingSpace, Encoder, PictureRecipe
from contracts.errors import HeadwaterError, RecordError, SettingsError
from contracts.settings import Settings

GROUP = "headwater.encoders"
_NORM_TOLERANCE = 1e-3
_PROBE_TEXTS = ("a red bicycle", "two dogs on a beach at night")
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Plugin:
    """One installed plug-in: the names that begin with `prefix` are its."""

    prefix: str
    distribution: str
    entry_point: EntryPoint

    def open(self, name: str, settings: Settings) -> Encoder:
        """Its encoder of that name, after it has shown that it keeps the protocol; SettingsError naming the distribution where it does not."""
        function = self._function("open_encoder")
        return CheckedEncoder(self, name, self.call("open_encoder", lambda: function(name, settings)))

    def space(self, name: str, settings: Settings) -> EmbeddingSpace:
        """The space of its encoder of that name; SettingsError as `open`."""
        function = self._function("describe_space")
        return self.checked_space(name, self.call("describe_space", lambda: function(name, settings)))

    def checked_space(self, name: str, space: object) -> EmbeddingSpace:
        """`space`, if it is one that a collection can be created in."""
        if not isinstance(space, EmbeddingSpace):
            raise self.violation(f"describes {name[:80]!r} by {type(space).__name__}, not by a contracts.encoder.EmbeddingSpace")
        if space.encoder.partition(":")[0] != self.prefix:
            raise self.violation(f"calls its space {space.encoder[:80]!r}, which does not begin with {self.prefix!r}")
        if space.metric != "cosine":
            raise self.violation(f"compares by {space.metric!r}; encoders give unit vectors, compared by cosine")
        return space

    def call(self, what: str, function: Callable[[], T]) -> T:
        """Call into the plug-in: errors of ours pass, all others are its own mistakes."""
        try:
            return function()
        except (HeadwaterError, MemoryError):
            raise
        except ModuleNotFoundError as error:
            raise self.violation(f"needs the package {error.name}", hint=f"install {error.name}, or remove {self.distribution}") from error
        except Exception as error:  # whatever a stranger's code raises
            raise self.violation(f"failed in {what}: {type(error).__name__}: {' '.join(str(error).split())[:200]}") from error

    def violation(self, what: str, hint: str = "") -> SettingsError:
        """One line that says which package to mend."""
        return SettingsError(
            f"encoder plug-in {self.prefix!r} of {self.distribution} {what}", hint=hint or f"mend, upgrade or remove {self.distribution}"
        )

    def _function(self, name: str) -> Callable[[str, Settings], Any]:
        loaded = self.call("loading", self.entry_point.load)
        function = getattr(loaded, name, None)
        if not callable(function):
            raise self.violation(f"has no function {name}(name, settings) in {self.entry_point.value}")
        return function  # type: ignore[no-any-return]


def plugin_prefixes() -> list[str]:
    """What stands before the colon of the names that installed plug-ins know; nothing is imported."""
    return sorted({point.name for point in entry_points(group=GROUP)})


def find_plugin(prefix: str) -> Plugin | None:
    """The plug-in for names that begin with `prefix`, not yet imported.

    Raises
    ------
    SettingsError
        Two distributions claim the prefix; nobody chooses between them but the operator.
    """
    found = {(_distribution(point), point.value): point for point in entry_points(group=GROUP, name=prefix)}
    if len(found) > 1:
        names = ", ".join(sorted(distribution for distribution, _ in found))
        raise SettingsError(f"encoder {prefix!r} is claimed by several plug-ins: {names}", hint="remove all but one of them")
    return next((Plugin(prefix, distribution, point) for (distribution, _), point in found.items()), None)


def _distribution(point: EntryPoint) -> str:
    return f"{point.dist.name} {point.dist.version}" if point.dist is not None else "an unknown distribution"


class CheckedEncoder:
    """A plug-in's encoder whose every answer is looked at; implements `contracts.encoder.Encoder`.

    Parameters
    ----------
    plugin : Plugin
        Where it comes from.
    name : str
        What it was opened as.
    encoder : object
        What the plug-in gave.

    Raises
    ------
    SettingsError
        It breaks the protocol.
    """

    def __init__(self, plugin: Plugin, name: str, encoder: Any) -> None:
        self._plugin, self._encoder = plugin, encoder
        missing = [part for part in ("space", "picture_recipe", "prepare_picture", "encode_pictures", "encode_texts") if not hasattr(encoder, part)]
        if missing:
            raise plugin.violation(f"gives an encoder without {', '.join(missing)}")
        self._space = plugin.checked_space(name, encoder.space)
        recipe = encoder.picture_recipe
        if not isinstance(recipe, PictureRecipe):
            raise plugin.violation(f"has a picture_recipe of type {type(recipe).__name__}, not contracts.encoder.PictureRecipe")
        self._recipe: PictureRecipe = recipe
        self._prove()

    def _prove(self) -> None:
        """Encode known inputs: a plug-in that cannot do these is told now, not by a stream of rejected records."""
        from PIL import Image

        sink = io.BytesIO()
        Image.linear_gradient("L").convert("RGB").save(sink, "PNG")
        try:
            picture = self.prepare_picture(sink.getvalue())
            self.encode_pictures(np.stack([picture, 255 - picture]))
            self.encode_texts(_PROBE_TEXTS)
        except RecordError as error:
            raise self._plugin.violation(f"rejects a picture or text that is known to be good: {error.message}") from error

    @property
    def space(self) -> EmbeddingSpace:
        """The space of every vector this encoder gives."""
        return self._space

    @property
    def picture_recipe(self) -> PictureRecipe:
        """How pictures are prepared for it."""
        return self._recipe

    def prepare_picture(self, data: bytes) -> NDArray[np.uint8]:
        """Decode one picture; shape ``picture_recipe.shape``, RGB.

        Raises
        ------
        RecordError
            The plug-in cannot decode it.
        SettingsError
            It gives something else than such an array.
        """
        try:
            picture = self._encoder.prepare_picture(data)
        except (HeadwaterError, MemoryError):
            raise
        except Exception as error:  # decoders fail in many ways on bad bytes; known good ones were tried when it was opened
            raise RecordError("decode_failed", f"{self._plugin.distribution} cannot decode the picture: {type(error).__name__}") from error
        if not isinstance(picture, np.ndarray) or picture.shape != self._recipe.shape or picture.dtype != np.uint8:
            raise self._plugin.violation(f"prepares pictures as {_described(picture)}, not as uint8 of shape {self._recipe.shape}")
        return picture

    def encode_pictures(self, pictures: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Encode n prepared pictures, shape (n, height, width, 3), to unit vectors, shape (n, dimension)."""
        return self._checked(self._plugin.call("encode_pictures", lambda: self._encoder.encode_pictures(pictures)), len(pictures), "pictures")

    def encode_texts(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Encode n normalised texts to unit vectors, shape (n, dimension)."""
        return self._checked(self._plugin.call("encode_texts", lambda: self._encoder.encode_texts(texts)), len(texts), "texts")

    def _checked(self, vectors: object, count: int, what: str) -> NDArray[np.float32]:
        wanted = (count, self._space.dimension)
        if not isinstance(vectors, np.ndarray) or vectors.shape != wanted or vectors.dtype != np.float32:
            raise self._plugin.violation(f"encodes {what} to {_described(vectors)}, not to float32 of shape {wanted}")
        norms = np.linalg.norm(vectors, axis=1)
        if count and not np.all(np.abs(norms - 1.0) <= _NORM_TOLERANCE):  # false for NaN too
            raise self._plugin.violation(f"encodes {what} to vectors that are not of unit length ({norms[np.abs(norms - 1).argmax()]:.4g})")
        return vectors


def _described(value: object) -> str:
    return f"{value.dtype} of shape {value.shape}" if isinstance(value, np.ndarray) else type(value).__name__
