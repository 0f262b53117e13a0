"""The front door: command line, one-process runner, demo, Python client.

Takes: a user's words. Gives: running roles, collections, answers. Owns: the wiring of settings to engines.
Never: does the work of a role itself.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from headwater.client import HeadwaterClient as HeadwaterClient

__all__ = ["HeadwaterClient", "__version__"]


def __getattr__(name: str) -> Any:
    """Load the client and the version when they are asked for: the roles need neither."""
    if name == "HeadwaterClient":
        from headwater.client import HeadwaterClient

        return HeadwaterClient
    if name == "__version__":
        from importlib.metadata import version

        return version("headwater")
    raise AttributeError(f"module 'headwater' has no attribute {name!r}")
