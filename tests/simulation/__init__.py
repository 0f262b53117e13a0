"""A seeded simulation of the whole protocol on our own code (docs/testing.md): `python -m tests.simulation`."""
