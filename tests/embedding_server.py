"""A real HTTP server that speaks `/v1/embeddings` over the colour encoder, in all four ways of sending pictures, with faults on demand."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np

from tests.encoders import ColourEncoder

MODEL = "acme/colour-64"
Fault = Callable[["EmbeddingHandler", dict[str, Any]], bool]
"""Answers the request by itself and gives True, or leaves it to the server."""


class RefusedInputError(Exception):
    """An input that the server does not take."""


class EmbeddingServerState:
    """What a test turns: faults, a key, the model; and what it looks at: the requests that came."""

    def __init__(self) -> None:
        self.encoder = ColourEncoder()
        self.requests: list[dict[str, Any]] = []
        self.faults: list[Fault] = []
        self.key: str | None = None
        self.says_model = MODEL
        self.most_inputs = 1000
        self.forms = {"object", "data-uri", "infinity", "messages"}
        self.poison = "poison"
        self.twist = np.eye(64, dtype=np.float32)
        self.url = ""

    def vectors(self, body: dict[str, Any]) -> np.ndarray:
        inputs = [self._input(value, body) for value in self._inputs(body)]
        if len(inputs) > self.most_inputs:
            raise RefusedInputError("too many inputs")
        return np.stack([self._vector(value) for value in inputs]) @ self.twist

    def _inputs(self, body: dict[str, Any]) -> list[Any]:
        if "messages" in body:
            self._need("messages")
            return [{"uri": part["image_url"]["url"]} for part in body["messages"][0]["content"]]
        return body["input"]

    def _input(self, value: Any, body: dict[str, Any]) -> Any:
        if isinstance(value, dict) and "image" in value:
            self._need("object")
            return {"uri": value["image"]}
        if body.get("modality") == "image":
            self._need("infinity")
            return {"uri": value}
        if isinstance(value, str) and value.startswith("data:image/") and "data-uri" in self.forms:
            return {"uri": value}
        return value

    def _need(self, form: str) -> None:
        if form not in self.forms:
            raise RefusedInputError(f"pictures as {form} are not known here")

    def _vector(self, value: Any) -> np.ndarray:
        if isinstance(value, str):
            if self.poison in value:
                raise RefusedInputError("the text cannot be read")
            return self.encoder.encode_texts([value])[0]
        pixels = self.encoder.prepare_picture(base64.b64decode(value["uri"].partition("base64,")[2], validate=True))
        if (pixels[..., 0] > 250).all() and (pixels[..., 1:] < 5).all():
            raise RefusedInputError("pure red is not taken")
        return self.encoder.encode_pictures(pixels[None])[0]


class EmbeddingHandler(BaseHTTPRequestHandler):
    """One connection."""

    state: EmbeddingServerState
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        self.state.requests.append(body)
        if self.state.faults and self.state.faults.pop(0)(self, body):
            return
        if self.state.key is not None and self.headers.get("authorization") != f"Bearer {self.state.key}":
            self.answer(401, {"error": {"message": f"wrong key {self.headers.get('authorization')}"}})
        elif self.path != "/v1/embeddings":
            self.answer(404, {"detail": "Not Found"})
        else:
            self._embed(body)

    def _embed(self, body: dict[str, Any]) -> None:
        try:
            vectors = self.state.vectors(body)
        except RefusedInputError as error:
            self.answer(422, {"error": {"message": str(error)}})
            return
        form = body.get("encoding_format", "float")
        rows = [base64.b64encode(row.astype("<f4").tobytes()).decode() if form == "base64" else row.tolist() for row in vectors * 3.0]
        data = [{"object": "embedding", "index": at, "embedding": row} for at, row in enumerate(rows)]
        self.answer(200, {"object": "list", "data": data[::-1], "model": self.state.says_model, "usage": {"total_tokens": 1}})

    def answer(self, status: int, body: Any, headers: dict[str, str] | None = None) -> None:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for name, value in ({"content-length": str(len(data)), "content-type": "application/json"} | (headers or {})).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *args: Any) -> None:
        """Keep the test's output clean."""


def fault(status: int, body: Any = b"{}", headers: dict[str, str] | None = None) -> Fault:
    def give(handler: EmbeddingHandler, request: dict[str, Any]) -> bool:
        handler.answer(status, body, headers)
        return True

    return give


@contextmanager
def embedding_server() -> Iterator[EmbeddingServerState]:
    state = EmbeddingServerState()
    handler = type("Handler", (EmbeddingHandler,), {"state": state})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    thread = threading.Thread(target=lambda: server.serve_forever(poll_interval=0.02))
    thread.start()
    state.url = f"http://127.0.0.1:{server.server_port}/v1"
    try:
        yield state
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
