"""Pins of scrolls: a scan over many pages reads one snapshot, so that a row that is updated meanwhile does not come twice.

Takes: a snapshot, where the next page begins. Gives: the offset text of the next page. Owns: how long a snapshot is kept for a scan.
Never: refuses an offset of another node, or one that is too old: its scan goes on over the newest snapshot.
"""

from __future__ import annotations

import secrets
import threading
from collections import OrderedDict

from contracts.clock import Clock
from query.collection_view import CollectionSnapshot
from query.scan import ScrollPlace

PIN_SECONDS = 60.0
MAX_PINS = 64


class ScrollPins:
    """Snapshots of scans under way; thread-safe.

    Parameters
    ----------
    clock : Clock
        A pin is let go `PIN_SECONDS` after its last page.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._pins: OrderedDict[str, tuple[CollectionSnapshot, float]] = OrderedDict()

    def open(self, text: str | None, newest: CollectionSnapshot) -> tuple[str | None, ScrollPlace | None, CollectionSnapshot]:
        """Pin, place and snapshot of the page that an offset text names; the newest snapshot where there is no pin (any more).

        Raises
        ------
        ValueError
            The text is no offset.
        """
        if text is None:
            return None, None, newest
        pin, _, place_text = text.rpartition(":")
        place = ScrollPlace.parse(place_text)
        with self._lock:
            self._let_go()
            found = self._pins.get(pin)
        if found is None or found[0].record.incarnation != newest.record.incarnation:
            return pin, place, newest
        return pin, place, found[0]

    def close(self, pin: str | None, snapshot: CollectionSnapshot, following: ScrollPlace | None) -> str | None:
        """Offset text of the page after; None, and the pin let go, where there is none."""
        with self._lock:
            if following is None:
                self._pins.pop(pin or "", None)
                return None
            pin = pin or secrets.token_hex(8)
            self._pins[pin] = (snapshot, self._clock.monotonic_seconds() + PIN_SECONDS)
            self._pins.move_to_end(pin)
            self._let_go()
        return f"{pin}:{following}"

    def _let_go(self) -> None:
        now = self._clock.monotonic_seconds()
        while self._pins and (len(self._pins) > MAX_PINS or next(iter(self._pins.values()))[1] <= now):
            self._pins.popitem(last=False)
