"""Converted networks: ONNX graphs made once by torch, kept in the cache, hashed before anything parses them.

    <cache_dir>/models/<network>-<16 hex>/{network.onnx, true.npy, entry.json}

Takes: a `Network`, the cache folder, perhaps a folder of copies that came with an image. Gives: the graph's bytes, and what the network
truly gives for its probe. Owns: the folder in the cache.
Never: hands out bytes whose sha256 is not the one in `entry.json`, a damaged entry is made anew; or writes to what came with an image.
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
import shutil
import tempfile
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from contracts.errors import CorruptError, SettingsError
from embedding.network import Network

logger = logging.getLogger(__name__)
GRAPH, TRUE, ENTRY = "network.onnx", "true.npy", "entry.json"
OPSET = 18
MAX_GRAPH_BYTES = 2_000_000_000
"""A protocol buffer holds less than 2 GiB; larger networks run in torch."""


@dataclass(frozen=True, slots=True)
class Converted:
    """An ONNX graph, and what float32 torch gave for the network's probe: shape (n, ...)."""

    graph: bytes
    true: NDArray[np.float32]


def converted(network: Network, cache_dir: Path, networks_dir: Path | None = None) -> Converted:
    """The network's converted copy out of `networks_dir`, else out of the cache; made there, in seconds to a minute, if both lack it.

    Raises
    ------
    SettingsError
        A package is missing, the network is too large, or the cache cannot be written.
    """
    folder = cache_dir / "models" / network.folder_name
    came_with = None if networks_dir is None else _kept(networks_dir / network.folder_name, is_ours=False)
    found = came_with or _kept(folder, is_ours=True)
    if found is not None:
        return found
    logger.info("converting network %s, once; it takes up to a minute", network.name)
    try:
        _make(network, folder)
        return _read(folder)
    except OSError as error:
        raise SettingsError(
            f"the converted network cannot be kept in {folder}: {error}", hint="set HEADWATER_CACHE_DIR to a folder with room"
        ) from error


def _kept(folder: Path, *, is_ours: bool) -> Converted | None:
    """The copy in a folder, or None where there is none or a damaged one, which is removed where it is ours."""
    try:
        return _read(folder)
    except FileNotFoundError:
        return None
    except (CorruptError, OSError, ValueError, KeyError) as error:
        logger.warning("the converted network in %s is damaged and is not used; it is made anew: %s", folder, error)
        if is_ours:
            shutil.rmtree(folder, ignore_errors=True)
        return None


def _read(folder: Path) -> Converted:
    entry = json.loads((folder / ENTRY).read_bytes())
    bodies = {}
    for name in (GRAPH, TRUE):
        bodies[name] = (folder / name).read_bytes()
        if hashlib.sha256(bodies[name]).hexdigest() != entry["sha256"][name]:
            raise CorruptError(f"{folder / name} has another sha256 than {ENTRY} says")
    return Converted(bodies[GRAPH], np.load(io.BytesIO(bodies[TRUE]), allow_pickle=False))


def _make(network: Network, folder: Path) -> None:
    """Write a whole entry beside its place, then rename it: whoever comes second keeps the first one's."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as made:
        place = Path(made) / "entry"
        place.mkdir()
        true = _export(network, place / GRAPH)
        np.save(place / TRUE, true, allow_pickle=False)
        hashes = {name: hashlib.sha256((place / name).read_bytes()).hexdigest() for name in (GRAPH, TRUE)}
        (place / ENTRY).write_text(json.dumps({"format": 1, "network": network.name, "weights_sha256": network.weights_sha256, "sha256": hashes}))
        try:
            place.rename(folder)
        except OSError:
            if not (folder / ENTRY).exists():
                raise


def _export(network: Network, path: Path) -> NDArray[np.float32]:
    """Write the graph; gives what the module itself makes of the probe."""
    import torch

    module = network.make_module()
    size_bytes = sum(tensor.numel() * tensor.element_size() for tensor in module.state_dict().values())
    if size_bytes >= MAX_GRAPH_BYTES:
        raise SettingsError(f"network {network.name} has {size_bytes} bytes, too many for one ONNX file", hint="set HEADWATER_EMBED_RUNTIME=torch")
    probe = tuple(torch.tensor(values) for values in network.probe)
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # its fused operator has no counterpart in ONNX
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the exporter says that it is the older one, and that it traces
            true: NDArray[np.float32] = module(*probe).numpy()
            torch.onnx.export(
                module,
                tuple(values[:2] for values in probe),
                str(path),
                dynamo=False,
                opset_version=OPSET,
                input_names=list(network.input_names),
                output_names=["out"],
                dynamic_axes={
                    name: {axis: f"{name}_{axis}" if axis else "n" for axis in axes}
                    for name, axes in zip(network.input_names, network.free_dimensions, strict=True)
                }
                | {"out": {0: "n"}},
            )
    except torch.onnx.OnnxExporterError as error:
        raise SettingsError(f"network {network.name} cannot be converted: {error}", hint="pip install 'headwater[openvino]'") from error
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
    return true
