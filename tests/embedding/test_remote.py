"""Promises of the remote encoder: right vectors, blame where it belongs, and nothing believed that was not looked at."""

from __future__ import annotations

import io
import json
import logging
import socket
import time
from collections.abc import Iterator

import numpy as np
import pytest
from PIL import Image
from pydantic import SecretStr

from contracts.errors import RecordError, SettingsError, UnavailableError
from contracts.settings import Settings
from embedding import remote_http
from embedding.open_encoder import describe_space, full_encoder_name, open_encoder
from embedding.remote_name import parse_remote_name
from embedding.remote_probe import fingerprint, is_other_model
from embedding.remote_wire import MalformedAnswerError, NoVectorError, read_answer
from tests.embedding_server import MODEL, EmbeddingHandler, EmbeddingServerState, embedding_server, fault

SETTINGS = Settings(encoder_timeout_seconds=30.0, encoder_batch_items=4)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[EmbeddingServerState]:
    monkeypatch.setattr(remote_http, "FIRST_PAUSE_SECONDS", 0.02)
    with embedding_server() as state:
        yield state


def name_of(server: EmbeddingServerState, options: str = "") -> str:
    return f"remote:{server.url}#{MODEL}{options}"


def png(colour: tuple[int, int, int]) -> bytes:
    sink = io.BytesIO()
    Image.new("RGB", (40, 40), colour).save(sink, "PNG")
    return sink.getvalue()


@pytest.mark.parametrize("encoding", ["float", "base64"])
@pytest.mark.parametrize("images", ["object", "data-uri", "infinity", "messages"])
def test_pictures_and_texts_become_the_servers_vectors_at_unit_length_in_the_order_of_the_inputs(
    server: EmbeddingServerState, images: str, encoding: str
) -> None:
    encoder = open_encoder(name_of(server, f"&images={images}&encoding={encoding}&pixels=64"), SETTINGS)
    texts = [f"word{number} and word{number * 7}" for number in range(11)]
    assert np.allclose(encoder.encode_texts(texts), server.encoder.encode_texts(texts), atol=1e-6)
    pictures = np.stack([encoder.prepare_picture(png((40 * row, 255 - 40 * row, 30))) for row in range(6)])
    vectors = encoder.encode_pictures(pictures)
    small = np.stack([server.encoder.prepare_picture(png((40 * row, 255 - 40 * row, 30))) for row in range(6)])
    assert vectors.dtype == np.float32 and vectors.shape == (6, encoder.space.dimension) == (6, 64)
    assert (vectors * server.encoder.encode_pictures(small)).sum(1).min() > 0.99
    most = 1 if images == "messages" else 4
    assert all(len(body.get("input", [1])) <= 4 and len(body.get("messages", [1])) <= most for body in server.requests)


def test_nothing_to_encode_asks_nothing(server: EmbeddingServerState) -> None:
    encoder = open_encoder(name_of(server, "&dimension=64"), SETTINGS)
    assert encoder.encode_texts([]).shape == encoder.encode_pictures(np.empty((0, 512, 512, 3), np.uint8)).shape == (0, 64)
    assert not server.requests


def test_the_full_name_holds_all_that_was_asked_so_that_opening_it_asks_nothing(server: EmbeddingServerState) -> None:
    full = full_encoder_name(name_of(server), SETTINGS, with_pictures=True)
    assert f"&dimension=64&served={MODEL}&probe=" in full
    asked = len(server.requests)
    encoder = open_encoder(full, SETTINGS)
    assert encoder.space == describe_space(full, SETTINGS) and len(server.requests) == asked
    assert str(parse_remote_name(full, SETTINGS)) == full == full_encoder_name(full, SETTINGS, with_pictures=True)
    moved = full.replace("127.0.0.1", "localhost")
    assert describe_space(moved, SETTINGS).space_id == encoder.space.space_id  # where it is does not make a space
    others = [full.replace("dimension=64", "dimension=65"), full.replace(f"#{MODEL}", "#other"), full + "&pixels=256"]
    assert len({describe_space(name, SETTINGS).space_id for name in [full, *others]}) == 4


def test_a_server_that_takes_no_pictures_is_told_when_the_collection_is_created(server: EmbeddingServerState) -> None:
    server.forms = {"infinity"}
    with pytest.raises(SettingsError, match="pictures as object are not known here.*images=object, data-uri, infinity or messages"):
        full_encoder_name(name_of(server), SETTINGS, with_pictures=True)
    assert full_encoder_name(name_of(server), SETTINGS, with_pictures=False)
    assert full_encoder_name(name_of(server, "&images=infinity"), SETTINGS, with_pictures=True)


@pytest.mark.parametrize("what", ["text", "picture"])
def test_a_refused_input_is_rejected_only_while_the_server_takes_a_known_good_one(server: EmbeddingServerState, what: str) -> None:
    encoder = open_encoder(name_of(server, "&dimension=64&pixels=64"), SETTINGS)
    red = np.full((1, 64, 64, 3), (255, 0, 0), np.uint8)
    with pytest.raises(RecordError) as caught:
        encoder.encode_texts(["some poison"]) if what == "text" else encoder.encode_pictures(red)
    assert caught.value.reason == "encoder_refused" and "poison" not in caught.value.message
    server.poison = " "  # now no text of two words is taken, the known good one neither
    server.forms = set()
    with pytest.raises(SettingsError, match="known to be good"):
        encoder.encode_texts(["two words"]) if what == "text" else encoder.encode_pictures(red)


def test_what_passes_is_asked_again_and_what_stays_is_unavailable_never_a_rejection(server: EmbeddingServerState) -> None:
    encoder = open_encoder(name_of(server, "&dimension=64"), SETTINGS)
    server.faults = [fault(503), fault(429, headers={"retry-after": "0"}), fault(500)]
    assert encoder.encode_texts(["a dog"]).shape == (1, 64)
    assert len(server.requests) == 4
    server.faults = [fault(502)] * 4
    with pytest.raises(UnavailableError, match="HTTP 502"):
        encoder.encode_texts(["a dog"])
    away = open_encoder("remote:http://127.0.0.1:9/v1#m&dimension=8", SETTINGS)
    with pytest.raises(UnavailableError, match="does not answer"):
        away.encode_texts(["a dog"])


def drop_connection(handler: EmbeddingHandler, request: object) -> bool:
    handler.connection.shutdown(socket.SHUT_RDWR)
    return True


def drip(handler: EmbeddingHandler, request: object) -> bool:
    handler.send_response(200)
    handler.send_header("content-length", "1000000")
    handler.end_headers()
    for _ in range(1000):
        try:
            handler.wfile.write(b" ")
            time.sleep(0.05)
        except OSError:
            break
    return True


def test_a_cut_connection_is_asked_again_and_a_dripping_answer_has_an_end(server: EmbeddingServerState) -> None:
    encoder = open_encoder(name_of(server, "&dimension=64"), SETTINGS)
    server.faults = [drop_connection]
    assert encoder.encode_texts(["a dog"]).shape == (1, 64)
    impatient = open_encoder(name_of(server, "&dimension=64"), Settings(encoder_timeout_seconds=0.5))
    server.faults = [drip]  # for fifty seconds
    began = time.monotonic()
    with pytest.raises(UnavailableError, match=r"longer than 0\.5 s"):
        impatient.encode_texts(["a dog"])
    assert time.monotonic() - began < 20


def vectors_answer(*rows: object, **more: object) -> dict[str, object]:
    return {"data": [{"index": at, "embedding": row} for at, row in enumerate(rows)], "model": MODEL, **more}


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (b"<html>busy</html>", "not JSON"),
        ([1, 2], "no list"),
        (vectors_answer([0.5] * 64, [0.5] * 64), "2 vectors for 1 inputs"),
        ({"data": [{"index": 7, "embedding": [0.5] * 64}]}, "indexes"),
        (vectors_answer(["a"] * 64), "neither a list"),
        (vectors_answer("not base64!"), "neither a list"),
        (vectors_answer([[0.5] * 64]), "neither a list"),
        (b"[" * 50_000, "not JSON"),
    ],
)
def test_an_answer_of_another_shape_is_never_a_vector_and_never_a_rejection(server: EmbeddingServerState, answer: object, told: str) -> None:
    encoder = open_encoder(name_of(server, "&dimension=64"), SETTINGS)
    server.faults = [fault(200, answer)]
    with pytest.raises(UnavailableError, match=told):
        encoder.encode_texts(["a dog"])


def test_an_answer_larger_than_its_vectors_can_be_is_not_read_to_the_end(server: EmbeddingServerState) -> None:
    encoder = open_encoder(name_of(server, "&dimension=64"), SETTINGS)
    server.faults = [fault(200, b" " * 5_000_000)]
    with pytest.raises(UnavailableError, match="more than 67584 bytes"):
        encoder.encode_texts(["a dog"])


@pytest.mark.parametrize("row", [[0.0] * 64, [float("nan")] * 64, [float("inf")] + [1.0] * 63])
def test_a_vector_without_direction_rejects_its_input(server: EmbeddingServerState, row: list[float]) -> None:
    encoder = open_encoder(name_of(server, "&dimension=64"), SETTINGS)
    server.faults = [fault(200, vectors_answer(row))]
    with pytest.raises(RecordError) as caught:
        encoder.encode_texts(["a dog"])
    assert caught.value.reason == "zero_norm"


def test_one_wrong_vector_among_many_fails_the_whole_answer() -> None:
    good = [0.5, 0.5]
    assert read_answer(json.dumps(vectors_answer(good, good)).encode(), 2, 2).vectors.shape == (2, 2)
    with pytest.raises(MalformedAnswerError, match="3 numbers, not 2"):
        read_answer(json.dumps(vectors_answer(good, [1, 2, 3])).encode(), 2, 0)
    with pytest.raises(NoVectorError):
        read_answer(json.dumps(vectors_answer(good, [0, 0])).encode(), 2, 2)


def test_another_model_behind_the_same_name_is_noticed_after_an_outage(server: EmbeddingServerState) -> None:
    full = full_encoder_name(name_of(server), SETTINGS, with_pictures=False)
    encoder = open_encoder(full, SETTINGS)
    before = encoder.encode_texts(["a dog"])
    server.faults = [fault(503)] * 4
    with pytest.raises(UnavailableError):
        encoder.encode_texts(["a dog"])
    noise = np.random.default_rng(1).normal(size=(64, 64)).astype(np.float32)
    server.twist = np.eye(64, dtype=np.float32) + 0.002 * noise  # the same model in another precision
    assert (encoder.encode_texts(["a dog"]) * before).sum() > 0.99
    server.faults = [fault(503)] * 4
    with pytest.raises(UnavailableError):
        encoder.encode_texts(["a dog"])
    server.twist = np.linalg.qr(noise)[0]
    with pytest.raises(SettingsError, match="another model") as caught:
        encoder.encode_texts(["a dog"])
    assert caught.value.error_code == "space_mismatch"


@pytest.mark.parametrize("change", ["model", "dimension"])
def test_an_answer_for_another_model_or_dimension_is_refused_at_once(server: EmbeddingServerState, change: str) -> None:
    encoder = open_encoder(full_encoder_name(name_of(server), SETTINGS, with_pictures=False), SETTINGS)
    encoder.encode_texts(["a dog"])
    if change == "model":
        server.says_model = "acme/colour-65"
    else:
        server.twist = np.eye(64, 32, dtype=np.float32)
    with pytest.raises(SettingsError, match="another model") as caught:
        encoder.encode_texts(["dog house cat tree"])
    assert caught.value.error_code == "space_mismatch"


def test_a_fingerprint_tells_models_apart_and_bears_rounding() -> None:
    generator = np.random.default_rng(0)
    vectors = generator.normal(size=(200, 384)).astype(np.float32)
    noisy = vectors + 0.03 * generator.normal(size=vectors.shape).astype(np.float32)
    assert not any(is_other_model(fingerprint(a), fingerprint(b)) for a, b in zip(vectors, noisy, strict=True))
    assert all(is_other_model(fingerprint(a), fingerprint(b)) for a, b in zip(vectors, vectors[1:], strict=False))


def test_the_key_goes_to_its_origin_only_and_is_shown_nowhere(server: EmbeddingServerState, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    key = "sk-very-secret-1234567890"
    origin = server.url.removesuffix("/v1")
    server.key = key
    with_key = Settings(encoder_keys={origin: SecretStr(key)})
    full = full_encoder_name(name_of(server), with_key, with_pictures=False)
    assert open_encoder(full, with_key).encode_texts(["a dog"]).shape == (1, 64)
    wrong = Settings(encoder_keys={"http://127.0.0.1:1": SecretStr(key)})
    with pytest.raises(SettingsError, match="refuses no key") as caught:
        open_encoder(full, wrong).encode_texts(["a dog"])
    server.faults = [fault(404, {"error": {"message": f"no model for {key}"}})]
    with pytest.raises(SettingsError, match="no model for") as leaking:
        open_encoder(full, with_key).encode_texts(["a dog"])
    told = " ".join([str(caught.value), str(leaking.value), full, repr(with_key), caplog.text, open_encoder(full, with_key).space.space_id])
    assert key not in told
    with pytest.raises(SettingsError, match="no origin"):
        open_encoder(full, Settings(encoder_keys={f"{origin}/v1": SecretStr(key)}))


def test_a_redirect_is_not_followed(server: EmbeddingServerState) -> None:
    encoder = open_encoder(name_of(server, "&dimension=64"), SETTINGS)
    server.faults = [fault(307, b"", {"location": f"{server.url}/embeddings"})]
    with pytest.raises(SettingsError, match="redirects"):
        encoder.encode_texts(["a dog"])
    assert len(server.requests) == 1


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("remote:http://example.org/v1#m", "unencrypted"),
        ("remote:https://user:secret@example.org/v1#m", "credentials"),
        ("remote:https://example.org/v1", "no model"),
        ("remote:ftp://example.org/v1#m", "http"),
        ("remote:https://example.org/v1?key=secret#m", "query"),
        ("remote:https://example.org:port/v1#m", "URL"),
        ("remote:https://example.org/v1#m&dimension=0", "dimension"),
        ("remote:https://example.org/v1#m&colour=red", "colour"),
        ("remote:https://example.org/v1#m&pixels=9&pixels=9", "twice"),
        ("remote:https://example.org/v1#m&images=smoke", "images"),
        ("remote:https://example.org/v1#m&probe=xyz", "probe"),
        ("remote", "unknown"),
    ],
)
def test_a_name_that_cannot_be_is_refused_in_one_line_without_its_secret(name: str, told: str) -> None:
    with pytest.raises(SettingsError, match=told) as caught:
        open_encoder(name, Settings())
    assert "secret@" not in str(caught.value) and "\n" not in str(caught.value)
