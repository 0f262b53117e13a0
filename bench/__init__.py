"""Benchmarks: one command, `python -m bench`, writes results/bench.json and results/bench.png (docs/benchmarks.md)."""
