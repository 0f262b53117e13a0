"""Networks run by torch: on the CPU or a GPU, in float32 or with bfloat16 weights.

Takes: a module, a device, a type of weights. Gives: a `Runner`. Owns: torch's threads, and where tensors live.
Never: converts numbers under the hood: with frozen weights autocast converts all of them at every call, and is slower than float32.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from contracts.errors import SettingsError
from contracts.settings import Settings


def torch_device(settings: Settings) -> torch.device:
    """The device of `embed_device`; SettingsError where it names a GPU that is not there."""
    wanted = settings.embed_device
    if wanted == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    device = torch.device(wanted)
    if device.type == "cuda" and (not torch.cuda.is_available() or (device.index or 0) >= torch.cuda.device_count()):
        raise SettingsError(f"embed_device is {wanted}, and torch finds no such GPU", hint="set HEADWATER_EMBED_DEVICE=auto, or install the driver")
    return device


class TorchRunner:
    """A module that runs in this process.

    Parameters
    ----------
    module : torch.nn.Module
        In evaluation mode; it is moved, not copied.
    device : torch.device
        Where it runs.
    dtype : torch.dtype
        Of its weights.
    threads : int
        Of the CPU. They are the process's: the last runner that was made decides.
    """

    def __init__(self, module: torch.nn.Module, device: torch.device, dtype: torch.dtype, threads: int) -> None:
        torch.set_num_threads(threads)
        self.module = module.to(device=device, dtype=dtype)
        self._device = device
        self.label = f"torch {torch.__version__} {'bf16' if dtype == torch.bfloat16 else 'f32'} on {device}"

    def __call__(self, *inputs: NDArray[np.generic]) -> NDArray[np.float32]:
        """Run the module; inputs are copied to the device, the output back.

        Raises
        ------
        MemoryError
            They do not fit into the device's memory; fewer may.
        """
        try:
            with torch.inference_mode():
                tensors = [torch.tensor(values).to(self._device, non_blocking=True) for values in inputs]
                given: NDArray[np.float32] = self.module(*tensors).float().cpu().numpy()
        except torch.OutOfMemoryError as error:
            raise MemoryError(str(error)) from error
        return given
