"""Names of remote encoders: where a server is, which model it serves, and what was found out about it.

    remote:https://HOST[:PORT]/v1#MODEL[&dimension=N][&served=NAME][&probe=HEX][&images=FORM][&pixels=N][&fit=FIT][&encoding=base64]

Takes: a name. Gives: its parts, and the space that they make. Owns: the grammar, and what belongs to the space.
Never: asks the server, or lets a key or password into a name: names are stored with collections and shown.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, fields
from typing import Literal, get_args
from urllib.parse import quote, unquote, urlsplit

from contracts.addresses import is_loopback
from contracts.collection import MAX_DIMENSION
from contracts.encoder import EmbeddingSpace, Fit, PictureRecipe
from contracts.errors import SettingsError
from contracts.settings import Settings

ImageForm = Literal["object", "data-uri", "infinity", "messages"]
FORM = "remote:https://HOST[:PORT]/v1#MODEL"
JPEG_QUALITY = 95
MAX_PIXELS = 2048
_MAX_NAME = 1000
_HINT = f"write {FORM}, with &OPTION=VALUE behind the model; docs/encoders.md lists the options"
_PROBE = re.compile(r"[0-9a-f]{16}\Z")


@dataclass(frozen=True, slots=True)
class RemoteName:
    """A remote encoder's name, read.

    Parameters
    ----------
    url : str
        Of the folder that holds ``/embeddings``, without a slash at the end.
    model : str
        What the server calls the model.
    dimension : int
        Length of its vectors; 0 where it has to be asked.
    served : str
        Model that the server's answers named when the collection was created; empty: not compared.
    probe : str
        16 hex digits, `embedding.remote_probe.fingerprint` of the probe text then; empty: not compared.
    images : {"object", "data-uri", "infinity", "messages"}
        How pictures stand in a request; servers differ.
    pixels : int
        Side of the square that pictures are brought to before they are sent.
    fit : {"letterbox", "crop", "squash"}
        How they are brought to it (`PictureRecipe`).
    encoding : {"float", "base64"}
        How the server is asked to write vectors; both are read either way.
    """

    url: str
    model: str
    dimension: int = 0
    served: str = ""
    probe: str = ""
    images: ImageForm = "object"
    pixels: int = 512
    fit: Fit = "letterbox"
    encoding: Literal["float", "base64"] = "float"

    @property
    def origin(self) -> str:
        """``scheme://host[:port]``: what a key is given to."""
        parts = urlsplit(self.url)
        return f"{parts.scheme}://{parts.netloc}"

    @property
    def recipe(self) -> PictureRecipe:
        """How pictures are prepared before they are sent."""
        return PictureRecipe(self.pixels, self.pixels, self.fit)

    @property
    def space(self) -> EmbeddingSpace:
        """The space of its vectors. The URL is no part of it: a server may move. Weights cannot be hashed from here, so the hash is empty."""
        return EmbeddingSpace(
            encoder=f"remote:{self.model}",
            weights_sha256="",
            preprocessing=f"served as {self.served or self.model}; picture: {self.recipe.description}, jpeg {JPEG_QUALITY}; the rest is the server's",
            dimension=self.dimension,
            metric="cosine",
        )

    def __str__(self) -> str:
        """The name again; options that have their default value are left out."""
        written = [f"&{o.name}={quote(str(getattr(self, o.name)), safe='/:@+,;')}" for o in _OPTIONS if getattr(self, o.name) != o.default]
        return f"remote:{self.url}#{quote(self.model, safe='/:@+,;')}{''.join(written)}"


_OPTIONS = [option for option in fields(RemoteName) if option.name not in ("url", "model")]


def parse_remote_name(name: str, settings: Settings) -> RemoteName:
    """Read the name of a remote encoder.

    Raises
    ------
    SettingsError
        No such name; it holds a password; or it would send media to another machine in plain text (``plaintext_refused``).
    """
    address, _, described = name.removeprefix("remote:").partition("#")
    model, *options = described.split("&")
    if len(name) > _MAX_NAME or not name.isprintable() or not model:
        raise _bad(name, "it names no model" if not model else "it is too long, or not printable")
    url = _checked_url(name, address, settings)
    read = {}
    for option in options:
        key, separator, value = option.partition("=")
        if not separator or key in read or key not in {known.name for known in _OPTIONS}:
            raise _bad(name, f"option {option[:60]!r} is not known, or given twice")
        read[key] = unquote(value)
    return RemoteName(
        url=url,
        model=unquote(model),
        dimension=_number(name, read, "dimension", 0, MAX_DIMENSION),
        served=read.get("served", ""),
        probe=_matching(name, read, "probe"),
        images=_one_of(name, read, "images", get_args(ImageForm)),  # type: ignore[arg-type]
        pixels=_number(name, read, "pixels", 512, MAX_PIXELS),
        fit=_one_of(name, read, "fit", get_args(Fit)),  # type: ignore[arg-type]
        encoding=_one_of(name, read, "encoding", ("float", "base64")),  # type: ignore[arg-type]
    )


def _checked_url(name: str, address: str, settings: Settings) -> str:
    try:
        parts = urlsplit(address)
        _ = parts.port  # a port that is no number shows only here
    except ValueError:
        raise _bad(name, "its address is not a URL") from None
    if "@" in parts.netloc:
        raise SettingsError("the remote encoder's address holds credentials", hint="set HEADWATER_ENCODER_KEYS instead; names are stored and shown")
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.query:
        raise _bad(name, "its address is no http or https URL, or has a query")
    if parts.scheme == "http" and not settings.allow_plaintext and not is_loopback(parts.hostname):
        raise SettingsError(
            f"the remote encoder would send media to {parts.hostname} unencrypted",
            hint="use https, or set HEADWATER_ALLOW_PLAINTEXT=true on a network you trust",
            code="plaintext_refused",
        )
    return address.rstrip("/")


def _number(name: str, read: dict[str, str], key: str, default: int, most: int) -> int:
    text = read.get(key, str(default))
    if not text.isdecimal() or not text.isascii() or len(text) > 6 or (key in read and not 1 <= int(text) <= most):
        raise _bad(name, f"{key} is not a number from 1 to {most}")
    return int(text)


def _one_of(name: str, read: dict[str, str], key: str, allowed: tuple[str, ...]) -> str:
    value = read.get(key, allowed[0])
    if value not in allowed:
        raise _bad(name, f"{key} is none of {', '.join(allowed)}")
    return value


def _matching(name: str, read: dict[str, str], key: str) -> str:
    value = read.get(key, "")
    if value and not _PROBE.match(value):
        raise _bad(name, f"{key} is not 16 hex digits")
    return value


def _bad(name: str, why: str) -> SettingsError:
    shown = re.sub(r"//[^/#]*@", "//...@", name[:120])
    return SettingsError(f"encoder {shown!r} cannot be read: {why}", hint=_HINT)
