"""Converts the networks of `lite` while the image is built, so that the image can run them without torch.

    python convert_networks.py FOLDER

Takes: an environment with torch and OpenVINO, a folder. Gives: the folder for ``HEADWATER_NETWORKS_DIR``. Owns: which networks an image carries.
Never: goes on where a converted network does not give torch's vectors.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from contracts.settings import load_settings
from embedding import efficientnet_lite0, minilm
from embedding.converted import converted
from embedding.open_network import open_network


def main(folder: Path) -> None:
    """Convert both networks into `folder` and run each once: the parity check is part of opening it."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as cache:
        settings = load_settings(cache_dir=Path(cache), embed_runtime="openvino", embed_device="cpu")
        for network in (efficientnet_lite0.network(), minilm.network()):
            converted(network, settings.cache_dir)
            label = open_network(network, settings).label
            if not label.startswith("openvino"):
                raise SystemExit(f"network {network.name} runs on {label}: the converted copy is not usable here")
            sys.stdout.write(f"{network.name}: {label}\n")
        Path(cache, "models").rename(folder)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
