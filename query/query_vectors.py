"""From what a request asks for to one vector in one field's space.

Takes: numbers, an id, text, a picture. Gives: a query vector, normalised where the metric is cosine. Owns: what a query may be.
Never: compares vectors of two spaces, or replaces an encoder that cannot be opened.
"""

from __future__ import annotations

import base64
import binascii
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from contracts.collection import FieldRecord, IndexRecord
from contracts.encoder import Encoder
from contracts.errors import HeadwaterError, NotFoundError, RecordError, SettingsError
from contracts.item import id_text
from contracts.settings import Settings
from embedding.decode_pool import DecodePool
from embedding.fields import fuse
from embedding.open_encoder import shared_encoder
from embedding.texts import normalise_text
from vectors.flat import LARGEST, normalise

logger = logging.getLogger(__name__)

_LARGEST = float(LARGEST)
_NUMBERS = {int, float}
"""Types of JSON's numbers; a set of types is made several times as fast as each number is asked for its own."""
_FORMS = 'query is a list of numbers, an id, {"text": ...}, {"image": BASE64}, both keys, {"nearest": list or id}, or absent'


@dataclass(frozen=True, slots=True, eq=False)
class ByVector:
    """The caller's own numbers: a list as JSON has it, of floats and ints alone, or, from a caller in this process, an array, shape (d,)."""

    values: Sequence[float] | NDArray[np.floating[Any]]


@dataclass(frozen=True, slots=True)
class ByPoint:
    """Like that point, without it."""

    item_id: str


@dataclass(frozen=True, slots=True)
class ByMedia:
    """Text, the bytes of a picture, or both as one direction."""

    text: str | None
    picture: bytes | None


Wanted = ByVector | ByPoint | ByMedia


def parse_query(raw: Any) -> Wanted | None:
    """Read the `query` of a request; None for an absent one.

    Raises
    ------
    SettingsError
        ``invalid_query``: none of the known forms.
    """
    if isinstance(raw, np.ndarray):
        return ByVector(raw)
    if isinstance(raw, Mapping) and set(raw) == {"nearest"}:
        raw = raw["nearest"]
    if raw is None:
        return None
    if (item_id := id_text(raw)) is not None:
        return ByPoint(item_id)
    if isinstance(raw, np.ndarray) or (isinstance(raw, list) and set(map(type, raw)) <= _NUMBERS):
        return ByVector(raw)
    if isinstance(raw, Mapping) and raw and set(raw) <= {"text", "image"} and all(isinstance(value, str) for value in raw.values()):
        return ByMedia(raw.get("text"), None if "image" not in raw else _decoded(raw["image"]))
    raise SettingsError("the query has a form that is not known", hint=_FORMS, code="invalid_query")


def _decoded(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise SettingsError(
            "query.image is not base64", hint="encode the picture's bytes as base64, without line breaks", code="invalid_query"
        ) from None


def choose_field(index: IndexRecord, using: str | None) -> FieldRecord:
    """The field that a query searches: the named one, else ``fused`` where there is one, else the index's first.

    Raises
    ------
    NotFoundError
        ``field_not_found``.
    """
    if using is None:
        return index.fields[0] if len(index.fields) == 1 else index.field("fused") or index.fields[0]
    found = index.field(using)
    if found is None:
        names = ", ".join(field.name for field in index.fields)
        raise NotFoundError(f"the index has no field {using[:80]!r}", hint=f"name one of: {names}", code="field_not_found")
    return found


def checked_vector(values: Sequence[float] | NDArray[np.floating[Any]], field: FieldRecord) -> NDArray[np.float32]:
    """The caller's numbers as a query vector, shape (d,).

    Raises
    ------
    SettingsError
        ``invalid_vector``: wrong dimension, a number that is not finite as float32, or no direction under cosine.
    """
    count = len(values) if not isinstance(values, np.ndarray) or values.ndim == 1 else 0
    if count != field.dimension:
        raise _bad_vector(f"the query has {count} numbers, field {field.name!r} has dimension {field.dimension}")
    try:
        wide = values.astype(np.float64) if isinstance(values, np.ndarray) else np.fromiter(values, np.float64, count)
    except OverflowError:
        raise _bad_vector("the query has a number beyond float64") from None
    # a norm that is not too large says the same of every number: the usual case, in one pass
    if field.metric == "cosine" and 0 < (norm := math.sqrt(np.vdot(wide, wide))) <= _LARGEST:
        wide /= norm
        return wide.astype(np.float32)
    if not np.abs(wide).max() <= _LARGEST:  # also where one is NaN
        raise _bad_vector("the query has a number that is not finite as float32")
    return in_metric(wide.astype(np.float32), field)


def in_metric(vector: NDArray[np.float32], field: FieldRecord) -> NDArray[np.float32]:
    """Vector, shape (d,), of length 1 where the field's metric is cosine, else as it is; SettingsError where it has no direction."""
    if field.metric != "cosine":
        return vector
    try:
        return normalise(vector)
    except ValueError as error:
        raise _bad_vector(str(error)) from None


def _bad_vector(what: str) -> SettingsError:
    return SettingsError(what, hint="GET /collections/{name} shows each field's dimension and metric", code="invalid_vector")


class QueryEncoders:
    """The process's encoders, shared with its other roles.

    Parameters
    ----------
    settings : Settings
        Limits and threads.
    decoding : DecodePool
        Decodes pictures.
    """

    def __init__(self, settings: Settings, decoding: DecodePool) -> None:
        self._settings, self._decoding = settings, decoding
        self._open: set[str] = set()
        self._failed: set[str] = set()

    def encode(self, wanted: ByMedia, field: FieldRecord) -> NDArray[np.float32]:
        """Vector of text, picture or both (their normalised sum) in a field's space, shape (d,).

        Raises
        ------
        SettingsError
            The field holds producers' own vectors, the encoder cannot be opened here or is another than the index's, or the media is bad.
        """
        if field.encoder is None:
            raise SettingsError(f"field {field.name!r} holds the producers' own vectors", hint="query it by a vector or an id", code="vectors_only")
        encoder = self._encoder(field)
        try:
            text = None if wanted.text is None else normalise_text(wanted.text, self._settings.max_text_bytes)
            if text == "" and wanted.picture is None:
                raise SettingsError("the query's text is empty", hint="say what to look for", code="invalid_query")
            by_text = encoder.encode_texts([text]) if text else None
            by_picture = None
            if wanted.picture is not None:
                by_picture = encoder.encode_pictures(self._decoding.prepare(wanted.picture, encoder.picture_recipe)[None])
        except RecordError as error:
            raise SettingsError(f"the query's media cannot be used: {error.message}", hint="send other media", code=error.reason) from None
        return in_metric(fuse(by_picture, by_text)[0], field)

    def warm(self, names: Sequence[str]) -> None:
        """Open encoders ahead of the first query; one that cannot be opened is tried again only by a query."""
        for name in names:
            if name not in self._open and name not in self._failed:
                try:
                    self._named(name)
                except HeadwaterError as error:
                    logger.warning("an encoder cannot be opened; text and picture queries will be refused: %s", error)
                    self._failed.add(name)

    def _encoder(self, field: FieldRecord) -> Encoder:
        assert field.encoder is not None, "encode() looked"
        encoder = self._named(field.encoder)
        if encoder.space.space_id != field.space_id:
            raise SettingsError(
                f"encoder {field.encoder!r} on this node makes vectors of {encoder.space.space_id}, field {field.name!r} holds {field.space_id}",
                hint="install the encoder version that the index was made with, or query by vector or id",
                code="space_mismatch",
            )
        return encoder

    def _named(self, name: str) -> Encoder:
        encoder = shared_encoder(name, self._settings)
        self._open.add(name)
        return encoder
