"""MiniLM-L6-v2's forward pass in torch.

Takes: token ids, and which of them are attended. Gives: float32 unit vectors. Owns: the layers.
Never: parses a weights file whose hash it does not know.

Model: Wang et al. 2020, "MiniLM: Deep Self-Attention Distillation", https://arxiv.org/abs/2002.10957, a BERT (Devlin et al.
2018, https://arxiv.org/abs/1810.04805) of six layers; mean pooling and 256 tokens as its card says,
https://huggingface.co/sentence-transformers/all-MiniLM-L6-v2. Written out here because transformers costs every query node
two seconds, 220 MB and 2.6 ms a query; a test holds the vectors equal to its ``BertModel``'s.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from safetensors.torch import load as load_safetensors
from torch.nn import functional

from embedding.minilm import DIMENSION, MAX_TOKENS, WEIGHTS

LAYERS = 6
HEADS = 12
_LAYER_NORM_EPSILON = 1e-12
_State = Mapping[str, torch.Tensor]


class _Affine(torch.nn.Module):
    """A weight and a bias, as they lie in the file."""

    weight: torch.Tensor
    bias: torch.Tensor

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor) -> None:
        super().__init__()
        self.register_buffer("weight", weight)
        self.register_buffer("bias", bias)

    def dense(self, x: torch.Tensor) -> torch.Tensor:
        """Multiply and add."""
        return functional.linear(x, self.weight, self.bias)

    def norm(self, x: torch.Tensor) -> torch.Tensor:
        """Normalise each vector, then scale and shift it."""
        return functional.layer_norm(x, (DIMENSION,), self.weight, self.bias, eps=_LAYER_NORM_EPSILON)


class _Layer(torch.nn.Module):
    """One transformer layer: attention, then two dense layers, each added to its input and normalised."""

    def __init__(self, state: _State, number: int) -> None:
        super().__init__()

        def affine(*names: str) -> _Affine:
            parts = [f"encoder.layer.{number}.{name}" for name in names]
            return _Affine(torch.cat([state[f"{part}.weight"] for part in parts]), torch.cat([state[f"{part}.bias"] for part in parts]))

        # One product instead of three: a single query is short, and calls cost more than arithmetic.
        self.attention_in = affine("attention.self.query", "attention.self.key", "attention.self.value")
        self.attention_out = affine("attention.output.dense")
        self.attention_norm = affine("attention.output.LayerNorm")
        self.wide = affine("intermediate.dense")
        self.narrow = affine("output.dense")
        self.out_norm = affine("output.LayerNorm")

    def forward(self, hidden: torch.Tensor, attended: torch.Tensor) -> torch.Tensor:
        """Apply it to hidden, shape (n, tokens, 384); attended, bool, shape (n, 1, 1, tokens), is False where there is padding."""
        count, tokens, _ = hidden.shape
        stacked = self.attention_in.dense(hidden).view(count, tokens, 3, HEADS, DIMENSION // HEADS).permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(stacked[0], stacked[1], stacked[2], attn_mask=attended)
        mixed = mixed.transpose(1, 2).reshape(count, tokens, DIMENSION)
        hidden = self.attention_norm.norm(hidden + self.attention_out.dense(mixed))
        return self.out_norm.norm(hidden + self.narrow.dense(functional.gelu(self.wide.dense(hidden))))


class MiniLMModule(torch.nn.Module):
    """The network.

    Raises
    ------
    SettingsError
        The package with the weights is not installed.
    CorruptError
        The file is not the one that the code names.
    """

    words: torch.Tensor
    positions: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        state = load_safetensors(WEIGHTS.read())
        self.register_buffer("words", state["embeddings.word_embeddings.weight"])
        # Every text is a first segment, so BERT's segment vector is a constant.
        segment = state["embeddings.token_type_embeddings.weight"][0]
        self.register_buffer("positions", state["embeddings.position_embeddings.weight"][:MAX_TOKENS] + segment)
        self.first_norm = _Affine(state["embeddings.LayerNorm.weight"], state["embeddings.LayerNorm.bias"])
        self.layers = torch.nn.ModuleList(_Layer(state, number) for number in range(LAYERS))
        self.train(False)

    def forward(self, ids: torch.Tensor, attended: torch.Tensor) -> torch.Tensor:
        """Unit vectors, shape (n, 384), of ids, shape (n, tokens); attended, of the same shape, is 1 or 0."""
        hidden = self.first_norm.norm(functional.embedding(ids, self.words) + self.positions[: ids.shape[1]])
        mask = attended[:, None, None, :] > 0
        for layer in self.layers:
            hidden = layer(hidden, mask)
        weight = attended.unsqueeze(-1).to(torch.float32)
        return functional.normalize((hidden.float() * weight).sum(1) / weight.sum(1), dim=1)
