"""Addresses: which of them are this machine.

Takes: host names. Gives: whether traffic to them stays here. Owns: the rule behind every refusal of an unencrypted connection.
Never: looks a name up.
"""

from __future__ import annotations

import ipaddress


def is_loopback(host: str) -> bool:
    """Tell whether `host` is this machine by its name or address alone; no name is looked up."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
