"""The indexer: embed workers and builders (later archiver, trainer, compactor, garbage collector).

Takes: media records from the log. Gives: vectors batches, dead letters, segments and manifests. Owns: the commit protocol's writer side.
Never: imports `ingest` or `query`; they meet in stored bytes (ADR 0002).
"""
