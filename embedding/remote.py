"""Remote encoders: a server that speaks `/v1/embeddings` makes the vectors, so that this process needs neither torch nor weights.

Takes: prepared pictures, normalised text. Gives: unit vectors. Owns: who is to blame when a server refuses; batches; the proof that the
model behind the URL is still the one that the collection was created with.
Never: rejects a record for what the server cannot do now, or sends a picture as it came: only pixels that were decoded within limits leave.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from contracts.clock import Clock
from contracts.encoder import EmbeddingSpace, PictureRecipe
from contracts.errors import RecordError, SettingsError, UnavailableError
from contracts.settings import Settings
from embedding.pictures import PictureLimits
from embedding.prepare import check_prepared, prepared_array
from embedding.remote_http import EmbeddingServer, RefusedError
from embedding.remote_name import RemoteName, parse_remote_name
from embedding.remote_probe import PROBE_TEXT, fingerprint, is_other_model, probe_picture
from embedding.remote_wire import Answer, InputKind, MalformedAnswerError, NoVectorError, data_uri, most_answer_bytes, read_answer, request_body


class RemoteEncoder:
    """An encoder behind a URL; implements `contracts.encoder.Encoder`.

    Nothing is asked when it is opened, so that a process starts while the server is away; the first call compares the server's fingerprint.

    Parameters
    ----------
    name : RemoteName
        With its dimension.
    settings : Settings
        Limits, keys and sizes of requests.
    clock : Clock, optional
        Times the pauses between attempts.
    """

    def __init__(self, name: RemoteName, settings: Settings, clock: Clock | None = None) -> None:
        self._name = name
        self._limits = PictureLimits.from_settings(settings)
        self._server = EmbeddingServer(name, settings, clock)
        self._batch_items = settings.encoder_batch_items
        self._requests = ThreadPoolExecutor(settings.encoder_requests, thread_name_prefix="remote-encoder")
        self._is_proved = not name.probe

    @property
    def space(self) -> EmbeddingSpace:
        """The space of every vector this encoder gives."""
        return self._name.space

    @property
    def picture_recipe(self) -> PictureRecipe:
        """A square of the name's side and fit."""
        return self._name.recipe

    def prepare_picture(self, data: bytes) -> NDArray[np.uint8]:
        """Decode one picture within limits.

        Returns
        -------
        NDArray[np.uint8]
            shape ``picture_recipe.shape``, RGB.

        Raises
        ------
        RecordError
            ``decode_failed``, ``too_many_pixels``, ``too_large``, ``unsupported_content_type``.
        """
        return prepared_array(data, self._name.recipe, self._limits)

    def encode_pictures(self, pictures: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Encode n prepared pictures, shape (n, height, width, 3), to unit vectors, shape (n, dimension); raises as `encode_texts`."""
        check_prepared(pictures, self._name.recipe)
        return self._encode("picture", [data_uri(picture) for picture in pictures])

    def encode_texts(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Encode n normalised texts to unit vectors, shape (n, dimension).

        Raises
        ------
        RecordError
            ``encoder_refused`` or ``zero_norm``: the server takes other inputs, but not one of these; a caller finds it by halving.
        UnavailableError
            The server does not answer now.
        SettingsError
            It refuses everything, or answers for another model (``space_mismatch``).
        """
        return self._encode("text", texts)

    def _encode(self, kind: InputKind, inputs: Sequence[str]) -> NDArray[np.float32]:
        if not inputs:
            return np.empty((0, self._name.dimension), np.float32)
        try:
            self._prove()
            size = 1 if kind == "picture" and self._name.images == "messages" else self._batch_items
            parts = [inputs[at : at + size] for at in range(0, len(inputs), size)]
            if len(parts) == 1:
                return self._encode_part(kind, parts[0])
            return np.concatenate(list(self._requests.map(lambda part: self._encode_part(kind, part), parts)))
        except UnavailableError:
            self._is_proved = not self._name.probe  # who comes back may be another
            raise

    def _prove(self) -> None:
        """Compare the server's fingerprint once, and again after each outage."""
        if self._is_proved:
            return
        found = fingerprint(self._known("text", PROBE_TEXT).vectors[0])
        if is_other_model(self._name.probe, found):
            raise self._other_model(f"its vectors of a known text are others than when the collection was created (probe {found})")
        self._is_proved = True

    def _encode_part(self, kind: InputKind, inputs: Sequence[str]) -> NDArray[np.float32]:
        try:
            return self._ask(kind, inputs).vectors
        except RefusedError as refusal:
            self._accuse(kind)  # is it the inputs, or does the server refuse all of this kind?
            what = f"refuses this {kind}" if len(inputs) == 1 else f"refuses one of {len(inputs)} inputs, or their number"
            raise RecordError("encoder_refused", f"the remote encoder {what} (HTTP {refusal.status})") from None
        except NoVectorError as error:
            self._accuse(kind)
            raise RecordError("zero_norm", f"the remote encoder gives no direction for this {kind}: {error}") from None

    def _accuse(self, kind: InputKind) -> None:
        """Return where the server takes an input of this kind that is known to be good, so that the record's is the one to blame."""
        self._known(kind, PROBE_TEXT if kind == "text" else data_uri(probe_picture(self._name.recipe)))

    def _known(self, kind: InputKind, known: str) -> Answer:
        """Answer to a known good input; SettingsError where the server does not take it."""
        try:
            return self._ask(kind, [known])
        except RefusedError as refusal:
            raise SettingsError(
                f"the remote encoder {self._server.where} refuses a {kind} that is known to be good (HTTP {refusal.status}): {refusal.reason}",
                hint=_KIND_HINTS[kind],
            ) from None
        except NoVectorError as error:
            raise SettingsError(
                f"the remote encoder {self._server.where} gives no vector of a good {kind}: {error}", hint="check the model"
            ) from None

    def _ask(self, kind: InputKind, inputs: Sequence[str]) -> Answer:
        """One request and its checked answer."""
        dimension = self._name.dimension
        data = self._server.post(request_body(self._name, kind, inputs), most_answer_bytes(len(inputs), dimension))
        try:
            answer = read_answer(data, len(inputs), 0)
        except MalformedAnswerError as error:
            raise UnavailableError(
                f"the remote encoder {self._server.where} answers in another shape than /v1/embeddings: {error}", hint="check what serves this URL"
            ) from None
        if self._name.served and answer.model and answer.model != self._name.served:
            raise self._other_model(f"it answers for model {answer.model[:80]!r}, the collection was created with {self._name.served[:80]!r}")
        if dimension and answer.vectors.shape[1] != dimension:
            raise self._other_model(f"its vectors have {answer.vectors.shape[1]} numbers, the collection's {dimension}")
        return answer

    def _other_model(self, why: str) -> SettingsError:
        return SettingsError(
            f"the remote encoder {self._server.where} serves another model: {why}",
            hint="serve the model that the collection was created with, or create a new collection",
            code="space_mismatch",
        )

    def described(self, with_pictures: bool) -> RemoteName:
        """The name with what the server answers for a known text filled in; a known picture is tried where pictures are wanted."""
        answer = self._known("text", PROBE_TEXT)
        if with_pictures:
            self._accuse("picture")
        return replace(self._name, dimension=answer.vectors.shape[1], served=answer.model, probe=fingerprint(answer.vectors[0]))


_KIND_HINTS: dict[InputKind, str] = {
    "text": "check model and server; docs/encoders.md lists what is sent",
    "picture": "choose &images=object, data-uri, infinity or messages, as docs/encoders.md says, or leave image and fused out of --fields",
}


def open_named(name: str, settings: Settings) -> RemoteEncoder:
    """Open a remote encoder; the server is asked only where the name leaves the dimension open."""
    return RemoteEncoder(_complete(name, settings), settings)


def space_named(name: str, settings: Settings) -> EmbeddingSpace:
    """The space that a name stands for; asks as `open_named` does."""
    return _complete(name, settings).space


def full_name(name: str, settings: Settings, with_pictures: bool) -> str:
    """The name with dimension, served model and fingerprint, as a collection stores it; a name with its dimension is taken at its word."""
    return str(_complete(name, settings, with_pictures))


def _complete(name: str, settings: Settings, with_pictures: bool = False) -> RemoteName:
    read = parse_remote_name(name, settings)
    return read if read.dimension else RemoteEncoder(read, settings).described(with_pictures)
