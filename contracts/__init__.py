"""What the packages agree on: formats, protocols, keys, settings, errors, metrics, clock.

Takes: nothing. Gives: the words every other package speaks. Owns: byte layouts and names.
Never: does I/O by itself, imports an engine (kafka, minio, faiss, torch), or reads the environment outside `settings`.
"""

FORMAT_VERSION = 1
"""Major version of every stored format; a reader refuses any other (docs/formats/README.md)."""
