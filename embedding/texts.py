"""Text from strangers, made plain: one form per text, bounded work per byte.

Takes: text or UTF-8 bytes, a limit. Gives: normalised text. Owns: what two equal texts are.
Never: needs more than the standard library, or does work that grows faster than the text (research/reliability.md S7).
"""

from __future__ import annotations

import unicodedata

from contracts.errors import RecordError

MAX_MARKS = 30
"""Combining marks kept after one character: the limit of the Stream-Safe Text Format, UAX #15 section 13.

Canonical ordering is quadratic in the length of a run of marks, so a megabyte of them would stop a worker.
"""
_CONTROLS = {code: None for code in (*range(0x20), *range(0x7F, 0xA0)) if not chr(code).isspace()}


def normalise_text(text: str | bytes, max_bytes: int) -> str:
    """Give a text its one form: valid UTF-8, no control characters, NFC, single spaces, no space at the ends.

    Parameters
    ----------
    text : str or bytes
        Bytes are read as UTF-8.
    max_bytes : int
        Longest text, as UTF-8.

    Returns
    -------
    str
        May be empty. Normalising it again changes nothing.

    Raises
    ------
    RecordError
        ``bad_text``: not valid UTF-8, or too long.
    """
    try:
        body = text if isinstance(text, bytes) else text.encode()  # fails on lone surrogates
        if len(body) > max_bytes:
            raise RecordError("bad_text", f"the text has {len(body)} bytes, the limit is {max_bytes}")
        plain = body.decode().translate(_CONTROLS)
    except UnicodeError as error:
        raise RecordError("bad_text", "the text is not valid UTF-8") from error
    if not plain.isascii():
        # Twice: one character can become several marks when it is taken apart, and a run may so grow past the limit.
        plain = _limit_marks(unicodedata.normalize("NFC", _limit_marks(plain)))
    return " ".join(plain.split())


def _limit_marks(text: str) -> str:
    """Drop combining marks beyond `MAX_MARKS` in a row."""
    kept: list[str] = []
    run = 0
    for character in text:
        run = run + 1 if unicodedata.combining(character) else 0
        if run <= MAX_MARKS:
            kept.append(character)
    return "".join(kept)
