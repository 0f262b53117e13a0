"""From an encoder's name to the encoder; the one door through which torch comes in.

Takes: a name out of an index's description, settings. Gives: an `Encoder`. Owns: the list of kinds.
Never: imports a framework before it is asked for one, or replaces a named encoder by another.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from contracts.encoder import EmbeddingSpace, Encoder
from contracts.errors import SettingsError
from contracts.settings import Settings
from embedding.plugins import Plugin, find_plugin, plugin_prefixes

INSTALL_HINT = "pip install 'headwater[indexer]'"


@dataclass(frozen=True, slots=True)
class EncoderKind:
    """One kind of encoder: what its names look like, and the module that knows it.

    The module has ``open_named(name, settings) -> Encoder`` and ``space_named(name, settings) -> EmbeddingSpace``; the latter loads no weights.
    Where `is_completed`, it also has ``full_name(name, settings, with_pictures) -> str``.
    """

    form: str
    module: str
    is_completed: bool = False


KINDS = {
    "lite": EncoderKind("lite", "embedding.lite"),
    "lite+map": EncoderKind("lite+map:FILE", "embedding.lite_map", is_completed=True),
    "open_clip": EncoderKind("open_clip:ARCH/TAG or open_clip:ARCH/FILE", "embedding.open_clip_encoder", is_completed=True),
    "remote": EncoderKind("remote:https://HOST[:PORT]/v1#MODEL", "embedding.remote", is_completed=True),
}
"""By what stands before the first colon of a name."""

SETTINGS_THAT_MATTER = (
    "embed_device",
    "embed_runtime",
    "embed_threads",
    "encoder_batch_items",
    "encoder_requests",
    "encoder_timeout_seconds",
    "max_picture_bytes",
    "max_picture_pixels",
    "model_dir",
)
"""Roles of one process share an encoder where these are equal."""


def open_encoder(name: str, settings: Settings) -> Encoder:
    """Load the encoder of that name; takes seconds and hundreds of megabytes, so once per process.

    Parameters
    ----------
    name : str
        For example ``lite`` (DESIGN section 6); `KINDS` lists the forms.
    settings : Settings
        Threads and limits.

    Returns
    -------
    Encoder
        Thread-safe; its `space` is the same on every machine that has the same weights.

    Raises
    ------
    SettingsError
        The name is unknown, or a package or file that the encoder needs is not there.
    CorruptError
        A weights file is damaged, or not the one that was named.
    UnavailableError
        Weights that have to be fetched cannot be.
    """
    plugin = _plugin_of(name)
    encoder: Encoder = _call(name, "open_named", settings) if plugin is None else plugin.open(name, settings)
    return encoder


_shared: dict[tuple[object, ...], Encoder] = {}
_shared_lock = threading.Lock()


def shared_encoder(name: str, settings: Settings) -> Encoder:
    """The process's one encoder of that name and settings, loaded at the first call: roles in one process share it (thread-safe)."""
    key = (name, *(getattr(settings, setting) for setting in SETTINGS_THAT_MATTER))
    with _shared_lock:
        if key not in _shared:
            _shared[key] = open_encoder(name, settings)
        return _shared[key]


def describe_space(name: str, settings: Settings) -> EmbeddingSpace:
    """The space of the encoder of that name, without loading its weights (a file's bytes are hashed); raises as `open_encoder`."""
    plugin = _plugin_of(name)
    space: EmbeddingSpace = _call(name, "space_named", settings) if plugin is None else plugin.space(name, settings)
    return space


def full_encoder_name(name: str, settings: Settings, with_pictures: bool) -> str:
    """The name as a collection stores it: with what it leaves open, such as a server's dimension or a file's hash, found out now.

    A machine that has only the full name then opens the same encoder, or none. Raises as `open_encoder`.
    """
    kind = KINDS.get(name.partition(":")[0])
    return str(_call(name, "full_name", settings, with_pictures)) if kind is not None and kind.is_completed else name


def _plugin_of(name: str) -> Plugin | None:
    prefix = name.partition(":")[0]
    plugin = find_plugin(prefix) if prefix else None
    if plugin is not None and prefix in KINDS:
        raise plugin.violation("has the name of an encoder of ours")
    return plugin


def _call(name: str, function: str, settings: Settings, *more: object) -> Any:
    kind = KINDS.get(name.partition(":")[0])
    if kind is None or (":" in name) != (":" in kind.form):
        forms = [known.form for known in KINDS.values()] + [f"{prefix}[:...]" for prefix in plugin_prefixes()]
        raise SettingsError(f"encoder {name[:100]!r} is unknown", hint=f"name one of: {'; '.join(forms)}")
    try:
        called: Callable[..., Any] = getattr(import_module(kind.module), function)
        return called(name, settings, *more)
    except ModuleNotFoundError as error:
        raise SettingsError(f"encoder {name[:100]!r} needs the package {error.name}", hint=INSTALL_HINT) from error
