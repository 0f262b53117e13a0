"""Vectors: exact search, quantizers and their training, inverted lists, recall; the only home of faiss.

Takes: vectors, shape (n, d), queries, and the bytes of trained quantizers. Gives: codes, rows and scores, best first.
Owns: how two vectors are compared, and what a code stands for. Never: knows an id, a segment's frame, a topic or an encoder.
"""

import os

from vectors.blas import choose_kernels, cpu_features

choose_kernels(os.environ, cpu_features())  # noqa: TID251 - not read, written: for a library that looks nowhere else, before it is loaded
