"""Text and picture queries through the lite encoder, over HTTP."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator

import numpy as np
import pytest
from PIL import Image

from contracts.collection import FieldRecord
from embedding.open_encoder import shared_encoder
from tests.query.served import Served, serve
from tests.query.writer import engines_for_test, own_field, writer

pytestmark = pytest.mark.model
CAPTIONS = ("a brown dog on the grass", "a bowl of fresh fruit", "an airplane in the sky")


def picture(colour: str) -> bytes:
    sink = io.BytesIO()
    Image.new("RGB", (256, 256), colour).save(sink, "PNG")
    return sink.getvalue()


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    engines = engines_for_test()
    encoder = shared_encoder("lite", engines.settings)
    space, dimension = encoder.space.space_id, encoder.space.dimension
    fields = [
        FieldRecord(name="image", source="image", encoder="lite", space_id=space, dimension=dimension),
        FieldRecord(name="text", source="text", encoder="lite", space_id=space, dimension=dimension),
        own_field(),
    ]
    made = writer(engines, fields=fields)
    texts = encoder.encode_texts(list(CAPTIONS))
    pictures = encoder.encode_pictures(np.stack([encoder.prepare_picture(picture(colour)) for colour in ("red", "green", "blue")]))
    for number, caption in enumerate(CAPTIONS):
        vectors = {"text": texts[number].astype(np.float16), "image": pictures[number].astype(np.float16)}
        made.put(caption.split()[-1], vectors=vectors, text=caption)
    made.commit(upto=2)
    for made_served in serve(made):
        made_served.settle()
        yield made_served


def test_words_find_the_caption_that_means_them(served: Served) -> None:
    for words, expected in (("puppy", "grass"), ("apples and bananas", "fruit"), ("a jet plane", "sky")):
        assert served.ids({"query": {"text": words}, "using": "text", "limit": 1}) == [expected]


def test_a_picture_finds_itself_and_text_beside_it_pulls_the_answer(served: Served) -> None:
    image = base64.b64encode(picture("green")).decode()
    points = served.post("query", {"query": {"image": image}, "using": "image", "limit": 1})["result"]["points"]
    assert points[0]["id"] == "fruit" and points[0]["score"] == pytest.approx(1.0, abs=1e-2)
    both = served.post("query", {"query": {"image": image, "text": "puppy"}, "using": "text", "limit": 3})["result"]["points"]
    assert both[0]["id"] == "grass"


def test_media_that_cannot_be_used_is_a_400_with_its_reason(served: Served) -> None:
    broken = base64.b64encode(b"\xff\xd8\xffbroken").decode()
    assert served.post("query", {"query": {"image": broken}}, 400)["status"]["error"]["code"] == "decode_failed"
    assert served.post("query", {"query": {"text": " \n"}}, 400)["status"]["error"]["code"] == "invalid_query"
    assert served.post("query", {"query": {"text": "dog"}, "using": "own"}, 400)["status"]["error"]["code"] == "vectors_only"
