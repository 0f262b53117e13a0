"""The shape of `/v1/embeddings`: requests of texts and pictures, answers of vectors.

Takes: inputs, an answer's bytes. Gives: request bodies, checked vectors. Owns: what of an answer is believed.
Never: opens a connection, or believes a count, order, length or number that it has not looked at.

Shape: https://platform.openai.com/docs/api-reference/embeddings, which has no pictures; servers added them in four ways:
``object`` {"image": data URI} in `input` (Jina, SGLang), ``data-uri`` a bare data URI in `input` (gateways such as LiteLLM), ``infinity`` the
same with "modality": "image" (Infinity), ``messages`` a chat message with an ``image_url``, one per request (vLLM).
"""

from __future__ import annotations

import base64
import binascii
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from contracts import canonical_json
from contracts.collection import MAX_DIMENSION
from embedding.remote_name import JPEG_QUALITY, RemoteName

InputKind = Literal["text", "picture"]
_BYTES_PER_NUMBER = 32
"""A float64 in JSON has at most 25 characters."""
_ENVELOPE_BYTES = 65_536
_MAX_MODEL = 200


class MalformedAnswerError(Exception):
    """The answer is not of the shape of `/v1/embeddings`; the message says in what."""


class NoVectorError(Exception):
    """The answer is well formed, but a vector in it is zero or not finite."""


@dataclass(frozen=True, slots=True)
class Answer:
    """Unit vectors, shape (n, dimension), and the model that the server says made them (empty: it does not say)."""

    vectors: NDArray[np.float32]
    model: str


def data_uri(picture: NDArray[np.uint8]) -> str:
    """One prepared picture, shape (height, width, 3), as the data URI of a JPEG."""
    sink = io.BytesIO()
    Image.fromarray(picture).save(sink, "JPEG", quality=JPEG_QUALITY, subsampling=0)
    return f"data:image/jpeg;base64,{base64.b64encode(sink.getvalue()).decode()}"


def request_body(name: RemoteName, kind: InputKind, inputs: Sequence[str]) -> bytes:
    """Body of one request for texts, or for pictures as data URIs; with ``messages``, for one picture."""
    body: dict[str, Any] = {"model": name.model, "encoding_format": name.encoding}
    if kind == "text" or name.images == "data-uri":
        body["input"] = list(inputs)
    elif name.images == "object":
        body["input"] = [{"image": uri} for uri in inputs]
    elif name.images == "infinity":
        body |= {"input": list(inputs), "modality": "image"}
    else:
        content = [{"type": "image_url", "image_url": {"url": uri}} for uri in inputs]
        body["messages"] = [{"role": "user", "content": content}]
    return json.dumps(body).encode()


def most_answer_bytes(count: int, dimension: int) -> int:
    """Bytes that an answer of that many vectors may have; dimension 0 is any that a field may have."""
    return count * (dimension or MAX_DIMENSION) * _BYTES_PER_NUMBER + _ENVELOPE_BYTES


def read_answer(data: bytes, count: int, dimension: int) -> Answer:
    """Check an answer to `count` inputs; dimension 0 takes what comes.

    Raises
    ------
    MalformedAnswerError
        Not JSON, not the shape, another count or another dimension.
    NoVectorError
        A vector is zero or not finite.
    """
    try:
        answer = canonical_json.load(data)
    except ValueError as error:
        if "NaN" in str(error) or "Infinity" in str(error) or "too large" in str(error):
            raise NoVectorError("a number is not finite") from None
        raise MalformedAnswerError("it is not JSON") from None
    rows = answer.get("data") if isinstance(answer, dict) else None
    if not isinstance(rows, list) or len(rows) != count or not all(isinstance(row, dict) for row in rows):
        found = f"{len(rows)} vectors" if isinstance(rows, list) else "no list `data`"
        raise MalformedAnswerError(f"it has {found} for {count} inputs")
    order = [row.get("index", at) for at, row in enumerate(rows)]
    if not all(type(at) is int for at in order) or sorted(order) != list(range(count)):
        raise MalformedAnswerError("its indexes do not name each input once")
    vectors = [_numbers(row.get("embedding")) for row in rows]
    wanted = dimension or len(vectors[0])
    if any(len(vector) != wanted for vector in vectors):
        raise MalformedAnswerError(f"a vector has {next(len(v) for v in vectors if len(v) != wanted)} numbers, not {wanted}")
    model = answer.get("model")
    return Answer(_unit(np.stack([vectors[order.index(at)] for at in range(count)])), model[:_MAX_MODEL] if isinstance(model, str) else "")


def _numbers(value: Any) -> NDArray[np.float64]:
    try:
        if isinstance(value, str):
            vector = np.frombuffer(base64.b64decode(value, validate=True), "<f4").astype(np.float64)
        else:
            vector = np.asarray(value if isinstance(value, list) else None, np.float64)
    except (binascii.Error, ValueError, TypeError, OverflowError):
        raise MalformedAnswerError("a vector is neither a list of numbers nor base64 of float32") from None
    if vector.ndim != 1 or not 1 <= len(vector) <= MAX_DIMENSION:
        raise MalformedAnswerError("a vector is neither a list of numbers nor base64 of float32")
    return vector


def _unit(vectors: NDArray[np.float64]) -> NDArray[np.float32]:
    with np.errstate(over="ignore", invalid="ignore"):
        norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    if not np.isfinite(norms).all() or not (norms > 0).all():
        raise NoVectorError("a vector is zero or not finite")
    unit: NDArray[np.float32] = (vectors / norms).astype(np.float32)
    return unit
