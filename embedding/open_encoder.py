"""From an encoder's name to the encoder; the one door through which torch comes in.

Takes: a name out of an index's description, settings. Gives: an `Encoder`. Owns: the list of names.
Never: imports a framework before it is asked for one, replaces a named encoder by another, or downloads weights.
"""

from __future__ import annotations

import threading
from types import ModuleType

from contracts.encoder import EmbeddingSpace, Encoder
from contracts.errors import SettingsError
from contracts.settings import Settings

INSTALL_HINT = "pip install 'headwater[indexer]'"


def open_encoder(name: str, settings: Settings) -> Encoder:
    """Load the encoder of that name; takes seconds and hundreds of megabytes, so once per process.

    Parameters
    ----------
    name : str
        ``lite`` (DESIGN section 6).
    settings : Settings
        Threads and limits.

    Returns
    -------
    Encoder
        Thread-safe; its `space` is the same on every machine that has the same weights.

    Raises
    ------
    SettingsError
        The name is unknown, or a package that the encoder needs is not installed.
    CorruptError
        A weights file is not the one that the code names.
    """
    encoder: Encoder = _load(name).LiteEncoder(settings)
    return encoder


_shared: dict[tuple[str, int, int, int], Encoder] = {}
_shared_lock = threading.Lock()


def shared_encoder(name: str, settings: Settings) -> Encoder:
    """The process's one encoder of that name and settings, loaded at the first call: roles in one process share it (thread-safe)."""
    key = (name, settings.embed_torch_threads, settings.max_picture_bytes, settings.max_picture_pixels)
    with _shared_lock:
        if key not in _shared:
            _shared[key] = open_encoder(name, settings)
        return _shared[key]


def describe_space(name: str) -> EmbeddingSpace:
    """The space of the encoder of that name, without loading its weights; SettingsError as in `open_encoder`."""
    space: EmbeddingSpace = _load(name).lite_space()
    return space


def _load(name: str) -> ModuleType:
    if name != "lite":
        raise SettingsError(f"encoder {name[:100]!r} is unknown", hint="name one of: lite")
    try:
        from embedding import lite
    except ModuleNotFoundError as error:
        raise SettingsError(f"encoder {name!r} needs the package {error.name}", hint=INSTALL_HINT) from error
    return lite
