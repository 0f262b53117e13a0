"""The audit of a collection: what its stored bytes prove, and what they contradict (docs/verify.md).

    walk chains -> check objects -> tile ledgers -> rows against ledgers -> ids -> archive -> dead letters -> log -> orphans

Takes: a store, and a log where there is one. Gives: typed findings and counts by state. Owns: what is proven, and by which check.
Never: writes (`indexer.verify.repair` does, and only what is safe), or holds more than one object and one window of rows in memory.
"""
