"""Logs, object stores, and the catalog over them; the only home of kafka, minio and sqlite3.

Takes: settings. Gives: `contracts.log.Log`, `contracts.store.ObjectStore`, collections and manifest chains. Owns: clients, connections, retries.
Never: decides what is indexed or committed, or shows another package an engine's own type.
"""
