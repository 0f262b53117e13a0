"""The catalog: typed chains and checked objects over an `ObjectStore`.

Takes: an object store. Gives: collections, manifests, verified objects. Owns: how a chain is read and extended.
Never: decides what a commit holds (indexer) or what a query sees (query).
"""
