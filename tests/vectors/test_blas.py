"""faiss's matrix products run on kernels of this CPU."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from vectors.blas import VARIABLE, choose_kernels, cpu_features

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    ("features", "name"),
    [
        (["X86_V2", "X86_V3", "X86_V4", "AVX512_ICL"], "SkylakeX"),
        (["SSE42", "AVX2", "FMA3", "AVX512F", "AVX512_SKX"], "SkylakeX"),
        (["X86_V2", "X86_V3"], "Haswell"),
        (["SSE42", "AVX2", "FMA3"], "Haswell"),
        (["X86_V2"], None),
        (["NEON", "ASIMD"], None),
        ([], None),
    ],
)
def test_the_best_kernels_that_the_cpu_can_run_are_named(features: list[str], name: str | None) -> None:
    environment: dict[str, str] = {}
    choose_kernels(environment, features)
    assert environment.get(VARIABLE) == name


def test_a_name_that_somebody_set_stays() -> None:
    environment = {VARIABLE: "Zen"}
    choose_kernels(environment, ["X86_V3", "X86_V4"])
    assert environment == {VARIABLE: "Zen"}


def test_faiss_has_loaded_the_kernels_that_were_named() -> None:
    expected: dict[str, str] = {}
    choose_kernels(expected, cpu_features())
    if not expected:
        pytest.skip("no kernels are named for this CPU")
    script = (
        "import vectors.flat, threadpoolctl;"
        "print(*(found['architecture'] for found in threadpoolctl.threadpool_info() if 'faiss' in found['filepath'] and found['user_api'] == 'blas'))"
    )
    environment = {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.split() in ([expected[VARIABLE]], [])  # none where faiss was built upon another BLAS
