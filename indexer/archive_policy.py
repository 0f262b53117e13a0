"""When an open tar is closed (pure; no store, log or clock).

Takes: sizes and ages. Gives: yes or no. Owns: the rule.
Never: trusts record times but once after a start: producers choose them, and old ones must not make a tar of every record.
"""

from __future__ import annotations

from contracts.settings import Settings


def should_close(size_bytes: int, age_seconds: float, settings: Settings) -> bool:
    """True when an open tar of `size_bytes`, begun `age_seconds` ago, is to be closed now."""
    return size_bytes >= settings.archive_bytes or age_seconds >= settings.archive_seconds


def should_close_first(oldest_record_seconds: float, is_caught_up: bool, settings: Settings) -> bool:
    """True when the first tar after a start is to be closed: a process that never runs for `archive_seconds` must archive too.

    Parameters
    ----------
    oldest_record_seconds : float
        Age of the tar's first record by its own time.
    is_caught_up : bool
        The log holds nothing more; before that a tar fills by itself.
    settings : Settings
        Gives `archive_seconds`.
    """
    return is_caught_up and oldest_record_seconds >= settings.archive_seconds


def fits(size_bytes: int, record_bytes: int, settings: Settings) -> bool:
    """True when a record of `record_bytes` may still go into an open tar of `size_bytes`."""
    return size_bytes == 0 or size_bytes + record_bytes <= settings.archive_bytes
