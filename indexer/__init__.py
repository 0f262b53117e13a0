"""The indexer: embed workers, builders and their trainer, archivers, compactor, garbage collector, purge.

Takes: media records from the log. Gives: vectors batches, dead letters, segments, archives and manifests. Owns: the commit protocol's writer side.
Never: imports `ingest` or `query`; they meet in stored bytes (ADR 0002).
"""
