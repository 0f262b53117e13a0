"""A tiny architecture of open_clip's, with random weights: the real loading code on a real checkpoint, in milliseconds."""

import json
import warnings
from pathlib import Path

ARCHITECTURE = "headwater-tiny"
CONFIG = {
    "embed_dim": 32,
    "vision_cfg": {"image_size": 64, "layers": 2, "width": 64, "head_width": 32, "patch_size": 16},
    "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 64, "heads": 2, "layers": 2},
}
WIDER = "headwater-tiny-wider"


def register(folder: Path) -> None:
    """Make the architectures known to open_clip, as its users do with their own."""
    import open_clip

    for name, dimension in ((ARCHITECTURE, 32), (WIDER, 48)):
        path = folder / f"{name}.json"
        path.write_text(json.dumps(CONFIG | {"embed_dim": dimension}))
        open_clip.add_model_config(path)


def random_model(seed: int = 0, architecture: str = ARCHITECTURE):  # type: ignore[no-untyped-def]
    """A model of an architecture, by default the tiny one, made by open_clip itself."""
    import open_clip
    import torch

    torch.manual_seed(seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # open_clip says that nothing was loaded
        return open_clip.create_model(architecture, pretrained=None).train(False)
