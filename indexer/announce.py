"""Telling query nodes of a commit: a notice in the vectors topic, so that they need not poll for it.

Takes: a producer, a committed manifest. Gives: nothing. Owns: the notice's key and headers.
Never: waits; a lost notice costs a node one poll interval.
"""

from __future__ import annotations

import threading

from contracts.log import LogProducer
from contracts.manifest import Manifest
from contracts.vectors_batch import NOTICE_KEY, CommitNotice, notice_headers


def announce(producer: LogProducer, topic: str, manifest: Manifest, is_failed: threading.Event) -> None:
    """Send the notice of a commit.

    Parameters
    ----------
    producer : LogProducer
        Of the log that holds `topic`.
    topic : str
        The index's vectors topic.
    manifest : Manifest
        What was committed.
    is_failed : threading.Event
        Set, by any thread, where the notice was not stored: the producer is then to be replaced.
    """
    notice = CommitNotice(manifest.version, manifest.commit_id, manifest.incarnation)
    sent = producer.send(topic, partition=manifest.partition, key=NOTICE_KEY, headers=notice_headers(notice))
    sent.add_done_callback(lambda done: is_failed.set() if done.exception() else None)
