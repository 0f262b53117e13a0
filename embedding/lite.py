"""`lite`: an encoder that needs no model hub and no GPU; pictures and text meet in MiniLM's space.

Takes: prepared pictures, normalised text. Gives: unit vectors of 384 numbers. Owns: how a picture gets a place among words.
Never: touches the network, or learns from the media it encodes.

A picture becomes the weighted mean of its likeliest ImageNet classes' name vectors: ConSE, Norouzi et al. 2013,
"Zero-Shot Learning by Convex Combination of Semantic Embeddings", https://arxiv.org/abs/1312.5650.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from contracts.encoder import EmbeddingSpace, PictureRecipe
from contracts.settings import Settings
from embedding import efficientnet_lite0, minilm
from embedding.open_network import open_network
from embedding.pictures import PictureLimits
from embedding.prepare import prepared_array
from embedding.weights import combined_sha256

RECIPE = PictureRecipe(efficientnet_lite0.SIZE_PIXELS, efficientnet_lite0.SIZE_PIXELS, "letterbox", "bicubic")
TOP_CLASSES = 50
TEMPERATURE = 2.0
"""Flatter than the network's own softmax, which is surer of a drawing than a network of photographs should be.

Both numbers are from the middle of a plateau: 20 to 50 classes and temperatures 1.5 to 2.5 give recall@10 0.31 to 0.34 for
caption -> its picture on the 325 samples; 5 classes at temperature 1 give 0.27.
"""


class LiteEncoder:
    """The `lite` encoder (DESIGN section 6); implements `contracts.encoder.Encoder`.

    Parameters
    ----------
    settings : Settings
        Limits of pictures, and how networks are run: `embed_runtime`, `embed_device`, `embed_threads`, `cache_dir`.

    Raises
    ------
    SettingsError
        A package is missing.
    CorruptError
        A weights file is not the one that the code names.
    """

    def __init__(self, settings: Settings) -> None:
        self._limits = PictureLimits.from_settings(settings)
        self._texts = minilm.MiniLM(open_network(minilm.network(), settings))
        self._pictures = efficientnet_lite0.EfficientNetLite0(open_network(efficientnet_lite0.network(), settings))
        names = efficientnet_lite0.class_names()
        self._class_vectors = self._texts.encode(names)  # (1000, 384); a second, so not worth a cache on disk
        self._space = lite_space(names)

    @staticmethod
    def check_weights() -> None:
        """Hash every weights file that is installed; CorruptError where one is not what the code names."""
        for file in (efficientnet_lite0.WEIGHTS, minilm.WEIGHTS, minilm.TOKENIZER):
            file.read()

    @property
    def runtime(self) -> str:
        """What runs the two networks, for people."""
        return f"pictures {self._pictures.run.label}, text {self._texts.run.label}"

    @property
    def space(self) -> EmbeddingSpace:
        """The space of every vector this encoder gives."""
        return self._space

    @property
    def picture_recipe(self) -> PictureRecipe:
        """All of the picture in a white square of 224 pixels."""
        return RECIPE

    def prepare_picture(self, data: bytes) -> NDArray[np.uint8]:
        """Decode one picture and fit all of it into a white square of 224 pixels.

        Returns
        -------
        NDArray[np.uint8]
            shape (224, 224, 3), RGB.

        Raises
        ------
        RecordError
            ``decode_failed``, ``too_many_pixels``, ``too_large``, ``unsupported_content_type``.
        """
        return prepared_array(data, RECIPE, self._limits)

    def encode_pictures(self, pictures: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Encode n prepared pictures, shape (n, 224, 224, 3), to unit vectors, shape (n, 384)."""
        return self.mixed_names(self.class_logits(pictures))

    def class_logits(self, pictures: NDArray[np.uint8]) -> NDArray[np.float32]:
        """What the network says of n prepared pictures, shape (n, 224, 224, 3): logits of shape (n, 1000)."""
        return self._pictures.logits(pictures)

    def mixed_names(self, logits: NDArray[np.float32]) -> NDArray[np.float32]:
        """Unit vectors, shape (n, 384), of pictures with these logits, shape (n, 1000): the likeliest classes' names, mixed."""
        logits = logits / TEMPERATURE
        best = np.argpartition(logits, -TOP_CLASSES, axis=1)[:, -TOP_CLASSES:]
        weights = np.take_along_axis(logits, best, axis=1)
        weights = np.exp(weights - weights.max(axis=1, keepdims=True))
        mixed = np.einsum("nk,nkd->nd", weights, self._class_vectors[best])  # a sum of weights other than 1 changes no direction
        vectors: NDArray[np.float32] = mixed / np.linalg.norm(mixed, axis=1, keepdims=True)
        return vectors

    def encode_texts(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Encode n normalised texts to unit vectors, shape (n, 384)."""
        return self._texts.encode(texts)


def open_named(name: str, settings: Settings) -> LiteEncoder:
    """Load `lite`; see `embedding.open_encoder.open_encoder`."""
    return LiteEncoder(settings)


def space_named(name: str, settings: Settings) -> EmbeddingSpace:
    """The space of `lite` on this machine."""
    return lite_space()


def lite_space(names: Sequence[str] | None = None) -> EmbeddingSpace:
    """The space of `lite` with these class names (None: those that are installed), without loading any weights."""
    return EmbeddingSpace(
        encoder="lite",
        weights_sha256=combined_sha256(efficientnet_lite0.WEIGHTS, minilm.WEIGHTS, minilm.TOKENIZER),
        preprocessing=_preprocessing(efficientnet_lite0.class_names() if names is None else names),
        dimension=minilm.DIMENSION,
        metric="cosine",
    )


def _preprocessing(names: Sequence[str]) -> str:
    """What happens before and between the networks; the names are part of it, for they come from timm and could change."""
    digest = hashlib.sha256("\n".join(names).encode()).hexdigest()
    return (
        f"picture: {RECIPE.description}, (x-127)/128; "
        f"conse: top {TOP_CLASSES}, temperature {TEMPERATURE}, wordnet names {digest[:16]}; "
        f"text: {minilm.PREPROCESSING}"
    )
