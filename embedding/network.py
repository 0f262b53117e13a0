"""A network apart from what runs it: arrays in, one array out, always the same numbers but for rounding.

Takes: what an encoder's author says about a network. Gives: `Network`, `Runner`. Owns: their shape.
Never: imports a framework: a network's module is made by a function that does.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import torch

CONVERSION = 1
"""Raised when the code of a module changes what a converted copy would be; older copies in caches are then not found."""
GPU_BATCH_ITEMS = 256
"""Items in one forward pass on a GPU: a pass over a few takes as long as its launches."""


class Runner(Protocol):
    """A network that is loaded and runs. Thread-safe; calls may run at the same time."""

    @property
    def label(self) -> str:
        """What runs it and how precisely, for people: ``openvino 2026.4.1 f32``."""
        ...

    @property
    def on_gpu(self) -> bool:
        """Whether it runs on a GPU, which wants `GPU_BATCH_ITEMS` at a time."""
        ...

    def __call__(self, *inputs: NDArray[np.generic]) -> NDArray[np.float32]:
        """Run it; the first dimension of every input and of the output is n, the number of items."""
        ...


@dataclass(frozen=True, slots=True)
class Network:
    """What has to be known about a network to run it, convert it, and check a converted copy.

    Parameters
    ----------
    name : str
        ``lite-image``; letters, digits, dots, hyphens, for it names a folder.
    weights_sha256 : str
        Hex sha256 of all that is learned.
    input_names : tuple of str
        Arguments of the module's ``forward``, in order.
    free_dimensions : tuple of tuple of int
        For each input the dimensions whose length changes from call to call; 0, the number of items, is one.
    probe : tuple of NDArray
        Fixed inputs, of a dozen items that are unlike each other: the parity check compares what comes out.
    make_module : Callable
        Makes the ``torch.nn.Module``, on the CPU in float32, in evaluation mode. It takes seconds.
    """

    name: str
    weights_sha256: str
    input_names: tuple[str, ...]
    free_dimensions: tuple[tuple[int, ...], ...]
    probe: tuple[NDArray[np.generic], ...]
    make_module: Callable[[], torch.nn.Module]

    @property
    def folder_name(self) -> str:
        """Name of the folder of its converted copies: another for other weights or other code."""
        told = f"{self.name}/{self.weights_sha256}/{CONVERSION}".encode()
        return f"{self.name}-{hashlib.sha256(told).hexdigest()[:16]}"
