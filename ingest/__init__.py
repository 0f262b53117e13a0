"""Producers: sources, records, the media topic.

Takes: files, bytes, vectors. Gives: records on a collection's media topic. Owns: how a picture becomes a record.
Never: decodes a picture, reaches torch, faiss or Pillow, or knows what indexes the record.
"""
