"""Faults inside a process, for ``--with`` of `tests.faults.role`: limits, clocks, patience, an encoder that runs out of memory.

Takes: the JSON value behind ``--with MODULE:FUNCTION=``. Gives: nothing; the process is changed. Owns: what is replaced.
Never: runs in production code.
"""

from __future__ import annotations

import datetime as dates
import importlib
import resource
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

BREAKS_DEVICE = "breaks"
"""A text with this word ends the device's work with an error, in whatever company it comes."""


def set_constant(asked: dict[str, Any]) -> None:
    """Give ``module.name`` another value: patience that is counted in half minutes is counted in seconds."""
    module = importlib.import_module(asked["module"])
    assert hasattr(module, asked["name"]), asked
    setattr(module, asked["name"], asked["value"])


def limit(asked: dict[str, int]) -> None:
    """Set limits of this process by their names in `resource`, such as ``RLIMIT_FSIZE``."""
    for name, value in asked.items():
        which = getattr(resource, name)
        resource.setrlimit(which, (value, resource.getrlimit(which)[1]))


def follow_clock(asked: dict[str, Any]) -> None:
    """The wall clock is off by as many seconds as a file says, which may change at any time.

    `time.time` is what our own clock reads; with ``dates`` `datetime` is off too, by which requests to the store are signed.
    """
    path, true = Path(asked["file"]), time.time

    def off() -> float:
        try:
            return float(path.read_text())
        except (FileNotFoundError, ValueError):  # not there yet, or just being written
            return 0.0

    time.time = lambda: true() + off()
    if not asked.get("dates"):
        return

    class Off(dates.datetime):
        @classmethod
        def now(cls, tz: dates.tzinfo | None = None) -> Any:
            return cls.fromtimestamp(true() + off(), tz)

        @classmethod
        def utcnow(cls) -> Any:
            return cls.fromtimestamp(true() + off(), dates.UTC).replace(tzinfo=None)

    dates.datetime = Off  # type: ignore[misc]
    for name in ("minio.time", "minio.api", "minio.signer"):
        module = importlib.import_module(name)
        if hasattr(module, "datetime"):
            module.datetime = Off if isinstance(module.datetime, type) else dates  # type: ignore[attr-defined]


def small_encoder(asked: dict[str, int]) -> None:
    """Every encoder is the small one of the tests, on a device that has memory for ``most_items`` texts and fails at `BREAKS_DEVICE`."""
    from tests.encoders import ColourEncoder

    class Small(ColourEncoder):
        def encode_texts(self, texts: Sequence[str]) -> NDArray[np.float32]:
            if any(BREAKS_DEVICE in text for text in texts):
                raise RuntimeError("CUDA error: an illegal memory access was encountered")
            if len(texts) > asked.get("most_items", 1 << 20):
                raise MemoryError("CUDA out of memory")  # as `embedding.torch_runner` says it
            return super().encode_texts(texts)

    doors = [importlib.import_module(name) for name in ("embedding.open_encoder", "indexer.embed_role", "query.query_vectors")]
    for door in doors:
        for name in ("open_encoder", "shared_encoder"):
            if hasattr(door, name):
                setattr(door, name, lambda *arguments: Small())
