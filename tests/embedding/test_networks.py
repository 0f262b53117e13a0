"""Promises of the written-out networks: the same numbers as timm's and transformers' own implementations.

The frameworks are imported inside the tests: collecting them must not cost ten seconds where `model` is deselected.
"""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import numpy as np
import pytest

from contracts.encoder import PictureRecipe
from contracts.errors import UnavailableError
from embedding import efficientnet_lite0, minilm
from embedding.network import Network, Runner
from embedding.pictures import PictureLimits
from embedding.prepare import prepared_array

pytestmark = pytest.mark.model
MEDIA = Path(__file__).resolve().parents[2] / "examples" / "media"


def _exact(network: Network) -> Runner:
    """In float32: a CPU that computes in bfloat16 would be given that by `open_network`, and rounds more than these tests allow."""
    import torch

    from embedding.torch_runner import TorchRunner

    return TorchRunner(network.make_module(), torch.device("cpu"), torch.float32, 1)


def _classifier() -> efficientnet_lite0.EfficientNetLite0:
    return efficientnet_lite0.EfficientNetLite0(_exact(efficientnet_lite0.network()))


def test_the_classifier_gives_the_logits_of_timms_model_on_the_same_weights() -> None:
    import timm
    import torch

    pictures = np.random.default_rng(0).integers(0, 256, (3, 224, 224, 3), dtype=np.uint8)
    state = torch.load(io.BytesIO(efficientnet_lite0.WEIGHTS.read()), weights_only=True)
    reference = timm.create_model("tf_efficientnet_lite0", pretrained=False)
    # Both list their tensors in the order of the forward pass; shapes must agree, or loading fails.
    reference.load_state_dict(dict(zip(reference.state_dict(), state.values(), strict=True)))
    reference.train(False)
    with torch.inference_mode():
        expected = reference(((torch.from_numpy(pictures).float() - 127.0) / 128.0).permute(0, 3, 1, 2))
    given = torch.from_numpy(_classifier().logits(pictures))
    assert torch.allclose(given, expected, atol=2e-3)
    assert torch.equal(given.argmax(1), expected.argmax(1))


def test_class_names_are_timms_in_the_order_of_the_logits() -> None:
    from timm.data import ImageNetInfo

    assert efficientnet_lite0.class_names() == ImageNetInfo("imagenet-1k").label_descriptions()


def test_pictures_captioned_with_a_class_name_are_often_classified_so() -> None:
    """Samples such as "Tiger" or "Hammer": drawings to a network of photographs, so the bar is far below its 75 % there; chance is 0.1 %."""
    names = {word.strip().lower(): number for number, words in enumerate(efficientnet_lite0.class_names()) for word in words.split(",")}
    with (MEDIA / "captions.csv").open(encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["caption"].lower() in names]
    assert len(rows) >= 25
    limits = PictureLimits(10**7, 10**7)
    pictures = np.stack([prepared_array((MEDIA / row["file"]).read_bytes(), PictureRecipe(224, 224, "letterbox"), limits) for row in rows])
    best = _classifier().logits(pictures).argmax(1).tolist()
    assert np.mean([number == names[row["caption"].lower()] for number, row in zip(best, rows, strict=True)]) >= 0.3


def test_sentences_get_the_vectors_of_transformers_bert_with_mean_pooling() -> None:
    import torch
    from safetensors.torch import load
    from transformers import BertConfig, BertModel

    texts = ["a dog", "The quick brown fox jumps over the lazy dog, twice.", "", "caf\u00e9 \u6771\u4eac", "long " * 400]
    config = json.loads((minilm.WEIGHTS.path().parent / "config.json").read_text())
    reference = BertModel(BertConfig(**config), add_pooling_layer=True)
    reference.load_state_dict(load(minilm.WEIGHTS.read()), strict=False)
    reference.train(False)
    ours = minilm.MiniLM(_exact(minilm.network()))
    expected = []
    for text in texts:
        ids = torch.tensor([ours._tokenizer.encode(text).ids])
        assert ids.shape[1] <= minilm.MAX_TOKENS
        with torch.inference_mode():
            pooled = reference(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state.mean(1)
        expected.append(torch.nn.functional.normalize(pooled, dim=1).numpy()[0])
    assert np.abs(ours.encode(texts) - np.stack(expected)).max() < 1e-4


def test_a_device_without_memory_says_so_in_our_own_words() -> None:
    import torch

    from embedding.torch_runner import TorchRunner

    class Exhausted(torch.nn.Module):
        def forward(self, values: torch.Tensor) -> torch.Tensor:
            raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(MemoryError, match="out of memory") as caught:
        TorchRunner(Exhausted(), torch.device("cpu"), torch.float32, 1)(np.zeros((2, 3), np.float32))
    assert caught.value.__context__ is None  # torch's error keeps the failed pass's tensors alive, while the caller tries fewer items


def test_a_device_without_memory_for_the_weights_says_so_with_a_hint() -> None:
    import torch

    from embedding.torch_runner import TorchRunner

    class TooLarge(torch.nn.Module):
        def to(self, *args: object, **kwargs: object) -> TooLarge:
            raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(UnavailableError, match="do not fit into the memory of cpu.*HEADWATER_EMBED_DEVICE=cpu"):
        TorchRunner(TooLarge(), torch.device("cpu"), torch.float32, 1)
