"""`open_clip:ARCH/WEIGHTS`: any model of open_clip whose weights the operator has; pictures and text share one space.

Takes: prepared pictures, normalised text. Gives: unit vectors. Owns: the two towers, tokens, batches.
Never: loads anything but tensors from a weights file.

Radford et al. 2021, "Learning Transferable Visual Models From Natural Language Supervision", https://arxiv.org/abs/2103.00020;
https://github.com/mlfoundations/open_clip.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from contracts.encoder import EmbeddingSpace, PictureRecipe
from contracts.errors import SettingsError
from contracts.settings import Settings
from embedding.network import GPU_BATCH_ITEMS, Network, Runner
from embedding.open_clip_name import MAX_CHARACTERS, OpenClipModel, find_model
from embedding.open_clip_name import full_name as open_clip_full_name
from embedding.open_clip_towers import PictureTower, TextTower, load_model
from embedding.open_network import open_network
from embedding.parity import PROBES, probe_pictures
from embedding.pictures import PictureLimits
from embedding.prepare import check_prepared, prepared_array

BATCH_ITEMS = 16
"""Items in one forward pass on a CPU: more are no faster (ViT-B/32: 88 a second at 16, 91 at 32) and take more memory."""
MAX_CACHED_WORDS = 200_000
_PROBE_TEXTS = (
    "a red car on a wet road at night",
    "two dogs play in the snow",
    "a portrait of an old woman, oil on canvas",
    "map of the harbour, 1893",
    "fresh bread, olives and cheese on a wooden table",
    "x-ray of a hand",
    "the skyline of a city across the river",
    "circuit diagram of an amplifier",
)


class OpenClipEncoder:
    """An open_clip model; implements `contracts.encoder.Encoder`.

    Parameters
    ----------
    model : OpenClipModel
        Which one.
    settings : Settings
        Limits of pictures, and how networks are run: `embed_runtime`, `embed_device`, `embed_threads`, `cache_dir`.

    Raises
    ------
    SettingsError
        The weights are another architecture's, or the tokenizer is not on this machine.
    CorruptError
        The weights file is damaged, or is not the one that was described.
    """

    def __init__(self, model: OpenClipModel, settings: Settings) -> None:
        self._limits = PictureLimits.from_settings(settings)
        self._model = model
        self._words = _Words(model)
        towers = _Towers(model)
        side = model.recipe
        pictures = Network(
            f"open_clip-{model.architecture}-image",
            _identity(model),
            ("pictures",),
            ((0,),),
            (probe_pictures(side.height_pixels, side.width_pixels),),
            towers.pictures,
        )
        texts = Network(
            f"open_clip-{model.architecture}-text", _identity(model), ("tokens",), ((0,),), (self._words.tokens(_PROBE_TEXTS[:PROBES]),), towers.texts
        )
        self._run_pictures = open_network(pictures, settings)
        self._run_texts = open_network(texts, settings)

    @property
    def runtime(self) -> str:
        """What runs the two towers, for people."""
        return f"pictures {self._run_pictures.label}, text {self._run_texts.label}"

    @property
    def space(self) -> EmbeddingSpace:
        """The space of every vector this encoder gives."""
        return self._model.space

    @property
    def picture_recipe(self) -> PictureRecipe:
        """As open_clip prepares pictures for these weights."""
        return self._model.recipe

    def prepare_picture(self, data: bytes) -> NDArray[np.uint8]:
        """Decode one picture and bring it to the model's size.

        Returns
        -------
        NDArray[np.uint8]
            shape ``picture_recipe.shape``, RGB.

        Raises
        ------
        RecordError
            ``decode_failed``, ``too_many_pixels``, ``too_large``, ``unsupported_content_type``.
        """
        return prepared_array(data, self._model.recipe, self._limits)

    def encode_pictures(self, pictures: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Encode n prepared pictures, shape (n, height, width, 3), to unit vectors, shape (n, dimension)."""
        check_prepared(pictures, self._model.recipe)
        return self._in_batches(self._run_pictures, pictures)

    def encode_texts(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Encode n normalised texts to unit vectors, shape (n, dimension)."""
        return self._in_batches(self._run_texts, self._words.tokens(texts))

    def _in_batches(self, run: Runner, items: NDArray[Any]) -> NDArray[np.float32]:
        vectors = np.empty((len(items), self._model.space.dimension), np.float32)
        most = GPU_BATCH_ITEMS if run.on_gpu else BATCH_ITEMS
        for start in range(0, len(items), most):
            vectors[start : start + most] = run(items[start : start + most])
        norms = np.linalg.norm(vectors, axis=1, keepdims=True)
        unit: NDArray[np.float32] = vectors / np.maximum(norms, np.finfo(np.float32).tiny)  # bfloat16 leaves a length of 0.99 to 1.01
        return unit


def open_named(name: str, settings: Settings) -> OpenClipEncoder:
    """Load the encoder of that name; see `embedding.open_encoder.open_encoder`."""
    return OpenClipEncoder(find_model(name, settings), settings)


def space_named(name: str, settings: Settings) -> EmbeddingSpace:
    """The space of the encoder of that name; the weights file is hashed, not parsed."""
    return find_model(name, settings).space


def full_name(name: str, settings: Settings, with_pictures: bool) -> str:
    """The name with its file's hash, as a collection stores it."""
    return open_clip_full_name(name, settings)


def _identity(model: OpenClipModel) -> str:
    """What decides the numbers of both towers: the space has it all."""
    return model.space.space_id.rpartition("@")[2] + model.weights_sha256


class _Towers:
    """Makes the towers out of one reading of the weights file; a reader whose converted copies are in the cache never needs it."""

    def __init__(self, model: OpenClipModel) -> None:
        self._model = model
        self._lock = threading.Lock()
        self._made: tuple[PictureTower, TextTower] | None = None

    def pictures(self) -> torch.nn.Module:
        """The tower of pictures."""
        return self._both()[0]

    def texts(self) -> torch.nn.Module:
        """The tower of texts."""
        return self._both()[1]

    def _both(self) -> tuple[PictureTower, TextTower]:
        with self._lock:
            if self._made is None:
                whole: Any = load_model(self._model)
                visual = whole.visual
                del whole.visual  # each tower holds its own part, so that moving one to a device leaves the other
                self._made = PictureTower(visual, self._model.mean, self._model.deviation), TextTower(whole)
            return self._made


class _Words:
    """The tokenizer of an architecture: open_clip's own byte pairs, or one of the transformers library that lies on this machine."""

    def __init__(self, model: OpenClipModel) -> None:
        import open_clip

        text: Mapping[str, Any] = model.config["text_cfg"]
        foreign = text.get("hf_tokenizer_name")
        try:
            self._tokenizer: Any = open_clip.get_tokenizer(model.architecture, **({"local_files_only": True} if foreign else {}))
        except Exception as error:  # the hub's, the tokenizers' and the file system's classes
            raise SettingsError(
                f"the tokenizer of {model.architecture} ({foreign or 'SigLIP'}) is not on this machine: {type(error).__name__}",
                hint=f"fetch it once: hf download {foreign}" if foreign else "choose an architecture with another tokenizer",
            ) from error
        self._lock = threading.Lock()

    def tokens(self, texts: Sequence[str]) -> NDArray[np.int64]:
        """Token ids, shape (n, context length)."""
        with self._lock:  # its cache of words is a plain dictionary, and grows with every new word of an endless stream
            cache = getattr(self._tokenizer, "cache", None)
            if cache is not None and len(cache) > MAX_CACHED_WORDS:
                for word in [word for word in cache if not word.startswith("<")]:
                    del cache[word]
            found: NDArray[np.int64] = self._tokenizer([text[:MAX_CHARACTERS] for text in texts]).numpy().astype(np.int64)
        return found
