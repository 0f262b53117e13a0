"""How many examples a property is tried with: all of them in the full run, a share in the fast one."""

from __future__ import annotations

from hypothesis import settings

FAST = "not slow"
"""What the marker expression of the fast run contains (Makefile)."""
FAST_SHARE = 10
FAST_LEAST = 5

settings.register_profile("fast", max_examples=settings.get_profile("default").max_examples // FAST_SHARE)


def choose_profile(name: str) -> None:
    """Choose hypothesis' profile; before any test module is imported, since decorators read it."""
    settings.load_profile(name)


def examples(count: int) -> int:
    """`count` in the full run; in the fast run a tenth, but at least five or all."""
    if settings.get_current_profile_name() != "fast":
        return count
    return min(count, max(FAST_LEAST, count // FAST_SHARE))
