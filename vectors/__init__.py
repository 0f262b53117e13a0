"""Vectors: exact search, quantizers and their training, inverted lists, recall; the only home of faiss.

Takes: vectors, shape (n, d), queries, and the bytes of trained quantizers. Gives: codes, rows and scores, best first.
Owns: how two vectors are compared, and what a code stands for. Never: knows an id, a segment's frame, a topic or an encoder.
"""
