"""The query service: tail, hot load, search, HTTP.

Takes: manifests and segments from the store, batches of the vectors topic, requests. Gives: answers that say how fresh they are.
Owns: the immutable view that a query pins (ADR 0005). Never: writes to the store or to a topic, or imports ingest or indexer.
"""
