"""Which kernels faiss's matrix products use: those that the CPU can run, not those that an old OpenBLAS takes for a CPU that it does not know.

faiss-cpu's wheel carries OpenBLAS 0.3.15 of 2021. On a newer Intel CPU it falls back to the kernels of Prescott (2004): finding the closest of 1,680
lists in 512 dimensions took 56 us of CPU a row instead of 12, and training is made of the same products. OpenBLAS takes the name of a kernel set from
the environment while it is loaded, so this runs before faiss is imported. numpy's own OpenBLAS is loaded by then, and knows today's CPUs.

Takes: what numpy found that the CPU can do, an environment. Gives: the environment with a name. Owns: that choice.
Never: changes a name that somebody set; imports faiss.
"""

from __future__ import annotations

from collections.abc import Iterable, MutableMapping

import numpy as np

VARIABLE = "OPENBLAS_CORETYPE"
_KERNELS = (("SkylakeX", {"X86_V4", "AVX512_SKX"}), ("Haswell", {"X86_V3", "AVX2"}))
"""The best first: a kernel set, and numpy's names, newer and older, for CPUs that can run it."""


def choose_kernels(environment: MutableMapping[str, str], features: Iterable[str]) -> None:
    """Name the kernels for a CPU with these `features` in an environment, unless it names some or none of ours would run."""
    found = set(features)
    for name, enough in _KERNELS:
        if found & enough:
            environment.setdefault(VARIABLE, name)
            return


def cpu_features() -> list[str]:
    """What this CPU can do, in numpy's words; empty where numpy does not say."""
    told = np.show_config(mode="dicts") or {}
    extensions = told.get("SIMD Extensions", {})
    return [*extensions.get("baseline", []), *extensions.get("found", [])]
