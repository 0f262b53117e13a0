"""Faults: every fault of the matrix against real processes, a Kafka and a MinIO of its own; `python -m tests.faults` (docs/testing.md)."""
