"""Opens the object store that the settings name.

Takes: `Settings`. Gives: an `ObjectStore`, ready to use. Owns: the schemes of ``HEADWATER_STORE_URL``.
Never: prints a URL with credentials in it, or speaks to another machine in plain text unless told to.

Schemes: ``file:///relative/folder`` and ``file:////absolute/folder`` (SQLAlchemy's rule, as for ``sqlite://``: what follows the
third slash is the path), ``s3://host:port/bucket``, ``s3s://`` for the same with TLS, ``memory://name``.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import SplitResult, unquote, urlsplit

from backends.folder_store import FolderStore
from backends.memory_store import open_memory_store
from backends.store_rules import MeteredStore
from contracts.addresses import is_loopback
from contracts.errors import SettingsError
from contracts.metrics import Metrics
from contracts.settings import Settings
from contracts.store import ObjectStore

if TYPE_CHECKING:
    from backends.s3_store import S3Store

_BUCKET = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]\Z")
_SYSTEM_FOLDERS = frozenset("bin boot data dev etc home lib media mnt opt proc root run sbin srv sys tmp usr var".split())
_URL_HINT = "set HEADWATER_STORE_URL to file:///PATH, s3://HOST:PORT/BUCKET, s3s://HOST/BUCKET or memory://NAME"


def open_store(settings: Settings, metrics: Metrics | None = None) -> ObjectStore:
    """Open the store of ``settings.store_url``; the folder or bucket is made where it is missing and we may.

    Parameters
    ----------
    settings : Settings
        ``store_url``, ``store_access_key``, ``store_secret_key``, ``store_region`` and ``allow_plaintext`` are read.
    metrics : Metrics, optional
        Where requests are counted.

    Raises
    ------
    SettingsError
        The URL cannot be read, credentials are wrong, or we may not use folder or bucket.
    UnavailableError
        The store does not answer (within about 10 seconds).
    """
    url = _split_url(settings.store_url)
    store: ObjectStore
    if url.scheme == "file":
        store = FolderStore(folder_of_url(url))
    elif url.scheme in ("s3", "s3s"):
        store = _open_s3(url, settings, metrics)
    elif url.scheme == "memory":
        store = open_memory_store(url.netloc)
    else:
        raise SettingsError(f"store_url: scheme {url.scheme!r} is not known", hint=_URL_HINT)
    return store if metrics is None else MeteredStore(store, metrics)


def _split_url(text: str) -> SplitResult:
    try:
        url = urlsplit(text)
        _ = url.port  # a port that is no number shows only here
    except ValueError:
        raise SettingsError("store_url is not a URL", hint=_URL_HINT) from None
    if "@" in url.netloc:
        raise SettingsError("store_url holds credentials", hint="set HEADWATER_STORE_ACCESS_KEY and HEADWATER_STORE_SECRET_KEY instead")
    if url.query or url.fragment:
        raise SettingsError("store_url has a query or a fragment", hint=_URL_HINT)
    return url


def folder_of_url(url: SplitResult) -> Path:
    """Folder of a ``file:`` URL: relative after three slashes, absolute after four.

    Raises
    ------
    SettingsError
        There is a host or no path, or three slashes stand before a system folder: four were meant.
    """
    if url.netloc:
        raise SettingsError(f"store_url names the host {url.netloc!r}", hint=f"a folder takes three slashes, file:///{url.netloc}{url.path}")
    path = unquote(url.path.removeprefix("/"))
    if not path.strip("/"):
        raise SettingsError("store_url names no folder", hint=_URL_HINT)
    first = path.split("/")[0]
    if first in _SYSTEM_FOLDERS:
        raise SettingsError(
            f"store_url file:///{path} is a path relative to the working folder",
            hint=f"write file:////{path} for /{path}, or file:///./{path} if you mean ./{path}",
        )
    return Path(path)


def _open_s3(url: SplitResult, settings: Settings, metrics: Metrics | None) -> S3Store:
    from backends.s3_store import S3Store  # its client takes as long to import as everything else here: only where it is used

    bucket = url.path.strip("/")
    if not url.hostname or not _BUCKET.match(bucket):
        raise SettingsError(f"store_url names no host, or {bucket!r} is no bucket name", hint="write s3://HOST:PORT/BUCKET")
    secure = url.scheme == "s3s"
    if not secure and not settings.allow_plaintext and not is_loopback(url.hostname):
        raise SettingsError(
            f"store_url would send data to {url.hostname} unencrypted",
            hint="use s3s://, or set HEADWATER_ALLOW_PLAINTEXT=true on a network you trust",
            code="plaintext_refused",
        )
    return S3Store(
        endpoint=url.netloc,
        bucket=bucket,
        access_key=settings.store_access_key,
        secret_key=settings.store_secret_key.get_secret_value(),
        region=settings.store_region,
        secure=secure,
        metrics=metrics,
    )
