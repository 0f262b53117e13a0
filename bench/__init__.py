"""Benchmarks: one command, `python -m bench`, writes results/bench.json and results/bench.png (docs/benchmarks.md)."""

import vectors  # noqa: F401 - before faiss: the bare sides get the matrix kernels that ours have
