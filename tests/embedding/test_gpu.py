"""Promises on a GPU: float32's vectors from bfloat16 weights, at every batch size, from many threads, and with hardly any memory left."""

from __future__ import annotations

import gc
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from contracts.collection import FieldRecord, IndexRecord
from contracts.encoder import Encoder
from contracts.errors import SettingsError
from contracts.settings import Settings
from contracts.vectors_batch import BatchItem
from embedding import efficientnet_lite0, minilm
from embedding.network import GPU_BATCH_ITEMS
from embedding.open_encoder import open_encoder
from embedding.parity import MIN_COSINE, centred_cosine
from indexer.embed import embed_slices
from indexer.slices import DecodedItem, DecodedSlice, FetchedSlice
from tests import open_clip_models

pytestmark = [pytest.mark.slow, pytest.mark.model]

ARCHITECTURE = "ViT-B-32"
CLIP = f"open_clip:{ARCHITECTURE}/random.safetensors"
MEDIA = Path(__file__).resolve().parents[2] / "examples" / "media"
TEXTS = [
    "a dog",
    "two red cars in the rain at night",
    "",
    "map of the harbour, 1893",
    "fresh bread and olives",
    "circuit diagram",
    "snow",
    "long " * 300,
]
SPARE_BYTES = 160 << 20
"""Left of the GPU's memory: room for some pictures, not for a full batch."""


@pytest.fixture(scope="module", autouse=True)
def gpu() -> None:
    import torch

    if not torch.cuda.is_available():
        pytest.skip("torch finds no GPU here")


@pytest.fixture(scope="module")
def settings(gpu: None, tmp_path_factory: pytest.TempPathFactory) -> Settings:
    folder = tmp_path_factory.mktemp("gpu")
    return Settings(model_dir=folder, cache_dir=folder / "cache", embed_device="auto")


@pytest.fixture(scope="module")
def reference(settings: Settings) -> Any:
    """The model as open_clip made it, in float32 on the CPU; its weights are in the folder of models."""
    from safetensors.torch import save_file

    model = open_clip_models.random_model(architecture=ARCHITECTURE)
    save_file({name: value.contiguous() for name, value in model.state_dict().items()}, settings.model_dir / "random.safetensors")
    return model


@pytest.fixture(scope="module")
def clip(reference: Any, settings: Settings) -> Encoder:
    return open_encoder(CLIP, settings)


@pytest.fixture(scope="module")
def lite(settings: Settings) -> Encoder:
    return open_encoder("lite", settings)


@pytest.fixture(scope="module")
def pictures(settings: Settings) -> NDArray[np.uint8]:
    """Sample pictures, prepared as `lite` has them: both encoders take 224 x 224 pixels."""
    from embedding.lite import RECIPE
    from embedding.pictures import PictureLimits
    from embedding.prepare import prepared_array

    files = sorted(path for path in MEDIA.rglob("*") if path.suffix in (".jpg", ".png"))
    assert len(files) >= GPU_BATCH_ITEMS
    with ThreadPoolExecutor() as pool:
        limits = PictureLimits.from_settings(settings)
        return np.stack(list(pool.map(lambda path: prepared_array(path.read_bytes(), RECIPE, limits), files[:GPU_BATCH_ITEMS])))


def clip_pictures(reference: Any, pictures: NDArray[np.uint8]) -> NDArray[np.float32]:
    import open_clip
    import torch

    mean, deviation = (torch.tensor(values).view(1, 3, 1, 1) for values in (open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD))
    with torch.inference_mode():
        scaled = (torch.tensor(pictures).permute(0, 3, 1, 2).float() / 255 - mean) / deviation
        found: NDArray[np.float32] = reference.encode_image(scaled, normalize=True).numpy()
    return found


def clip_texts(reference: Any, texts: list[str]) -> NDArray[np.float32]:
    import open_clip
    import torch

    with torch.inference_mode():
        found: NDArray[np.float32] = reference.encode_text(open_clip.get_tokenizer(ARCHITECTURE)(texts), normalize=True).numpy()
    return found


def is_unit(vectors: NDArray[np.float32]) -> bool:
    return bool(np.abs(np.linalg.norm(vectors, axis=1) - 1).max() < 1e-3)


@pytest.mark.parametrize("device", ["auto", "cuda", "cuda:0"])
def test_a_large_model_runs_on_the_gpu_with_bfloat16_weights_and_gives_open_clips_vectors(
    device: str, reference: Any, settings: Settings, pictures: NDArray[np.uint8]
) -> None:
    encoder: Any = open_encoder(CLIP, settings.model_copy(update={"embed_device": device}))
    assert encoder.runtime.startswith("pictures torch") and encoder.runtime.count("on cuda") == 2
    assert "bf16 on cuda" in encoder.runtime.partition(", text")[0]
    given = encoder.encode_pictures(pictures[:64])
    assert is_unit(given) and given.dtype == np.float32
    assert centred_cosine(clip_pictures(reference, pictures[:64]), given) >= MIN_COSINE
    assert centred_cosine(clip_texts(reference, TEXTS), encoder.encode_texts(TEXTS)) >= MIN_COSINE


def test_lite_runs_on_the_gpu_and_gives_the_vectors_of_float32_on_the_cpu(lite: Any, settings: Settings, pictures: NDArray[np.uint8]) -> None:
    import torch

    from embedding.torch_runner import TorchRunner

    assert lite.runtime.count("on cuda") == 2
    cpu = torch.device("cpu")
    classifier = efficientnet_lite0.EfficientNetLite0(TorchRunner(efficientnet_lite0.network().make_module(), cpu, torch.float32, 1))
    texts = minilm.MiniLM(TorchRunner(minilm.network().make_module(), cpu, torch.float32, 1))
    logits = classifier.logits(pictures[:64])
    assert centred_cosine(logits, lite.class_logits(pictures[:64])) >= MIN_COSINE
    assert centred_cosine(lite.mixed_names(logits), lite.encode_pictures(pictures[:64])) >= MIN_COSINE
    assert centred_cosine(texts.encode(TEXTS), lite.encode_texts(TEXTS)) >= MIN_COSINE
    assert is_unit(lite.encode_pictures(pictures[:9]))


@pytest.mark.parametrize("name", ["clip", "lite"])
def test_a_batch_of_any_size_gives_the_vectors_of_its_items_alone(name: str, pictures: NDArray[np.uint8], request: pytest.FixtureRequest) -> None:
    encoder: Encoder = request.getfixturevalue(name)
    alone = np.concatenate([encoder.encode_pictures(pictures[at : at + 1]) for at in range(len(pictures))])
    assert len(alone) == GPU_BATCH_ITEMS
    for size in (1, 7, GPU_BATCH_ITEMS):
        together = np.concatenate([encoder.encode_pictures(pictures[at : at + size]) for at in range(0, len(pictures), size)])
        assert np.abs(together - alone).max() < 2e-2
        assert centred_cosine(alone, together) >= MIN_COSINE
    texts_alone = np.concatenate([encoder.encode_texts([text]) for text in TEXTS])
    assert centred_cosine(texts_alone, encoder.encode_texts(TEXTS)) >= MIN_COSINE


@pytest.mark.parametrize("name", ["clip", "lite"])
def test_threads_that_encode_at_once_get_their_own_vectors(name: str, pictures: NDArray[np.uint8], request: pytest.FixtureRequest) -> None:
    encoder: Encoder = request.getfixturevalue(name)
    slices = [pictures[at : at + 16] for at in range(0, len(pictures), 16)] * 4
    expected = [encoder.encode_pictures(part) for part in slices[:16]] * 4
    expected_texts = encoder.encode_texts(TEXTS)
    with ThreadPoolExecutor(8) as pool:
        texts = [pool.submit(encoder.encode_texts, TEXTS) for _ in range(8)]
        for given, wanted in zip(pool.map(encoder.encode_pictures, slices), expected, strict=True):
            assert np.abs(given - wanted).max() < 1e-3
        for future in texts:
            assert np.abs(future.result() - expected_texts).max() < 1e-3


@pytest.fixture(scope="module")
def full_gpu(clip: Encoder, pictures: NDArray[np.uint8]) -> Iterator[None]:
    """Hardly any memory is left on the GPU, until the last test of this module is over."""
    import torch

    clip.encode_pictures(pictures[:1])  # what a pass needs once is there
    gc.collect()  # encoders of earlier tests: what they free later would be more room
    torch.cuda.empty_cache()
    fillers = []
    for _ in range(20):  # the driver takes a moment to give back what was freed
        if (more := torch.cuda.mem_get_info()[0] - SPARE_BYTES) > 0:
            fillers.append(torch.empty(more, dtype=torch.uint8, device="cuda"))
        time.sleep(0.1)
    yield
    fillers.clear()
    torch.cuda.empty_cache()


def test_a_batch_for_which_the_gpu_has_no_memory_is_a_memory_error_and_the_worker_encodes_it_in_parts(
    clip: Encoder, pictures: NDArray[np.uint8], full_gpu: None
) -> None:
    with pytest.raises(MemoryError, match="out of memory") as caught:
        clip.encode_pictures(pictures)
    assert caught.value.__context__ is None  # it would keep the failed pass's tensors alive
    name = FieldRecord(name="image", source="image", encoder=CLIP, space_id=clip.space.space_id, dimension=clip.space.dimension, dtype="float32")
    index = IndexRecord(name="main", fields=(name,), vectors_topic="v", vectors_topic_id="t")
    items = [DecodedItem(BatchItem(at, 0, "upsert", f"id-{at}"), picture=picture) for at, picture in enumerate(pictures)]
    decoded = DecodedSlice(FetchedSlice(0, 0, 0, len(items), []), items)
    embed_slices([decoded], index, clip, GPU_BATCH_ITEMS)
    given = np.stack([np.asarray(item.row.vectors["image"]) for item in items])
    alone = np.concatenate([clip.encode_pictures(pictures[at : at + 1]) for at in range(16)])
    assert is_unit(given) and decoded.rejections == []
    assert np.abs(given[:16] - alone).max() < 2e-2


def test_a_gpu_that_is_not_there_is_a_settings_error_with_a_hint(settings: Settings, reference: Any) -> None:
    import torch

    device = f"cuda:{torch.cuda.device_count() + 6}"
    with pytest.raises(SettingsError, match=f"embed_device is {device}, and torch finds no such GPU.*HEADWATER_EMBED_DEVICE=auto"):
        open_encoder(CLIP, settings.model_copy(update={"embed_device": device}))
