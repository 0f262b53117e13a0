"""The chain rule: which batches of the vectors topic count (DESIGN section 4; spec: the protocol model's `accept`).

Every reader, builder, tail, embed worker and `verify` alike, keeps ``expected``, the next media offset, and accepts a batch iff

    start_offset <= expected < next_offset

It then drops the rows below ``expected`` and expects ``next_offset``. Every other batch, and any of another incarnation or media
topic, is dropped whole. The log's order decides; duplicates and zombies are harmless.

Takes: batch headers in log order. Gives: accepted spans. Owns: `expected`. Never: looks into a batch's rows.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class BatchSpan:
    """What a batch's headers say: identity and the half-open interval of media offsets that it covers."""

    incarnation: str
    topic_id: str
    start_offset: int
    next_offset: int


@dataclass(frozen=True, slots=True)
class AcceptedSpan:
    """The part of an accepted batch that counts: rows with ``start_offset <= offset < next_offset``."""

    start_offset: int
    next_offset: int


class Chain:
    """The state of one reader on one partition.

    Parameters
    ----------
    incarnation, topic_id : str
        The collection's incarnation and the media topic's id; batches of others are dropped.
    expected : int
        Media offset at which the next accepted row may begin (a manifest's ``checkpoint.media_offset``).
    """

    def __init__(self, incarnation: str, topic_id: str, expected: int) -> None:
        self.incarnation, self.topic_id, self.expected = incarnation, topic_id, expected

    def accept(self, span: BatchSpan) -> AcceptedSpan | None:
        """Apply the rule to the next batch of the log; None when it is dropped."""
        if (span.incarnation, span.topic_id) != (self.incarnation, self.topic_id):
            return None
        if not span.start_offset <= self.expected < span.next_offset:
            return None
        accepted = AcceptedSpan(self.expected, span.next_offset)
        self.expected = span.next_offset
        return accepted
