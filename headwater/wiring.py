"""Wiring: from settings to engines, and from an operator's words to a collection's fields.

Takes: settings, names. Gives: open `Engines`, `FieldRecord`s. Owns: the order in which components open and close.
Never: keeps a component in a global, or loads a model.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Literal, cast, get_args

from backends.open_log import open_log
from backends.open_store import open_store
from contracts.collection import MAX_DIMENSION, FieldRecord, own_vector_space
from contracts.encoder import Metric
from contracts.engines import Engines
from contracts.errors import SettingsError
from contracts.metrics import Metrics
from contracts.object_keys import validate_name
from contracts.settings import Settings, load_settings
from contracts.store import ObjectStore

EncodedSource = Literal["image", "text", "fused"]
ENCODED_SOURCES: tuple[EncodedSource, ...] = get_args(EncodedSource)
_VECTOR_HINT = "write NAME:DIMENSION[:cosine|dot|euclid[:float16|float32]]"


@contextmanager
def open_engines(settings: Settings) -> Iterator[Engines]:
    """Open log and store; both are closed when the context ends.

    Raises
    ------
    SettingsError
        A URL or a credential is wrong.
    UnavailableError
        Broker or store does not answer.
    """
    with ExitStack() as stack:
        log = open_log(settings)
        stack.callback(log.close)
        metrics = Metrics()
        store = open_store(settings, metrics)
        stack.callback(store.close)
        yield Engines(settings, log, store, metrics)


@contextmanager
def open_store_alone(settings: Settings) -> Iterator[ObjectStore]:
    """Open the store without the log, for what needs stored bytes alone; closed when the context ends. Raises as `open_engines`."""
    store = open_store(settings, Metrics())
    try:
        yield store
    finally:
        store.close()


def encoder_fields(encoder: str, sources: Sequence[str], settings: Settings | None = None) -> list[FieldRecord]:
    """Fields of one encoder, named by what is embedded.

    Parameters
    ----------
    encoder : str
        Name of an encoder, such as ``lite``.
    sources : Sequence of str
        Out of ``image``, ``text``, ``fused``.
    settings : Settings, optional
        Where the encoder's files are; read from environment and `headwater.yaml` where they are not given.

    Raises
    ------
    HeadwaterError
        The encoder or a source is not known, or the encoder cannot be described here: see `embedding.open_encoder.open_encoder`.
    """
    from embedding.open_encoder import describe_space, full_encoder_name

    if not sources:
        raise SettingsError("no fields were named", hint=f"name at least one of {', '.join(ENCODED_SOURCES)}")
    known = settings or load_settings()
    encoder = full_encoder_name(encoder, known, with_pictures=bool({"image", "fused"} & set(sources)))
    space = describe_space(encoder, known)
    fields = []
    for source in dict.fromkeys(sources):
        if source not in ENCODED_SOURCES:
            raise SettingsError(f"field {source[:60]!r} is not known", hint=f"choose from {', '.join(ENCODED_SOURCES)}")
        fields.append(
            FieldRecord(name=source, source=source, encoder=encoder, space_id=space.space_id, dimension=space.dimension, metric=space.metric)
        )
    return fields


def vector_field(text: str) -> FieldRecord:
    """Field of own vectors, from ``NAME:DIMENSION[:METRIC[:DTYPE]]``; SettingsError where it is not that."""
    name, *rest = text.split(":")
    dimension, metric, dtype = [*rest, *["", "", ""][len(rest) :]][:3]
    validate_name(name, "field")
    if not 1 <= len(rest) <= 3 or not dimension.isdecimal() or not 1 <= int(dimension) <= MAX_DIMENSION:
        raise SettingsError(f"vector field {text[:80]!r} is not valid", hint=f"{_VECTOR_HINT}, dimension 1 to {MAX_DIMENSION}")
    metric, dtype = metric or "cosine", dtype or "float16"
    if metric not in get_args(Metric) or dtype not in ("float16", "float32"):
        raise SettingsError(f"vector field {text[:80]!r} has another metric or type than we know", hint=_VECTOR_HINT)
    return FieldRecord(
        name=name,
        source="vector",
        encoder=None,
        space_id=own_vector_space(name, int(dimension), metric),
        dimension=int(dimension),
        metric=cast(Metric, metric),
        dtype=cast(Literal["float16", "float32"], dtype),
    )
