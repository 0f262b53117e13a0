"""Promises of the `lite` encoder: right networks, stable vectors, and search that finds things."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from contracts.encoder import Encoder
from contracts.errors import RecordError
from contracts.settings import Settings
from embedding.fields import fuse
from embedding.open_encoder import open_encoder
from headwater.demo_queries import DEMO_QUERIES

pytestmark = pytest.mark.model
MEDIA = Path(__file__).resolve().parents[2] / "examples" / "media"


class Samples:
    """The captioned sample pictures and their vectors under one encoder."""

    def __init__(self, encoder: Encoder) -> None:
        with (MEDIA / "captions.csv").open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
        self.captions = [row["caption"] for row in rows]
        self.categories = np.array([row["category"] for row in rows])
        self.files = [MEDIA / row["file"] for row in rows]
        self.pictures = np.stack([encoder.prepare_picture(path.read_bytes()) for path in self.files])
        self.image = encoder.encode_pictures(self.pictures)
        self.text = encoder.encode_texts(self.captions)

    def precision_at_5(self, encoder: Encoder, field: np.ndarray) -> float:
        """Share of the five nearest pictures of each demo query that are of its category."""
        queries = encoder.encode_texts([query for query, _ in DEMO_QUERIES])
        nearest = np.argsort(-(queries @ field.T), axis=1)[:, :5]
        return float((self.categories[nearest] == np.array([category for _, category in DEMO_QUERIES])[:, None]).mean())


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Encoder:
    return open_encoder("lite", Settings(cache_dir=tmp_path_factory.mktemp("cache")))


@pytest.fixture(scope="module")
def samples(encoder: Encoder) -> Iterator[Samples]:
    yield Samples(encoder)


def test_vectors_are_float32_of_unit_length_and_of_the_spaces_dimension(encoder: Encoder, samples: Samples) -> None:
    for vectors in (samples.image, samples.text):
        assert vectors.dtype == np.float32
        assert vectors.shape == (325, encoder.space.dimension)
        assert np.allclose(np.linalg.norm(vectors, axis=1), 1.0, atol=1e-5)
    assert samples.pictures.shape[1:] == encoder.picture_recipe.shape


def test_nothing_to_encode_gives_no_vectors(encoder: Encoder) -> None:
    assert encoder.encode_texts([]).shape == (0, 384)
    assert encoder.encode_pictures(np.empty((0, 224, 224, 3), np.uint8)).shape == (0, 384)


def test_the_same_input_gives_the_same_vector(encoder: Encoder, samples: Samples) -> None:
    assert np.array_equal(encoder.encode_pictures(samples.pictures[:3]), encoder.encode_pictures(samples.pictures[:3]))
    assert np.array_equal(encoder.encode_texts(["a red boat"]), encoder.encode_texts(["a red boat"]))


def test_a_vector_hardly_depends_on_what_shares_its_batch(encoder: Encoder, samples: Samples) -> None:
    alone = np.concatenate([encoder.encode_pictures(samples.pictures[row : row + 1]) for row in range(8)])
    together = encoder.encode_pictures(samples.pictures[:8])
    assert (alone * together).sum(1).min() > 0.999
    texts = ["a dog", "house " * 300, "x", "a slice of pizza with olives", "", "Eiffel tower", "two red cars", "harp"]
    alone = np.concatenate([encoder.encode_texts([text]) for text in texts])
    assert (alone * encoder.encode_texts(texts)).sum(1).min() > 0.999


def test_threads_that_encode_at_the_same_time_get_what_they_would_get_alone(encoder: Encoder, samples: Samples) -> None:
    with ThreadPoolExecutor(4) as pool:
        texts = list(pool.map(lambda row: encoder.encode_texts(samples.captions[row : row + 5]), range(0, 40, 5)))
        pictures = list(pool.map(lambda row: encoder.encode_pictures(samples.pictures[row : row + 2]), range(0, 8, 2)))
    assert (np.concatenate(texts) * samples.text[:40]).sum(1).min() > 0.999
    assert (np.concatenate(pictures) * samples.image[:8]).sum(1).min() > 0.999


def test_a_caption_finds_its_own_picture_by_the_image_field(samples: Samples) -> None:
    scores = samples.text @ samples.image.T
    ranks = (scores > np.diag(scores)[:, None]).sum(1)
    assert (ranks < 10).mean() >= 0.28


def test_everyday_queries_find_pictures_of_the_right_kind(encoder: Encoder, samples: Samples) -> None:
    assert samples.precision_at_5(encoder, fuse(samples.image, samples.text)) >= 0.8
    assert samples.precision_at_5(encoder, samples.image) >= 0.5


def test_two_encoders_name_the_same_space_and_only_the_weights_and_preprocessing_make_it(encoder: Encoder) -> None:
    again = open_encoder("lite", Settings(max_picture_bytes=1000, embed_threads=1, embed_runtime="torch"))
    assert again.space == encoder.space
    assert again.space.space_id == encoder.space.space_id
    assert encoder.space.space_id.startswith("lite@")
    with pytest.raises(RecordError) as caught:
        again.prepare_picture(b"\xff\xd8\xff" + bytes(2000))
    assert caught.value.reason == "too_large"


def test_pictures_of_another_shape_are_refused(encoder: Encoder) -> None:
    with pytest.raises(ValueError, match="shape"):
        encoder.encode_pictures(np.zeros((1, 100, 100, 3), np.uint8))
