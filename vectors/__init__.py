"""Search over matrices of vectors; the only home of faiss.

Takes: vectors, shape (n, d), and queries. Gives: rows and scores, best first. Owns: how two vectors are compared.
Never: knows an id, a segment's bytes, a topic or an encoder.
"""
