"""The first manifest of a partition, for tests of chains without a collection."""

from __future__ import annotations

from ulid import ULID

from contracts.manifest import Checkpoint, Manifest
from contracts.object_keys import PartitionKeys


def origin(keys: PartitionKeys) -> Manifest:
    """Manifest 1, whose checkpoint is the begin of both topics."""
    return Manifest(
        version=1,
        previous=None,
        commit_id=str(ULID()),
        writer="origin",
        committed_at="2026-01-01T00:00:00+00:00",
        incarnation=keys.index.collection.incarnation,
        index="main",
        partition=0,
        cluster_id="c",
        media_topic_id="m",
        vectors_topic_id="v",
        schema_version=1,
        origin_offset=0,
        checkpoint=Checkpoint(vectors_offset=0, media_offset=0),
    )
